//! Joining a collector, renewing the certificate at half its life, and leaving.
//!
//! The key is made here and never leaves the host: only a certificate request (PKCS#10, RFC 2986) is sent. What
//! comes back is checked before it is stored by `credentials`. The next connection uses it. A join or renewal that was cut
//! short is done again with the key that it had (`pending`):
//!
//! | killed | on disk | next time |
//! |---|---|---|
//! | before the key is stored | the old identity | a new key |
//! | before the answer is stored | the old identity and the key | the same key, the same generation |
//! | before the key is forgotten | the new identity and a key of the old one | that key is of another certificate: a new one |
//!
//! A renewal goes over the session when there is one (`live`), else over a connection of its own.

use super::credentials::{Credentials, prepare_state};
use super::live::Ask;
use super::quic::{self, Frames, Link};
use super::tls::OutOfTime;
use super::{pending, tls};
use crate::host::{self, Host};
use anyhow::{Context, bail};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use vidette_protocol::id::AgentId;
use vidette_protocol::join::{Address, Invitation};
use vidette_protocol::limits::JOIN_BYTES_MAX;
use vidette_protocol::wire::{self, JoinRefusal, join_answer, join_request};
use vidette_protocol::{ALPN_JOIN, CLOSE_DONE, escape, frame};

/// The collector's answer to a request takes no longer. Milliseconds.
const ANSWER_MS_MAX: u64 = 15_000;
/// How long the goodbye may take. Milliseconds.
const GOODBYE_MS_MAX: u64 = 500;
/// Older agents of this host that are shown.
const REPLACED_SHOWN_MAX: usize = 16;
/// Renewal happens at half the life, earlier by up to this part of it, so that a fleet does not renew at once.
const JITTER_LIFE_PART: i64 = 10;

/// Enrols this host and stores what it got in the state folder. Blocks until done.
///
/// # Errors
/// One sentence: what failed and what to do. Nothing that was stored before is changed then.
pub fn join(invitation: &Invitation, host: &Host, state: &Path, again: bool) -> anyhow::Result<Credentials> {
    Ok(join_as(invitation, host, state, again)?.credentials)
}

/// What came of a join.
#[derive(Debug)]
pub struct Enrolled {
    /// Who this host is now; stored.
    pub credentials: Credentials,
    /// Older agents that the collector takes for this host: they stay in its list, as replaced.
    pub replaces: Vec<AgentId>,
    /// The collector had enrolled this host already and its answer was lost: no further use of the token.
    pub repeated: bool,
}

/// As [`join`], with what the collector says of older agents.
///
/// # Errors
/// As [`join`].
pub fn join_as(invitation: &Invitation, host: &Host, state: &Path, again: bool) -> anyhow::Result<Enrolled> {
    match Credentials::load(state) {
        Ok(found) if !again => bail!(
            "this host has joined {} already, as agent {}; to leave that and join anew, add --again",
            found.collector,
            found.agent
        ),
        Err(super::NoCredentials::Damaged { folder, .. }) if !again => {
            bail!("{} holds a damaged identity; to replace it, add --again", folder.display())
        }
        Ok(_) | Err(_) => {}
    }
    prepare_state(state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let enrolled = runtime.block_on(request_join(invitation, host, state))?;
    enrolled.credentials.store(state)?;
    pending::forget(state)?;
    Ok(enrolled)
}

/// How an agent left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Farewell {
    /// The collector takes its certificate no more.
    Known,
    /// The collector did not take it any more before: revoked, unknown or left. In its words.
    KnownBefore(String),
    /// The collector could not be told, and the caller wanted to leave anyway. Why.
    Untold(String),
}

/// Takes this host out of its collector's fleet: the collector revokes the certificate, the identity is set aside here.
/// `anyway` does the second when the first is not possible. Blocks until done. Gives who left, how, and where its identity
/// is now.
///
/// # Errors
/// One sentence. Nothing is changed on this host then.
pub fn leave(state: &Path, anyway: bool) -> anyhow::Result<(Credentials, Farewell, PathBuf)> {
    let credentials = Credentials::load(state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let farewell = match runtime.block_on(request_leave(&credentials)) {
        Ok(farewell) => farewell,
        Err(error) if anyway => Farewell::Untold(format!("{error:#}")),
        Err(error) => {
            let agent = credentials.agent;
            return Err(error.context(format!(
                "the collector could not be told, and nothing was changed; try again, or leave without it with \
                 --anyway and run `vidette agents revoke {agent}` there"
            )));
        }
    };
    let aside = Credentials::set_aside(state)?;
    Ok((credentials, farewell, aside))
}

async fn request_leave(credentials: &Credentials) -> anyhow::Result<Farewell> {
    let tls = tls::session(credentials, ALPN_JOIN, &OutOfTime::default())?;
    let collector = &credentials.collector;
    match answer(collector, tls, join_request::Message::Leave(wire::Leave {})).await? {
        join_answer::Message::Left(_) => Ok(Farewell::Known),
        join_answer::Message::Refused(refused) => match JoinRefusal::try_from(refused.code) {
            Ok(JoinRefusal::Revoked | JoinRefusal::Unknown | JoinRefusal::Left | JoinRefusal::Cloned) => {
                Ok(Farewell::KnownBefore(refusal(collector, &refused)))
            }
            Ok(_) | Err(_) => bail!("{}", refusal(collector, &refused)),
        },
        join_answer::Message::Joined(_) => {
            bail!("the collector at {collector} gave an answer to another question")
        }
    }
}

async fn request_join(invitation: &Invitation, host: &Host, state: &Path) -> anyhow::Result<Enrolled> {
    let (key, csr_der) = request_for(&pending::join_key(state, &invitation.token)?)?;
    let join = wire::Join {
        token: invitation.token.bytes().to_vec(),
        csr_der,
        host_name: host.name.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        os: host.os.clone(),
        host_mark: host::mark(&invitation.pin),
    };
    let tls = tls::joining(invitation.pin)?;
    let joined = ask(&invitation.address, tls, join_request::Message::Join(join)).await?;
    let roots = certificates(&joined.roots_der);
    if !roots.iter().any(|root| tls::pin_of(root) == Some(invitation.pin)) {
        bail!(
            "the collector's answer does not hold the CA of the join line; ask who answers at {}",
            invitation.address
        );
    }
    let credentials = accept(&joined, invitation.address.clone(), key, roots)?;
    let replaces = joined.replaces.iter().take(REPLACED_SHOWN_MAX).filter_map(|id| id.parse().ok()).collect();
    Ok(Enrolled { credentials, replaces, repeated: joined.repeated })
}

/// Renews the certificate of a host on which no agent runs; the caller sees to that. Blocks until done.
///
/// # Errors
/// One sentence. What was stored stays as it is.
pub fn renew_alone(state: &Path) -> anyhow::Result<Credentials> {
    let old = Credentials::load(state)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(renew(&old, state, None))
}

/// A new key and certificate for the same agent, proved with the old ones. Stored before it returns. `live` is a session
/// that takes the request.
///
/// # Errors
/// One sentence. The old credentials stay as they are.
pub(super) async fn renew(
    old: &Credentials,
    state: &Path,
    live: Option<mpsc::Sender<Ask>>,
) -> anyhow::Result<Credentials> {
    let leaf = old.chain.first().context("there is no certificate")?;
    let kept = pending::renewal_key(state, leaf)?;
    let (key, csr_der) = request_for(&kept.key)?;
    // The collector would take a second key for that of a copy, if this host said that it keeps what it asks with.
    let renew = wire::Renew { csr_der, kept: !kept.after_damage };
    let answered = match live {
        Some(live) => ask_live(&live, renew.clone()).await,
        None => None,
    };
    let joined = match answered {
        Some(Ok(joined)) => joined,
        Some(Err(refused)) => bail!("{}", refusal(&old.collector, &refused)),
        None => {
            let tls = tls::session(old, ALPN_JOIN, &OutOfTime::default())?;
            ask(&old.collector, tls, join_request::Message::Renew(renew)).await?
        }
    };
    let roots = if joined.roots_der.is_empty() { old.roots.clone() } else { certificates(&joined.roots_der) };
    let renewed = accept(&joined, old.collector.clone(), key, roots)?;
    if renewed.agent != old.agent {
        bail!("the collector at {} gave the certificate of another agent; nothing was stored", old.collector);
    }
    if !matches!(Credentials::load(state), Ok(now) if now.chain == old.chain) {
        bail!("this host has left or joined anew meanwhile; the renewed certificate was not stored");
    }
    renewed.store(state)?;
    pending::forget_renewal(state)?;
    Ok(renewed)
}

/// Asks on the session. `None`: no answer came; the same key may be asked for in another way.
async fn ask_live(
    live: &mpsc::Sender<Ask>,
    renew: wire::Renew,
) -> Option<Result<wire::Joined, wire::JoinRefused>> {
    let (answer, answered) = oneshot::channel();
    live.try_send(Ask { renew, answer }).ok()?;
    tokio::time::timeout(Duration::from_millis(ANSWER_MS_MAX), answered).await.ok()?.ok()
}

/// When to renew, Unix seconds: at half the life, and up to a tenth of it earlier, by `chance` in 0..=1.
pub(super) fn renew_at_unix_s(starts_unix_s: i64, expires_unix_s: i64, chance: f64) -> i64 {
    let life_s = expires_unix_s.saturating_sub(starts_unix_s).max(0);
    // A life is far below 2^52 s, and `chance` at most 1: the product fits.
    let earlier_s = ((life_s / JITTER_LIFE_PART) as f64 * chance.clamp(0.0, 1.0)) as i64;
    expires_unix_s.saturating_sub(life_s / 2).saturating_sub(earlier_s)
}

fn request_for(key: &KeyPair) -> anyhow::Result<(PrivateKeyDer<'static>, Vec<u8>)> {
    let request = CertificateParams::default()
        .serialize_request(key)
        .context("could not make a certificate request")?;
    let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok((der, request.der().to_vec()))
}

fn certificates(ders: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    ders.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

fn accept(
    joined: &wire::Joined,
    collector: Address,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
) -> anyhow::Result<Credentials> {
    let what = "the collector's answer can't be used";
    let agent: AgentId = joined.agent_id.parse().context(what)?;
    Credentials::assemble(agent, collector, certificates(&joined.certificates_der), key, roots).context(what)
}

async fn ask(
    collector: &Address,
    tls: Arc<QuicClientConfig>,
    request: join_request::Message,
) -> anyhow::Result<wire::Joined> {
    match answer(collector, tls, request).await? {
        join_answer::Message::Joined(joined) => Ok(joined),
        join_answer::Message::Refused(refused) => bail!("{}", refusal(collector, &refused)),
        join_answer::Message::Left(_) => {
            bail!("the collector at {collector} gave an answer to another question")
        }
    }
}

/// One request, one answer, one connection.
async fn answer(
    collector: &Address,
    tls: Arc<QuicClientConfig>,
    request: join_request::Message,
) -> anyhow::Result<join_answer::Message> {
    let link = quic::dial(collector, tls).await?;
    let time = Duration::from_millis(ANSWER_MS_MAX);
    let answer = match tokio::time::timeout(time, exchange(&link, request)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => match link.connection.close_reason() {
            // The collector refuses a certificate only after this side's handshake is done (RFC 8446 section 4.4.2.4).
            Some(reason) => Err(anyhow::anyhow!("{}", tls::explain(&reason, collector))),
            None => Err(error.context(format!("the collector at {collector} did not answer as it should"))),
        },
        Err(_) => Err(anyhow::anyhow!(
            "the collector at {collector} did not answer within {} s",
            ANSWER_MS_MAX / 1000
        )),
    };
    link.close(CLOSE_DONE, "done", Duration::from_millis(GOODBYE_MS_MAX)).await;
    answer?.message.with_context(|| {
        format!("the collector at {collector} gave an answer that this agent does not know; update the agent")
    })
}

async fn exchange(link: &Link, request: join_request::Message) -> anyhow::Result<wire::JoinAnswer> {
    let (mut send, receive) = link.connection.open_bi().await?;
    send.write_all(&frame::encode(&wire::JoinRequest { message: Some(request) })).await?;
    send.finish()?;
    Frames::new(receive, JOIN_BYTES_MAX).next().await?.context("the stream ended before the answer")
}

fn refusal(collector: &Address, refused: &wire::JoinRefused) -> String {
    let new = "make a new one with `vidette tokens create` on the collector";
    match JoinRefusal::try_from(refused.code) {
        Ok(JoinRefusal::TokenUnknown) => {
            format!("the token is unknown to the collector at {collector}; {new}")
        }
        Ok(JoinRefusal::TokenExpired) => format!("the token has expired; {new}"),
        Ok(JoinRefusal::TokenUsed) => {
            format!("the token was used before, by all hosts that it is good for; {new}")
        }
        Ok(JoinRefusal::TokenRevoked) => format!("the token was revoked; {new}"),
        Ok(JoinRefusal::Revoked) => {
            format!(
                "this agent was revoked on the collector at {collector}; if that was a mistake, join it again with a new token"
            )
        }
        Ok(JoinRefusal::Unknown) => {
            format!("this agent is unknown to the collector at {collector}; join it again with a new token")
        }
        Ok(JoinRefusal::Left) => {
            format!("this agent has left the collector at {collector}; join it again with a new token")
        }
        Ok(JoinRefusal::Cloned) => {
            format!(
                "this agent is cloned for the collector at {collector}: its identity was copied, and every copy is set aside; on \
                 the right host, run `vidette-agent join --again` with a new token"
            )
        }
        Ok(JoinRefusal::Overloaded) => {
            format!(
                "the collector at {collector} is overloaded and can't do it now: {}",
                escape::terminal(refused.reason.as_bytes())
            )
        }
        Ok(JoinRefusal::BadRequest | JoinRefusal::Unspecified) | Err(_) => {
            format!("the collector at {collector} refused: {}", escape::terminal(refused.reason.as_bytes()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_falls_between_two_fifths_and_half_of_the_life() {
        assert_eq!(renew_at_unix_s(0, 1000, 0.0), 500);
        assert_eq!(renew_at_unix_s(0, 1000, 1.0), 400);
        assert_eq!(renew_at_unix_s(0, 1000, 99.0), 400);
        assert_eq!(renew_at_unix_s(1000, 0, 0.5), 0, "a certificate of no life is due at once");
    }
}
