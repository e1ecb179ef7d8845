//! Messages of the contract with everything in them, for the targets that decode messages.

use super::bytes::{name, one_of};
use super::inside::some_bytes;
use crate::hostile_agent::packing::stored;
use prost::Message as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use vidette_protocol::wire::{self, event::Kind, to_agent, to_collector};

/// Any event.
pub fn event(random: &mut StdRng) -> wire::Event {
    let kind = match random.random_range(0..7) {
        0 => None,
        1 => Some(Kind::Detection(detection(random))),
        2 => Some(Kind::File(wire::FileEvent {
            action: random.random_range(0..8),
            file: Some(file(random)),
            process: Some(process(random)),
            old_path: some_bytes(random, 8),
            verdict: random.random_range(0..8),
            rules_version: name(random),
            detail: name(random),
            folder: random.random(),
        })),
        3 => Some(Kind::Process(wire::ProcessEvent {
            action: random.random_range(0..5),
            process: Some(process(random)),
            image: Some(file(random)),
            exit_code: Some(random.random()),
            verdict: random.random_range(0..8),
        })),
        4 => Some(Kind::Gap(wire::Gap {
            reason: random.random_range(0..14),
            count: Some(random.random()),
            from_unix_ns: random.random(),
            to_unix_ns: random.random(),
            class: random.random_range(0..4),
            first_seq: random.random(),
            last_seq: random.random(),
            detail: name(random),
        })),
        5 => Some(Kind::Health(health(random))),
        _ => Some(Kind::Audit(wire::Audit {
            action: name(random),
            outcome: one_of(random, &["success", "failure", "other"]).into(),
            detail: name(random),
            process: random.random_bool(0.5).then(|| process(random)),
        })),
    };
    wire::Event {
        time_unix_ns: one_of(random, &[0, 1, -1, i64::MIN, i64::MAX, 1_800_000_000_000_000_000]),
        uptime_ns: random.random(),
        host_name: some_bytes(random, 6),
        boot_id: name(random),
        severity: random.random_range(-1..7),
        kind,
    }
}

fn detection(random: &mut StdRng) -> wire::Detection {
    let region = wire::MemoryRegion {
        start: random.random(),
        end: random.random(),
        permissions: "rw-p".into(),
        name: some_bytes(random, 5),
    };
    wire::Detection {
        trigger: random.random_range(0..9),
        verdict: random.random_range(0..8),
        file: Some(file(random)),
        process: Some(process(random)),
        rules: (0..random.random_range(0..4)).map(|_| rule(random)).collect(),
        rules_version: name(random),
        detail: name(random),
        scan_us: random.random(),
        memory: random.random::<bool>().then_some(region),
    }
}

fn rule(random: &mut StdRng) -> wire::RuleMatch {
    let pattern = |random: &mut StdRng| wire::PatternMatch {
        identifier: name(random),
        offset: random.random(),
        length: random.random(),
        data: some_bytes(random, 6),
    };
    wire::RuleMatch {
        name: name(random),
        namespace: name(random),
        id: name(random),
        description: name(random),
        severity: random.random_range(0..6),
        author: name(random),
        reference: name(random),
        techniques: (0..random.random_range(0..3)).map(|_| "T1059".to_owned()).collect(),
        tags: (0..random.random_range(0..3)).map(|_| name(random)).collect(),
        patterns: (0..random.random_range(0..3)).map(|_| pattern(random)).collect(),
    }
}

fn file(random: &mut StdRng) -> wire::File {
    wire::File {
        path: some_bytes(random, 8),
        device: random.random(),
        inode: random.random(),
        size: random.random(),
        mode: random.random(),
        mtime_unix_ns: random.random(),
        ctime_unix_ns: random.random(),
        blake3: vec![1; 32],
        sha256: some_bytes(random, 5),
        deleted: random.random(),
        ..Default::default()
    }
}

fn process(random: &mut StdRng) -> wire::Process {
    let args = |random: &mut StdRng| (0..random.random_range(0..5)).map(|_| some_bytes(random, 5)).collect();
    let ancestor = |random: &mut StdRng| wire::Ancestor {
        entity_id: name(random),
        pid: random.random(),
        executable: some_bytes(random, 6),
        name: some_bytes(random, 4),
    };
    wire::Process {
        entity_id: name(random),
        pid: random.random(),
        start_ns: random.random(),
        executable: some_bytes(random, 7),
        args: args(random),
        name: some_bytes(random, 4),
        working_directory: some_bytes(random, 6),
        uid: Some(random.random()),
        user_name: some_bytes(random, 4),
        parent: Some(wire::ParentProcess { args: args(random), pid: 1, ..Default::default() }),
        source: random.random_range(0..6),
        cgroup: some_bytes(random, 6),
        container_id: name(random),
        ancestors: (0..random.random_range(0..4)).map(|_| ancestor(random)).collect(),
        ..Default::default()
    }
}

fn health(random: &mut StdRng) -> wire::Health {
    wire::Health { component: name(random), state: random.random_range(0..5), message: name(random) }
}

/// What an agent says: a hello, a status, a request for a certificate or a batch.
pub fn to_collector(random: &mut StdRng, epoch: u64, first_seq: u64) -> wire::ToCollector {
    let message = match random.random_range(0..6) {
        0 => to_collector::Message::Hello(hello(random, epoch)),
        1 if random.random_bool(0.3) => to_collector::Message::Renew(wire::Renew {
            csr_der: name(random).into_bytes(),
            kept: random.random(),
        }),
        1 if random.random_range(0..3) == 0 => to_collector::Message::RootsKept(wire::RootsKept {
            digests: (0..random.random_range(1..5)).map(|_| vec![random.random(); 32]).collect(),
            host_mark: vec![random.random(); 32],
        }),
        1 => to_collector::Message::Status(status(random)),
        _ => to_collector::Message::Batch(batch(random, epoch, first_seq)),
    };
    wire::ToCollector { message: Some(message) }
}

/// A hello.
pub fn hello(random: &mut StdRng, epoch: u64) -> wire::Hello {
    let class = |random: &mut StdRng| wire::ClassState { class: 1, first_unacked: random.random(), last: 9 };
    wire::Hello {
        protocol: random.random_range(0..3),
        agent_version: name(random),
        boot_id: name(random),
        epoch,
        level: random.random_range(0..5),
        rules_version: name(random),
        classes: (0..random.random_range(0..3)).map(|_| class(random)).collect(),
        host_name: some_bytes(random, 6),
        os: name(random),
        roots: (0..random.random_range(0..5)).map(|_| vec![random.random(); 32]).collect(),
    }
}

fn status(random: &mut StdRng) -> wire::Status {
    let counter = |random: &mut StdRng| wire::Counter { name: name(random), value: random.random() };
    wire::Status {
        time_unix_ns: random.random(),
        rules_version: name(random),
        outbox_events: random.random(),
        counters: (0..random.random_range(0..4)).map(|_| counter(random)).collect(),
        health: (0..random.random_range(0..4)).map(|_| health(random)).collect(),
        ..Default::default()
    }
}

/// A batch, compressed as ours are, or so that a changed byte is one of an event.
pub fn batch(random: &mut StdRng, epoch: u64, first_seq: u64) -> wire::Batch {
    let events: Vec<Vec<u8>> =
        (0..random.random_range(1..4)).map(|_| event(random).encode_to_vec()).collect();
    let count = u32::try_from(events.len()).unwrap_or(0);
    let list = wire::EventList { events }.encode_to_vec();
    wire::Batch {
        class: random.random_range(0..4),
        epoch,
        first_seq,
        skipped: random.random_range(0..3),
        count,
        events_bytes: u32::try_from(list.len()).unwrap_or(u32::MAX),
        events: stored(&list),
    }
}

/// What the collector says.
pub fn to_agent(random: &mut StdRng) -> wire::ToAgent {
    let (class, epoch) = (random.random_range(0..4), random.random());
    let message = match random.random_range(0..7) {
        5 => to_agent::Message::Renewed(wire::Joined { agent_id: name(random), ..Default::default() }),
        6 => to_agent::Message::RenewRefused(wire::JoinRefused {
            code: random.random_range(0..12),
            reason: name(random),
        }),
        0 => to_agent::Message::Welcome(wire::Welcome {
            protocol: 1,
            collector_version: name(random),
            classes: vec![wire::Durable { class, seq: random.random() }],
            ..Default::default()
        }),
        1 => to_agent::Message::Ack(wire::Ack { class, epoch, seq: random.random() }),
        2 => to_agent::Message::Nack(wire::Nack { class, epoch, expected: random.random() }),
        3 => to_agent::Message::Reject(wire::Reject {
            class,
            epoch,
            reason: name(random),
            ..Default::default()
        }),
        _ => {
            to_agent::Message::Refuse(wire::Refuse { code: random.random_range(0..8), reason: name(random) })
        }
    };
    wire::ToAgent { message: Some(message) }
}
