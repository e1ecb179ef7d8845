//! Joining and renewing: one request, one answer, then the connection ends (ALPN `vidette-join/1`).
//!
//! Joining needs a token and no certificate; renewing needs the certificate that is to be renewed, which TLS has
//! checked. `identity` decides; this file only carries.

use super::quic::{Frames, send};
use super::tls;
use crate::identity::{Identity, unix_s_now};
use anyhow::{Context, bail};
use quinn::{Connection, VarInt};
use std::time::Duration;
use vidette_protocol::limits::JOIN_BYTES_MAX;
use vidette_protocol::wire::{
    JoinAnswer, JoinRefusal, JoinRefused, JoinRequest, Joined, join_answer, join_request,
};
use vidette_protocol::{CLOSE_DONE, escape};

/// The request must be there by then. Milliseconds.
const REQUEST_MS_MAX: u64 = 10_000;
/// The answer must have been taken by then. Milliseconds.
const TAKEN_MS_MAX: u64 = 5_000;

/// Serves one connection. `busy` refuses whatever is asked.
pub(super) async fn serve(
    connection: Connection,
    certificate: Option<Vec<u8>>,
    identity: Identity,
    busy: bool,
) {
    let address = connection.remote_address();
    if let Err(error) = try_serve(&connection, certificate, identity, busy).await {
        let why =
            connection.close_reason().map_or_else(|| format!("{error:#}"), |reason| tls::explain(&reason));
        tracing::info!(%address, why, "a join request came to nothing");
    }
    connection.close(VarInt::from_u32(CLOSE_DONE), b"done");
}

async fn try_serve(
    connection: &Connection,
    certificate: Option<Vec<u8>>,
    identity: Identity,
    busy: bool,
) -> anyhow::Result<()> {
    let request = async {
        let (answers, receive) = connection.accept_bi().await?;
        let request: Option<JoinRequest> = Frames::new(receive, JOIN_BYTES_MAX).next().await?;
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
        decide(request, certificate, identity).await?
    };
    note(connection, &answer);
    let message = match answer {
        Ok(joined) => join_answer::Message::Joined(joined),
        Err(refused) => join_answer::Message::Refused(refused),
    };
    send(&mut answers, &JoinAnswer { message: Some(message) }).await?;
    answers.finish()?;
    let _ = tokio::time::timeout(Duration::from_millis(TAKEN_MS_MAX), answers.stopped()).await;
    Ok(())
}

async fn decide(
    request: JoinRequest,
    certificate: Option<Vec<u8>>,
    identity: Identity,
) -> anyhow::Result<Result<Joined, JoinRefused>> {
    let work = move || -> anyhow::Result<_> {
        match (request.message, certificate) {
            (Some(join_request::Message::Join(join)), _) => Ok(identity.join(&join, unix_s_now())),
            (Some(join_request::Message::Renew(renew)), Some(certificate)) => {
                let agent = Identity::agent_of(&certificate)?;
                Ok(identity.renew(agent, &renew, unix_s_now()))
            }
            (Some(join_request::Message::Renew(_)), None) => Ok(Err(JoinRefused {
                code: JoinRefusal::BadRequest as i32,
                reason: "a renewal must present the certificate that is to be renewed".to_owned(),
            })),
            (None, _) => bail!("a request that this collector does not know"),
        }
    };
    tokio::task::spawn_blocking(work).await?
}

fn note(connection: &Connection, answer: &Result<Joined, JoinRefused>) {
    let address = connection.remote_address();
    match answer {
        Ok(joined) => tracing::info!(%address, agent = joined.agent_id, "issued a certificate"),
        Err(refused) => {
            let reason = escape::terminal(refused.reason.as_bytes());
            tracing::warn!(%address, reason, "refused to issue a certificate");
        }
    }
}
