//! Joining a collector, and renewing the certificate at half its life.
//!
//! The key is made here and never leaves the host: only a certificate request (PKCS#10, RFC 2986) is sent. What
//! comes back is checked before it is stored by `credentials`. The next connection uses it.

use super::credentials::{Credentials, prepare_state};
use super::quic::{self, Frames, Link};
use super::tls;
use crate::host::Host;
use anyhow::{Context, bail};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use vidette_protocol::id::AgentId;
use vidette_protocol::join::{Address, Invitation};
use vidette_protocol::limits::JOIN_BYTES_MAX;
use vidette_protocol::wire::{self, JoinRefusal, join_answer, join_request};
use vidette_protocol::{ALPN_JOIN, CLOSE_DONE, escape, frame};

/// The collector's answer to a request takes no longer. Milliseconds.
const ANSWER_MS_MAX: u64 = 15_000;
/// How long the goodbye may take. Milliseconds.
const GOODBYE_MS_MAX: u64 = 500;
/// Renewal happens at half the life, earlier by up to this part of it, so that a fleet does not renew at once.
const JITTER_LIFE_PART: i64 = 10;

/// Enrols this host and stores what it got in the state folder. Blocks until done.
///
/// # Errors
/// One sentence: what failed and what to do. Nothing that was stored before is changed then.
pub fn join(invitation: &Invitation, host: &Host, state: &Path, again: bool) -> anyhow::Result<Credentials> {
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
    let credentials = runtime.block_on(request_join(invitation, host))?;
    credentials.store(state)?;
    Ok(credentials)
}

async fn request_join(invitation: &Invitation, host: &Host) -> anyhow::Result<Credentials> {
    let (key, csr_der) = new_key()?;
    let join = wire::Join {
        token: invitation.token.bytes().to_vec(),
        csr_der,
        host_name: host.name.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        os: host.os.clone(),
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
    accept(&joined, invitation.address.clone(), key, roots)
}

/// A new key and certificate for the same agent, proved with the old ones. Stored before it returns.
///
/// # Errors
/// One sentence. The old credentials stay as they are.
pub(super) async fn renew(old: &Credentials, state: &Path) -> anyhow::Result<Credentials> {
    let (key, csr_der) = new_key()?;
    let tls = tls::session(old, ALPN_JOIN)?;
    let joined = ask(&old.collector, tls, join_request::Message::Renew(wire::Renew { csr_der })).await?;
    let roots = if joined.roots_der.is_empty() { old.roots.clone() } else { certificates(&joined.roots_der) };
    let renewed = accept(&joined, old.collector.clone(), key, roots)?;
    if renewed.agent != old.agent {
        bail!("the collector at {} gave the certificate of another agent; nothing was stored", old.collector);
    }
    renewed.store(state)?;
    Ok(renewed)
}

/// When to renew, Unix seconds: at half the life, and up to a tenth of it earlier, by `chance` in 0..=1.
pub(super) fn renew_at_unix_s(starts_unix_s: i64, expires_unix_s: i64, chance: f64) -> i64 {
    let life_s = expires_unix_s.saturating_sub(starts_unix_s).max(0);
    // A life is far below 2^52 s, and `chance` at most 1: the product fits.
    let earlier_s = ((life_s / JITTER_LIFE_PART) as f64 * chance.clamp(0.0, 1.0)) as i64;
    expires_unix_s.saturating_sub(life_s / 2).saturating_sub(earlier_s)
}

fn new_key() -> anyhow::Result<(PrivateKeyDer<'static>, Vec<u8>)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("could not make a key")?;
    let request = CertificateParams::default()
        .serialize_request(&key)
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

/// One request, one answer, one connection.
async fn ask(
    collector: &Address,
    tls: Arc<QuicClientConfig>,
    request: join_request::Message,
) -> anyhow::Result<wire::Joined> {
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
    match answer?.message {
        Some(join_answer::Message::Joined(joined)) => Ok(joined),
        Some(join_answer::Message::Refused(refused)) => bail!("{}", refusal(collector, &refused)),
        None => bail!(
            "the collector at {collector} gave an answer that this agent does not know; update the agent"
        ),
    }
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
            format!("the token was used before, and one token is good for one host; {new}")
        }
        Ok(JoinRefusal::TokenRevoked) => format!("the token was revoked; {new}"),
        Ok(JoinRefusal::Revoked) => {
            format!(
                "the collector at {collector} does not take this agent any more; join it again with a new token"
            )
        }
        Ok(JoinRefusal::Overloaded) => {
            format!(
                "the collector at {collector} can't do it now: {}",
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
