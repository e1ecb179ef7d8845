//! Several sinks at once: each at its own pace, each from its own cursor.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

// Its ids are asked for in other tests.
#[allow(dead_code)]
mod stored;

use std::path::Path;
use std::time::{Duration, Instant};
use stored::Events;
use vidette_collector::config::{Jsonl, Output, Sink, Syslog};
use vidette_collector::sinks::{Sinks, State, Status};
use vidette_collector::stop;
use vidette_protocol::id::Class;

const WAIT_MAX: Duration = Duration::from_secs(60);

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + WAIT_MAX;
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen within {WAIT_MAX:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn file(folder: &Path) -> Sink {
    let jsonl = Jsonl { path: folder.join("alerts.jsonl"), rotate_bytes: 1 << 30, keep_files: 1 };
    Sink { name: "file".into(), classes: vec![Class::Alert], output: Output::Jsonl(jsonl) }
}

fn lines(folder: &Path) -> usize {
    std::fs::read_to_string(folder.join("alerts.jsonl")).unwrap_or_default().lines().count()
}

fn status(sinks: &Sinks, name: &str, newest: u64) -> Status {
    sinks.overview().all(newest).into_iter().find(|status| status.name == name).unwrap()
}

#[test]
fn a_receiver_that_never_reads_delays_no_other_sink() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let slow = Sink {
        name: "slow".into(),
        classes: vec![Class::Alert],
        output: Output::Syslog(Syslog { address, facility: 16, tls: None }),
    };
    let events = Events::new(&folder.path().join("store"));
    let (stopper, stop) = stop::channel();
    let sinks =
        Sinks::start(&[slow, file(folder.path())], &folder.path().join("cursors"), &events.handle(), &stop)
            .unwrap();
    let (_never_read, _) = listener.accept().unwrap();
    for _ in 0..20 {
        events.append(1_000);
    }
    wait("the file", || lines(folder.path()) == 20_000);
    wait("no lag", || status(&sinks, "file", 20_000).lag_events == 0);
    let slow = status(&sinks, "slow", 20_000);
    assert!(slow.lag_events > 0 && slow.state == State::Running, "{slow:?}");
    stopper.stop();
    sinks.join();
}

#[test]
fn a_damaged_cursor_stops_its_sink_until_a_person_decides() {
    let folder = tempfile::tempdir().unwrap();
    let cursors = folder.path().join("cursors");
    let events = Events::new(&folder.path().join("store"));
    events.append(3);
    let run = |until: &dyn Fn(&Sinks)| {
        let (stopper, stop) = stop::channel();
        let sinks = Sinks::start(&[file(folder.path())], &cursors, &events.handle(), &stop).unwrap();
        until(&sinks);
        stopper.stop();
        sinks.join();
    };
    run(&|_| wait("three lines", || lines(folder.path()) == 3));
    std::fs::write(cursors.join("file"), "garbage").unwrap();
    run(&|sinks| {
        wait("an error", || status(sinks, "file", 3).last_error.is_some());
        let error = status(sinks, "file", 3).last_error.unwrap();
        assert!(error.contains("is damaged") && error.contains("delete it"), "{error}");
        assert_eq!(lines(folder.path()), 3, "nothing is sent again by itself");
        std::fs::remove_file(cursors.join("file")).unwrap();
        wait("everything again", || lines(folder.path()) == 6);
    });
}

#[test]
fn a_cursor_beyond_the_store_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let cursors = folder.path().join("cursors");
    for count in [5, 2] {
        let store = folder.path().join(format!("store-{count}"));
        let events = Events::new(&store);
        events.append(count);
        let (stopper, stop) = stop::channel();
        let sinks = Sinks::start(&[file(folder.path())], &cursors, &events.handle(), &stop).unwrap();
        if count == 5 {
            wait("five lines", || lines(folder.path()) == 5);
        } else {
            wait("an error", || status(&sinks, "file", 2).last_error.is_some());
            let error = status(&sinks, "file", 2).last_error.unwrap();
            assert!(error.contains("another store") && error.contains("delete"), "{error}");
        }
        stopper.stop();
        sinks.join();
    }
}
