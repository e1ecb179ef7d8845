//! Keeps the identity: waits for it while the host has not joined, renews it at half its life, and notices when
//! `vidette-agent join --again` has put another in its place.
//!
//! Publishes what is on disk; `runner` connects with it. Assumes a tokio runtime. Nothing here ends: a missing
//! or damaged identity is said, and looked for again (L1). When a renewal is due is a matter of the collector's time alone:
//! before it was told, nothing is due but what the collector calls expired.

use super::clock::CollectorTime;
use super::credentials::Credentials;
use super::enrol;
use super::live::Live;
use super::roots::Keeping;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use vidette_protocol::escape;

/// How often the folder is looked at while the host has not joined. Seconds.
const LOOK_JOINING_S: u64 = 2;
/// How often it is looked at later. Seconds.
const LOOK_JOINED_S: u64 = 30;
/// The first wait after a renewal that failed. Seconds.
const RETRY_S: u64 = 60;
/// The longest wait between two tries. Seconds.
const RETRY_S_MAX: u64 = 1800;
/// Words that wait for the keeper. What comes to a full queue is dropped: it is about to look anyway.
pub(super) const WORDS_MAX: usize = 8;

const _: () = assert!(LOOK_JOINED_S <= RETRY_S && RETRY_S <= RETRY_S_MAX);

/// The identity, or why there is none.
pub(super) type Current = Result<Arc<Credentials>, String>;

/// What the keeper is told.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    /// Look at once: the collector has refused the identity, which may have been left or joined anew.
    Look,
    /// The collector says that the certificate has expired.
    Expired,
    /// The collector's time, Unix seconds, just now.
    Time(i64),
    /// Somebody wants a renewal now.
    RenewNow,
}

/// How renewing goes, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewals {
    /// That brought a new certificate.
    pub done: u64,
    /// That did not.
    pub failed: u64,
    /// Why the last one did not; empty when it did.
    pub error: String,
}

/// What the keeper hears, and where it says what it knows.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) state: PathBuf,
    pub(super) current: watch::Sender<Current>,
    pub(super) words: mpsc::Receiver<Word>,
    pub(super) live: watch::Receiver<Option<Live>>,
    pub(super) renewals: watch::Sender<Renewals>,
    pub(super) roots: Keeping,
}

impl Keeper {
    /// Runs for ever; drop it to stop.
    pub(super) async fn keep(mut self) {
        let (mut renewal, mut time) = (Renewal::new(), CollectorTime::default());
        let mut whose = None;
        loop {
            let wait_s = match look(&self.state, &self.current) {
                None => LOOK_JOINING_S,
                Some(credentials) => {
                    // What its older self could not do is no trouble of an agent that has joined anew.
                    if whose.replace(credentials.agent).is_some_and(|before| before != credentials.agent) {
                        self.renewals.send_modify(|renewals| renewals.error.clear());
                    }
                    let now = Instant::now();
                    let is_due = renewal.is_due(&credentials, time.unix_s(now), now);
                    if is_due || (self.roots.wants_renewal(&credentials) && renewal.may_try(now)) {
                        // The answer holds all roots: none that comes meanwhile may be written before and lost.
                        let _alone = self.roots.alone().await;
                        self.renew(&credentials, &mut renewal, &time).await;
                    }
                    LOOK_JOINED_S
                }
            };
            // An error is the end of the wait.
            if let Ok(word) = tokio::time::timeout(Duration::from_secs(wait_s), self.words.recv()).await {
                match word {
                    Some(Word::Look) => {}
                    Some(Word::Expired) => renewal.expired = true,
                    Some(Word::Time(unix_s)) => time.told(unix_s, Instant::now()),
                    Some(Word::RenewNow) => renewal.asked_for = true,
                    None => return, // nobody is there any more
                }
            }
        }
    }

    async fn renew(&self, old: &Arc<Credentials>, renewal: &mut Renewal, time: &CollectorTime) {
        let live = self.live.borrow().clone();
        let live = old.chain.first().and_then(|leaf| live.as_ref()?.for_certificate(leaf));
        let over_session = live.is_some();
        match enrol::renew(old, &self.state, live).await {
            Ok(new) => {
                tracing::info!(
                    expires_unix_s = new.expires_unix_s,
                    over_session,
                    "renewed this host's certificate"
                );
                let _before = self.current.send_replace(Ok(Arc::new(new)));
                self.renewals.send_modify(|renewals| {
                    renewals.done += 1;
                    renewals.error.clear();
                });
            }
            Err(error) => {
                let error = escape::terminal(format!("{error:#}").as_bytes());
                let wait_s = renewal.failed(Instant::now()).as_secs();
                let left_s = time.unix_s(Instant::now()).map(|now| old.expires_unix_s.saturating_sub(now));
                tracing::warn!(error, left_s, wait_s, "could not renew this host's certificate");
                self.renewals.send_modify(|renewals| {
                    renewals.failed += 1;
                    renewals.error = error;
                });
            }
        }
    }
}

/// Reads the folder and publishes what has changed.
pub(super) fn look(state: &Path, current: &watch::Sender<Current>) -> Option<Arc<Credentials>> {
    match Credentials::load(state) {
        Ok(found) => {
            if let Ok(known) = &*current.borrow()
                && known.chain == found.chain
                && known.collector == found.collector
                && known.roots == found.roots
            {
                return Some(known.clone());
            }
            let found = Arc::new(found);
            tracing::info!(agent = %found.agent, collector = %found.collector, "this host has an identity");
            let _before = current.send_replace(Ok(found.clone()));
            Some(found)
        }
        Err(error) => {
            let why = error.to_string();
            if !matches!(&*current.borrow(), Err(known) if *known == why) {
                tracing::warn!(why, "no collector, events are kept on this host until there is one");
                let _before = current.send_replace(Err(why));
            }
            None
        }
    }
}

/// When to renew. The chance is drawn once for each certificate, so that looking often does not make it earlier.
#[derive(Debug)]
struct Renewal {
    certificate_ends_unix_s: i64,
    chance: f64,
    wait: Duration,
    not_before: Option<Instant>,
    /// The collector called this certificate expired.
    expired: bool,
    /// Somebody wants it now.
    asked_for: bool,
}

impl Renewal {
    fn new() -> Self {
        Self {
            certificate_ends_unix_s: i64::MIN,
            chance: 0.0,
            wait: Duration::from_secs(RETRY_S),
            not_before: None,
            expired: false,
            asked_for: false,
        }
    }

    /// `collector_unix_s` is `None` before the collector said its time.
    fn is_due(&mut self, credentials: &Credentials, collector_unix_s: Option<i64>, now: Instant) -> bool {
        let (starts_unix_s, ends_unix_s) = (credentials.starts_unix_s, credentials.expires_unix_s);
        self.of(ends_unix_s);
        if std::mem::take(&mut self.asked_for) {
            return true;
        }
        let at_unix_s = enrol::renew_at_unix_s(starts_unix_s, ends_unix_s, self.chance);
        let is_time = self.expired || collector_unix_s.is_some_and(|unix_s| unix_s >= at_unix_s);
        is_time && self.may_try(now)
    }

    /// Of another certificate nothing that was noted holds any more.
    fn of(&mut self, certificate_ends_unix_s: i64) {
        if self.certificate_ends_unix_s != certificate_ends_unix_s {
            let (is_first, expired, asked_for) =
                (self.certificate_ends_unix_s == i64::MIN, self.expired, self.asked_for);
            *self = Self::new();
            self.certificate_ends_unix_s = certificate_ends_unix_s;
            self.chance = rand::random();
            self.asked_for = asked_for;
            self.expired = expired && is_first;
        }
    }

    /// The wait after a failure is over.
    fn may_try(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|not_before| now >= not_before)
    }

    fn failed(&mut self, now: Instant) -> Duration {
        let wait = self.wait;
        self.not_before = Some(now + wait);
        self.wait = (wait * 2).min(Duration::from_secs(RETRY_S_MAX));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_between_tries_grow_to_a_limit() {
        let mut renewal = Renewal::new();
        let now = Instant::now();
        let waits: Vec<u64> = (0..8).map(|_| renewal.failed(now).as_secs()).collect();
        assert_eq!(waits, [60, 120, 240, 480, 960, 1800, 1800, 1800]);
    }

    #[test]
    fn only_the_collectors_word_makes_a_renewal_due_and_failures_hold_it_back() {
        let (now, life_s) = (Instant::now(), 1_000);
        let due = |renewal: &mut Renewal, collector_unix_s: Option<i64>, now| {
            renewal.of(5_000 + life_s);
            let at = enrol::renew_at_unix_s(5_000, 5_000 + life_s, renewal.chance);
            assert!((5_400..=5_500).contains(&at), "{at}");
            let is_time = renewal.expired || collector_unix_s.is_some_and(|unix_s| unix_s >= at);
            is_time && renewal.not_before.is_none_or(|not_before| now >= not_before)
        };
        let mut renewal = Renewal::new();
        assert!(!due(&mut renewal, None, now), "nobody has said what time it is");
        assert!(!due(&mut renewal, Some(5_399), now) && due(&mut renewal, Some(5_500), now));
        let wait = renewal.failed(now);
        assert!(!due(&mut renewal, Some(5_500), now) && due(&mut renewal, Some(5_500), now + wait));
        let mut renewal = Renewal::new();
        renewal.expired = true;
        assert!(due(&mut renewal, None, now), "it is what the collector calls expired");
        renewal.of(9_999);
        assert!(!renewal.expired, "which is another certificate now");
    }

    #[tokio::test]
    async fn what_changes_on_disk_is_published_once() {
        let Ok(state) = tempfile::tempdir() else { panic!("no temporary folder") };
        let (sender, mut receiver) = watch::channel(Err(String::new()));
        assert!(look(state.path(), &sender).is_none());
        assert!(receiver.has_changed().is_ok_and(|changed| changed));
        assert!(receiver.borrow_and_update().as_ref().is_err_and(|why| why.contains("not joined")));
        assert!(look(state.path(), &sender).is_none());
        assert!(receiver.has_changed().is_ok_and(|changed| !changed));
        assert!(std::fs::create_dir(state.path().join("identity")).is_ok());
        assert!(look(state.path(), &sender).is_none());
        assert!(receiver.borrow_and_update().as_ref().is_err_and(|why| why.contains("can't be used")));
    }
}
