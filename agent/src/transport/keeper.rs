//! Keeps the identity: waits for it while the host has not joined, renews it at half its life, and notices when
//! `vidette-agent join --again` has put another in its place.
//!
//! Publishes what is on disk; `runner` connects with it. Assumes a tokio runtime. Nothing here ends: a missing
//! or damaged identity is said, and looked for again (L1).

use super::credentials::Credentials;
use super::enrol;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// How often the folder is looked at while the host has not joined. Seconds.
const LOOK_JOINING_S: u64 = 2;
/// How often it is looked at later. Seconds.
const LOOK_JOINED_S: u64 = 30;
/// The first wait after a renewal that failed. Seconds.
const RETRY_S: u64 = 60;
/// The longest wait between two tries. Seconds.
const RETRY_S_MAX: u64 = 1800;

const _: () = assert!(LOOK_JOINED_S <= RETRY_S && RETRY_S <= RETRY_S_MAX);

/// The identity, or why there is none.
pub(super) type Current = Result<Arc<Credentials>, String>;

/// Runs for ever; drop it to stop.
pub(super) async fn keep(state: PathBuf, current: watch::Sender<Current>) {
    let mut renewal = Renewal::new();
    loop {
        match look(&state, &current) {
            None => tokio::time::sleep(Duration::from_secs(LOOK_JOINING_S)).await,
            Some(credentials) => {
                if renewal.is_due(&credentials, unix_s_now(), Instant::now()) {
                    renew(&credentials, &state, &current, &mut renewal).await;
                }
                tokio::time::sleep(Duration::from_secs(LOOK_JOINED_S)).await;
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

async fn renew(
    old: &Arc<Credentials>,
    state: &Path,
    current: &watch::Sender<Current>,
    renewal: &mut Renewal,
) {
    match enrol::renew(old, state).await {
        Ok(new) => {
            tracing::info!(expires_unix_s = new.expires_unix_s, "renewed this host's certificate");
            let _before = current.send_replace(Ok(Arc::new(new)));
        }
        Err(error) => {
            let wait_s = renewal.failed(Instant::now()).as_secs();
            let left_s = old.expires_unix_s - unix_s_now();
            tracing::warn!(error = %format!("{error:#}"), left_s, wait_s, "could not renew this host's certificate");
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
}

impl Renewal {
    fn new() -> Self {
        Self {
            certificate_ends_unix_s: i64::MIN,
            chance: 0.0,
            wait: Duration::from_secs(RETRY_S),
            not_before: None,
        }
    }

    fn is_due(&mut self, credentials: &Credentials, now_unix_s: i64, now: Instant) -> bool {
        if self.certificate_ends_unix_s != credentials.expires_unix_s {
            *self = Self::new();
            self.certificate_ends_unix_s = credentials.expires_unix_s;
            self.chance = rand::random();
        }
        let at_unix_s =
            enrol::renew_at_unix_s(credentials.starts_unix_s, credentials.expires_unix_s, self.chance);
        now_unix_s >= at_unix_s && self.not_before.is_none_or(|not_before| now >= not_before)
    }

    fn failed(&mut self, now: Instant) -> Duration {
        let wait = self.wait;
        self.not_before = Some(now + wait);
        self.wait = (wait * 2).min(Duration::from_secs(RETRY_S_MAX));
        wait
    }
}

fn unix_s_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
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
