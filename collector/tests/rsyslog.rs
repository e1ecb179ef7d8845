//! A real rsyslog (Debian packages `rsyslog` and `rsyslog-gnutls`), run as `nobody` with a throwaway CA, receives
//! every event over TLS: once when nothing happens, at least once when it is restarted or killed in the middle.
//!
//! What is read is rsyslog's own parse of each message (its properties), not our bytes.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "rsyslog/receiver.rs"]
mod receiver;
mod stored;

use receiver::Receiver;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use stored::Events;
use vidette_collector::config::{Output, Sink, Syslog, Tls};
use vidette_collector::sinks::{Sinks, Status};
use vidette_collector::stop;
use vidette_protocol::id::Class;

const EVENTS: u64 = 1_000;
const WAIT_MAX: Duration = Duration::from_secs(90);

fn sink(receiver: &Receiver, is_tls: bool) -> Sink {
    let tls = is_tls.then(|| Tls { ca_file: receiver.ca_file(), server_name: "localhost".into() });
    let output = Output::Syslog(Syslog { address: receiver.address(), facility: 16, tls });
    Sink { name: "siem".into(), classes: vec![Class::Alert], output }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + WAIT_MAX;
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen within {WAIT_MAX:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn status(sinks: &Sinks) -> Status {
    sinks.overview().all(EVENTS).remove(0)
}

fn every_id(events: &Events) -> BTreeSet<String> {
    (1..=EVENTS).map(|seq| events.id(seq)).collect()
}

#[test]
fn a_thousand_events_arrive_over_tls_each_once() {
    arrive_each_once(true);
}

#[test]
fn a_thousand_events_arrive_over_tcp_each_once() {
    arrive_each_once(false);
}

fn arrive_each_once(is_tls: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::new(is_tls);
    receiver.start();
    let events = Events::new(&folder.path().join("store"));
    let (stopper, stop) = stop::channel();
    let sinks =
        Sinks::start(&[sink(&receiver, is_tls)], &folder.path().join("cursors"), &events.handle(), &stop)
            .unwrap();
    events.append(EVENTS);
    wait("receiving all", || receiver.received().len() as u64 >= EVENTS);
    stopper.stop();
    sinks.join();
    receiver.stop();
    let received = receiver.received();
    assert_eq!(received.len() as u64, EVENTS, "{}", receiver.log());
    let ids: BTreeSet<String> = received.iter().map(|message| message.id.clone()).collect();
    assert_eq!(ids, every_id(&events));
    for message in &received {
        assert_eq!(message.header, ["local0", "err", "web-1", "vidette", "detection"]);
        let json: serde_json::Value = serde_json::from_str(&message.json).unwrap();
        assert!(json.is_object());
    }
    let mut cursor = std::fs::read_to_string(folder.path().join("cursors/siem")).unwrap();
    cursor.truncate(cursor.find('\n').unwrap());
    assert!(cursor.contains(&format!("\"id\":{EVENTS}")), "an orderly end settles everything: {cursor}");
}

#[test]
fn a_restart_or_a_kill_of_the_receiver_loses_nothing() {
    for is_killed in [false, true] {
        println!("killed: {is_killed}");
        let folder = tempfile::tempdir().unwrap();
        let mut receiver = Receiver::new(true);
        receiver.start();
        let events = Events::new(&folder.path().join("store"));
        let (stopper, stop) = stop::channel();
        let sinks =
            Sinks::start(&[sink(&receiver, true)], &folder.path().join("cursors"), &events.handle(), &stop)
                .unwrap();
        for part in 0..10 {
            events.append(EVENTS / 10);
            match part {
                // What comes until the kill is acknowledged by its kernel and never read.
                2 if is_killed => receiver.pause(),
                3 if is_killed => receiver.kill(),
                3 => receiver.stop(),
                6 => receiver.start(),
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let ids = || receiver.received().into_iter().map(|message| message.id).collect::<BTreeSet<_>>();
        wait("receiving all ids", || ids() == every_id(&events));
        wait("settling", || status(&sinks).position == EVENTS);
        assert!(status(&sinks).last_error.is_some(), "the sink has noticed the restart");
        stopper.stop();
        sinks.join();
    }
}

#[test]
fn a_receiver_of_another_ca_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut receiver, other) = (Receiver::new(true), Receiver::new(true));
    receiver.start();
    let mut sink = sink(&receiver, true);
    if let Output::Syslog(Syslog { tls: Some(tls), .. }) = &mut sink.output {
        tls.ca_file = other.ca_file();
    }
    let events = Events::new(&folder.path().join("store"));
    events.append(5);
    let (stopper, stop) = stop::channel();
    let sinks = Sinks::start(&[sink], &folder.path().join("cursors"), &events.handle(), &stop).unwrap();
    wait("a refusal", || status(&sinks).last_error.is_some());
    let error = status(&sinks).last_error.unwrap();
    assert!(error.contains("could not agree on TLS"), "{error}");
    stopper.stop();
    sinks.join();
    assert!(receiver.received().is_empty());
}
