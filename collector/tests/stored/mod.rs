//! Detections in a real store, without agents.

use prost::Message;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use vidette_collector::store::{self, Arrival, Arrived, Handle, Store};
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire;

pub(crate) struct Events {
    store: Store,
    next: AtomicU64,
}

impl Events {
    pub(crate) fn new(folder: &Path) -> Self {
        let store = store::open(store::Config { folder: folder.to_owned(), retention_days: None }).unwrap();
        Self { store, next: AtomicU64::new(1) }
    }
    /// To read, follow and append.
    pub(crate) fn handle(&self) -> Handle {
        self.store.handle()
    }
    pub(crate) fn id(&self, seq: u64) -> String {
        EventId { agent: AgentId([5; 16]), epoch: 1, class: Class::Alert, seq }.to_string()
    }
    /// Detections on `web-1`, severity high.
    pub(crate) fn append(&self, count: u64) {
        self.append_all((0..count).map(|_| detection()).collect());
    }

    /// Alerts of one agent, numbered on.
    pub(crate) fn append_all(&self, bodies: Vec<Vec<u8>>) {
        let first_seq = self.next.fetch_add(bodies.len() as u64, Ordering::SeqCst);
        let events = bodies
            .into_iter()
            .map(|body| {
                let event = wire::Event::decode(body.as_slice()).unwrap();
                Arrived::new(body, &event)
            })
            .collect();
        let arrival =
            Arrival { agent: AgentId([5; 16]), epoch: 1, class: Class::Alert, first_seq, skipped: 0, events };
        let handle = self.store.handle();
        // A thread of its own: the caller may be inside a runtime already.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(handle.commit(arrival)).unwrap()
        })
        .join()
        .unwrap();
    }
}

/// A path with everything that could break a line, a table, a terminal or a parser.
pub(crate) const EVIL: &[u8] = b"/tmp/a\nb\xff\"]\\ \x1b[2J\t<14>1 - - - - - -";

fn detection() -> Vec<u8> {
    let rules = vec![wire::RuleMatch { name: "EICAR".into(), ..Default::default() }];
    let file = wire::File { path: EVIL.to_vec(), ..Default::default() };
    let detection = wire::Detection {
        verdict: wire::Verdict::Matched as i32,
        file: Some(file),
        rules,
        ..Default::default()
    };
    let event = wire::Event {
        time_unix_ns: 1_700_000_000_000_000_000,
        host_name: b"web-1".to_vec(),
        severity: wire::Severity::High as i32,
        kind: Some(wire::event::Kind::Detection(detection)),
        ..Default::default()
    };
    event.encode_to_vec()
}
