//! Connects, and connects again: the loop around one session after another.
//!
//! Never gives up (D5): whatever goes wrong is said in `State` and in the log, and tried again after a wait with
//! jitter; at once after the collector said goodbye. Events stay in the outbox meanwhile.

use super::backoff::Backoff;
use super::connection::{self, End};
use super::keeper::{self, Current};
use super::session::{Limits, Session};
use super::{HelloSource, State, StatusSource, quic, tls};
use crate::outbox;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use vidette_protocol::{ALPN, escape};

/// What a session is fed from, and where it says how it stands.
pub(super) struct Sources {
    pub(super) outbox: outbox::Handle,
    pub(super) status: StatusSource,
    pub(super) hello: HelloSource,
    pub(super) state: watch::Sender<State>,
    pub(super) stopping: watch::Receiver<bool>,
}

/// Connects until stop is said.
pub(super) async fn run(mut sources: Sources, state_folder: PathBuf) {
    let (publish, mut current) = watch::channel(Err(String::new()));
    keeper::look(&state_folder, &publish);
    let keeping = tokio::spawn(keeper::keep(state_folder, publish));
    let mut stopping = sources.stopping.clone();
    let mut session = Session::new(Limits::default(), Instant::now());
    let mut backoff = Backoff::default();
    while !*stopping.borrow() {
        let end = one_session(&mut sources, &mut session, &mut backoff, &mut current).await;
        note(&sources.state, &end);
        let wait = match end {
            End::Stopped => break,
            End::IdentityChanged => Duration::ZERO,
            End::NotJoined(_) => Duration::MAX,
            End::Goodbye(_) => backoff.pause(true, rand::random()),
            End::Failed(_) | End::Refused(..) => backoff.pause(false, rand::random()),
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => break,
            // A new certificate or a new collector: worth a try at once.
            _ = current.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    keeping.abort();
}

async fn one_session(
    sources: &mut Sources,
    session: &mut Session,
    backoff: &mut Backoff,
    current: &mut watch::Receiver<Current>,
) -> End {
    let known = current.borrow_and_update().clone();
    let credentials = match known {
        Ok(credentials) => credentials,
        Err(why) => return End::NotJoined(why),
    };
    let tls = match tls::session(&credentials, ALPN) {
        Ok(tls) => tls,
        Err(error) => return End::Failed(format!("{error:#}")),
    };
    let mut stopping = sources.stopping.clone();
    let link = tokio::select! {
        biased;
        _ = stopping.wait_for(|stop| *stop) => return End::Stopped,
        link = quic::dial(&credentials.collector, tls) => match link {
            Ok(link) => link,
            Err(error) => return End::Failed(format!("{error:#}")),
        },
    };
    connection::serve(link, &credentials, sources, session, backoff, current).await
}

/// Says how a session ended: in the log when it is news, else only for those who look for it.
fn note(state: &watch::Sender<State>, end: &End) {
    let next = match end {
        End::Stopped | End::IdentityChanged => State::Connecting { error: None },
        End::NotJoined(reason) => State::NotJoined { reason: reason.clone() },
        End::Goodbye(reason) | End::Failed(reason) => State::Connecting { error: Some(reason.clone()) },
        End::Refused(code, reason) => {
            State::Refused { code: *code, reason: escape::terminal(reason.as_bytes()) }
        }
    };
    let news = *state.borrow() != next;
    match &next {
        State::Connecting { error: Some(error) } if news => {
            tracing::warn!(
                error = escape::terminal(error.as_bytes()),
                "no session, connecting again; events are kept"
            );
        }
        State::Refused { code, reason } if news => {
            tracing::warn!(?code, reason, "the collector refuses this agent, trying again; events are kept");
        }
        // Said before, or by the keeper, or nothing to say.
        State::Connecting { .. }
        | State::Refused { .. }
        | State::NotJoined { .. }
        | State::Connected { .. } => {
            tracing::debug!(?end, "no session");
        }
    }
    state.send_replace(next);
}
