//! Joining, renewing and leaving: one request, one answer, then the connection ends (ALPN `vidette-join/1`).
//!
//! Joining needs a token and no certificate; renewing and leaving need the agent's certificate, which TLS has checked.
//! `identity` decides; this file carries, and tells of what was decided.

use super::notices::{Notice, Notices};
use super::quic::{Frames, send};
use super::{Cut, Fleet, Shared, set_aside, tls};
use crate::identity::{Identity, Shown, unix_s_now};
use anyhow::{Context, bail};
use quinn::{Connection, VarInt};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use vidette_protocol::bounds::Shape;
use vidette_protocol::id::AgentId;
use vidette_protocol::limits::JOIN_BYTES_MAX;
use vidette_protocol::wire::{
    Join, JoinAnswer, JoinRefusal, JoinRefused, JoinRequest, Joined, Renew, join_answer, join_request,
};
use vidette_protocol::{CLOSE_DONE, escape};

/// The request must be there by then. Milliseconds.
const REQUEST_MS_MAX: u64 = 10_000;
/// The answer must have been taken by then. Milliseconds.
const TAKEN_MS_MAX: u64 = 5_000;

/// Serves one connection. `busy` refuses whatever is asked.
pub(super) async fn serve<S>(
    connection: Connection,
    certificate: Option<Vec<u8>>,
    shared: &Shared<S>,
    busy: bool,
) {
    let address = connection.remote_address();
    let desk = Desk {
        identity: shared.identity.clone(),
        fleet: shared.fleet.clone(),
        notices: shared.notices.clone(),
        address,
        certificate,
    };
    if let Err(error) = try_serve(&connection, desk, busy).await {
        let why =
            connection.close_reason().map_or_else(|| format!("{error:#}"), |reason| tls::explain(&reason));
        tracing::info!(%address, why, "a join request came to nothing");
    }
    connection.close(VarInt::from_u32(CLOSE_DONE), b"done");
}

async fn try_serve(connection: &Connection, desk: Desk, busy: bool) -> anyhow::Result<()> {
    let request = async {
        let (answers, receive) = connection.accept_bi().await?;
        let request: Option<JoinRequest> =
            Frames::new(receive, JOIN_BYTES_MAX, &Shape::NOTHING).next().await?;
        anyhow::Ok((answers, request.context("the stream ended before the request")?))
    };
    let (mut answers, request) = tokio::time::timeout(Duration::from_millis(REQUEST_MS_MAX), request)
        .await
        .context("no request came")??;
    let answer = if busy {
        Err(JoinRefused {
            code: JoinRefusal::Overloaded as i32,
            reason: "too many hosts join at once; try again in a minute".to_owned(),
        })
    } else {
        tokio::task::spawn_blocking(move || desk.decide(request)).await??
    };
    note(connection, &answer);
    let message = match answer {
        Ok(message) => message,
        Err(refused) => join_answer::Message::Refused(refused),
    };
    send(&mut answers, &JoinAnswer { message: Some(message) }).await?;
    answers.finish()?;
    let _ = tokio::time::timeout(Duration::from_millis(TAKEN_MS_MAX), answers.stopped()).await;
    Ok(())
}

type Decided = Result<join_answer::Message, JoinRefused>;

/// Everything that one request needs. Blocks: the register is on disk.
struct Desk {
    identity: Identity,
    fleet: Fleet,
    notices: Notices,
    address: SocketAddr,
    certificate: Option<Vec<u8>>,
}

impl Desk {
    fn decide(self, request: JoinRequest) -> anyhow::Result<Decided> {
        match request.message {
            Some(join_request::Message::Join(join)) => self.join(&join),
            Some(join_request::Message::Renew(renew)) => {
                let Some(certificate) = self.certificate.as_deref() else {
                    return Ok(Err(without_certificate("a renewal", "that is to be renewed")));
                };
                let clerk = Clerk {
                    identity: self.identity.clone(),
                    fleet: self.fleet.clone(),
                    notices: self.notices.clone(),
                };
                let shown = Identity::shown(certificate)?;
                Ok(clerk.renew(&shown, &renew, self.address).map(join_answer::Message::Joined))
            }
            Some(join_request::Message::Leave(_)) => {
                let Some(agent) = self.agent()? else {
                    return Ok(Err(without_certificate("an agent that leaves", "it has")));
                };
                Ok(self.leave(agent))
            }
            None => bail!("a request that this collector does not know"),
        }
    }

    fn agent(&self) -> anyhow::Result<Option<AgentId>> {
        self.certificate.as_deref().map(Identity::agent_of).transpose()
    }

    fn join(&self, join: &Join) -> anyhow::Result<Decided> {
        let joined = match self.identity.join(join, unix_s_now()) {
            Ok(joined) => joined,
            Err(refused) => return Ok(Err(refused)),
        };
        let agent: AgentId = joined.agent_id.parse()?;
        if joined.repeated {
            tracing::info!(%agent, address = %self.address, "the same host asked again: the answer to its join was lost");
        } else {
            self.notices.tell(&Notice::Joined {
                agent,
                host_name: join.host_name.clone(),
                address: self.address,
                group: self.identity.agent(agent)?.and_then(|record| record.group),
                replaces: joined.replaces.clone(),
            });
        }
        Ok(Ok(join_answer::Message::Joined(joined)))
    }

    fn leave(&self, agent: AgentId) -> Decided {
        let left = self.identity.leave(agent, unix_s_now())?;
        self.fleet.cut_as(agent, Cut::Left);
        self.notices.tell(&Notice::Left { agent, address: self.address });
        Ok(join_answer::Message::Left(left))
    }
}

/// Renews certificates, on whatever connection that is asked for. Blocks: the register is on disk.
pub(super) struct Clerk {
    pub(super) identity: Identity,
    pub(super) fleet: Fleet,
    pub(super) notices: Notices,
}

impl Clerk {
    pub(super) fn renew(
        &self,
        shown: &Shown,
        renew: &Renew,
        address: SocketAddr,
    ) -> Result<Joined, JoinRefused> {
        if !self.fleet.may_renew(shown.agent, Instant::now()) {
            return Err(renews_too_often());
        }
        self.identity.renew(shown, renew, address, unix_s_now()).map_err(|not_renewed| {
            if let Some(sign) = not_renewed.sign {
                set_aside(&self.identity, &self.fleet, &self.notices, *sign);
            }
            not_renewed.refused
        })
    }
}

fn without_certificate(who: &str, which: &str) -> JoinRefused {
    let reason = format!("{who} must present the certificate {which}");
    JoinRefused { code: JoinRefusal::BadRequest as i32, reason }
}

/// The register remembers every certificate.
fn renews_too_often() -> JoinRefused {
    let reason = "this agent renews its certificate too often; it may go on in ten minutes".to_owned();
    JoinRefused { code: JoinRefusal::Overloaded as i32, reason }
}

fn note(connection: &Connection, answer: &Decided) {
    let address = connection.remote_address();
    match answer {
        Ok(join_answer::Message::Joined(joined)) => {
            tracing::info!(%address, agent = joined.agent_id, "issued a certificate");
        }
        Ok(join_answer::Message::Left(left)) => {
            tracing::info!(%address, agent = left.agent_id, "an agent has left");
        }
        Ok(join_answer::Message::Refused(refused)) | Err(refused) => {
            let reason = escape::terminal(refused.reason.as_bytes());
            tracing::warn!(%address, reason, "refused what a host asked for");
        }
    }
}
