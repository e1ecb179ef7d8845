//! Connects, and connects again: the loop around one session after another.
//!
//! Never gives up (D5): whatever goes wrong is said in `State` and in the log, and tried again after a wait with
//! jitter; at once after the collector said goodbye. Events stay in the outbox meanwhile.

use super::backoff::Backoff;
use super::connection::{self, End};
use super::keeper::{self, Current, Keeper, Renewals, WORDS_MAX, Word};
use super::live::Live;
use super::session::{Limits, Session};
use super::tls::OutOfTime;
use super::{HelloSource, State, StatusSource, quic, roots, tls};
use crate::outbox;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use vidette_protocol::wire::RefuseCode;
use vidette_protocol::{ALPN, escape};

/// What a session is fed from, and where it says how it stands.
pub(super) struct Sources {
    pub(super) outbox: outbox::Handle,
    pub(super) status: StatusSource,
    pub(super) hello: HelloSource,
    pub(super) state: watch::Sender<State>,
    /// Why somebody should look at a clock; `None` when all is well.
    pub(super) clock: watch::Sender<Option<String>>,
    /// The session that takes renewals.
    pub(super) live: watch::Sender<Option<Live>>,
    /// To the keeper of the identity.
    pub(super) words: mpsc::Sender<Word>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) roots: roots::Keeping,
}

/// What the keeper of the identity is started with.
pub(super) struct Keeping {
    pub(super) state_folder: PathBuf,
    pub(super) words: mpsc::Receiver<Word>,
    pub(super) renewals: watch::Sender<Renewals>,
}

/// The keeper's queue.
pub(super) fn words() -> (mpsc::Sender<Word>, mpsc::Receiver<Word>) {
    mpsc::channel(WORDS_MAX)
}

/// Connects until stop is said.
pub(super) async fn run(mut sources: Sources, keeping: Keeping) {
    let (publish, mut current) = watch::channel(Err(String::new()));
    let Keeping { state_folder, words, renewals } = keeping;
    keeper::look(&state_folder, &publish);
    let live = sources.live.subscribe();
    let roots = sources.roots.clone();
    let keeper = Keeper { state: state_folder, current: publish, words, live, renewals, roots };
    let keeping = tokio::spawn(keeper.keep());
    let mut stopping = sources.stopping.clone();
    let mut session = Session::new(Limits::default(), Instant::now());
    let mut backoff = Backoff::default();
    while !*stopping.borrow() {
        let end = one_session(&mut sources, &mut session, &mut backoff, &mut current).await;
        note(&sources.state, &end);
        if let End::Refused(code, _) = &end {
            let word = if *code == RefuseCode::Expired { Word::Expired } else { Word::Look };
            // A full queue only means that the keeper has not looked yet.
            let _ = sources.words.try_send(word);
        }
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
    let out_of_time = OutOfTime::default();
    let tls = match tls::session(&credentials, ALPN, &out_of_time) {
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
    connection::serve((link, out_of_time), &credentials, sources, session, backoff, current).await
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
            tracing::warn!(
                code = super::word(*code),
                reason,
                "the collector refuses this agent, trying again; events are kept"
            );
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
