//! Detections in a real store, without agents.

use prost::Message;
use std::cell::Cell;
use std::path::Path;
use vidette_collector::ingest::session::{Arrival, Received};
use vidette_collector::store::{self, Committed, Handle, Store};
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire;

pub(crate) struct Events {
    store: Store,
    runtime: tokio::runtime::Runtime,
    last: Cell<u64>,
}

impl Events {
    pub(crate) fn new(folder: &Path) -> Self {
        let store = store::open(store::Config { folder: folder.to_owned(), retention_days: None }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Self { store, runtime, last: Cell::new(0) }
    }
    /// To read, follow and append.
    pub(crate) fn handle(&self) -> Handle {
        self.store.handle()
    }
    pub(crate) fn id(&self, seq: u64) -> String {
        EventId { agent: AgentId([5; 16]), epoch: 1, class: Class::Alert, seq }.to_string()
    }
    /// So many detections on `web-1`, severity high, numbered on; they are committed when this returns.
    pub(crate) fn append(&self, count: u64) {
        let event = detection();
        let events =
            (0..count).map(|_| Received { event: event.clone(), body: event.encode_to_vec() }).collect();
        let first_seq = self.last.get() + 1;
        let arrival =
            Arrival { agent: AgentId([5; 16]), epoch: 1, class: Class::Alert, first_seq, skipped: 0, events };
        let committed = self.runtime.block_on(self.store.handle().commit(arrival)).unwrap();
        self.last.set(self.last.get() + count);
        assert_eq!(committed, Committed::Durable(self.last.get()));
    }
}

/// A path with everything that could break a line, a table, a terminal or a parser.
pub(crate) const EVIL: &[u8] = b"/tmp/a\nb\xff\"]\\ \x1b[2J\t<14>1 - - - - - -";

fn detection() -> wire::Event {
    let rules = vec![wire::RuleMatch { name: "EICAR".into(), ..Default::default() }];
    let file = wire::File { path: EVIL.to_vec(), ..Default::default() };
    let detection = wire::Detection {
        verdict: wire::Verdict::Matched as i32,
        file: Some(file),
        rules,
        ..Default::default()
    };
    wire::Event {
        time_unix_ns: 1_700_000_000_000_000_000,
        host_name: b"web-1".to_vec(),
        severity: wire::Severity::High as i32,
        kind: Some(wire::event::Kind::Detection(detection)),
        ..Default::default()
    }
}
