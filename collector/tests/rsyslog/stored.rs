//! Detections in a real store, without agents.

use prost::Message;
use std::path::Path;
use vidette_collector::store::{self, Handle, Store};
use vidette_protocol::id::{AgentId, Class, EventId};
use vidette_protocol::wire;

pub(crate) struct Events {
    store: Store,
}

impl Events {
    pub(crate) fn new(folder: &Path) -> Self {
        let store = store::open(store::Config { folder: folder.to_owned(), retention_days: None }).unwrap();
        Self { store }
    }
    pub(crate) fn handle(&self) -> Handle {
        self.store.handle()
    }
    pub(crate) fn id(&self, seq: u64) -> String {
        EventId { agent: AgentId([5; 16]), epoch: 1, class: Class::Alert, seq }.to_string()
    }
    pub(crate) fn append(&self, count: u64) {
        for _ in 0..count {
            self.store.handle().stub_append(Class::Alert, detection());
        }
    }
}

fn detection() -> Vec<u8> {
    let file = wire::File { path: b"/tmp/a\nb\xff\"]\\ \x1b[2J".to_vec(), ..Default::default() };
    let detection =
        wire::Detection { verdict: wire::Verdict::Matched as i32, file: Some(file), ..Default::default() };
    let event = wire::Event {
        time_unix_ns: 1_700_000_000_000_000_000,
        host_name: b"web-1".to_vec(),
        severity: wire::Severity::High as i32,
        kind: Some(wire::event::Kind::Detection(detection)),
        ..Default::default()
    };
    event.encode_to_vec()
}
