//! The sign that systemd waits for comes as long as the data path goes on, and stops when one stage of it hangs.

use super::unjoined;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};
use vidette_tests::frozen::Frozen;
use vidette_tests::programs::wait_for;

/// What systemd is said to wait for. Microseconds.
const WATCHDOG_USEC: u64 = 8_000_000;
/// Without a sign for so long a stage counts as noticed: half of the watchdog's time.
const QUIET: Duration = Duration::from_micros(WATCHDOG_USEC / 2);

/// What the agent tells systemd.
struct Manager(UnixDatagram);

impl Manager {
    fn next(&self, time: Duration) -> Option<String> {
        self.0.set_read_timeout(Some(time)).unwrap();
        let mut bytes = [0; 4096];
        self.0.recv(&mut bytes).ok().map(|length| String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// Until something with these words is told.
    fn hears(&self, words: &str) -> String {
        let mut all = Vec::new();
        wait_for(words, || {
            let said = self.next(Duration::from_millis(100));
            all.extend(said.clone());
            Ok(said.filter(|said| said.contains(words)))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {all:?}"))
    }
}

#[test]
fn a_stage_that_hangs_stops_the_sign_and_one_without_work_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    for stage in ["detection", "sensors", "transport", "outbox"] {
        let mut agent = unjoined(folder.path(), stage);
        agent.environment = vec![
            ("NOTIFY_SOCKET".into(), path.display().to_string()),
            ("WATCHDOG_USEC".into(), WATCHDOG_USEC.to_string()),
        ];
        agent.start().unwrap();
        manager.hears("READY=1");
        manager.hears("WATCHDOG=1");
        let frozen = Frozen::new(agent.program.as_ref().unwrap().pid(), stage).unwrap();
        let watched = folder.path().join(stage).join("watched");
        let work = || fs::write(watched.join("x"), vidette_tests::samples::web_shell()).unwrap();
        work();
        manager.hears(&format!("STATUS=the stage `{stage}` does not go on"));
        let since = Instant::now();
        while since.elapsed() < QUIET {
            work();
            let said = manager.next(Duration::from_millis(500));
            assert!(!said.as_ref().is_some_and(|said| said.contains("WATCHDOG=1")), "{stage}: {said:?}");
        }
        frozen.thaw();
        manager.hears("WATCHDOG=1");
        drop(frozen);
        assert!(agent.program.take().unwrap().stop().unwrap().success());
        manager.hears("STOPPING=1");
    }
}
