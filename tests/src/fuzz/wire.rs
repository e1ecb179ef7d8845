//! The target `wire`: bytes as each message of the contract. The first byte says which.
//!
//! Promises: what is counted before decoding bounds what decoding takes; what is decoded encodes and decodes to itself; an
//! event that passes its check is within every limit, is cut by nobody, and every form in which it is shown is in order; an
//! event that does not pass is cut to one that does.

use super::inside::{Judged, ensure, error_mark, log_mark, observe};
use super::messages;
use super::{Observed, Target};
use prost::Message;
use rand::Rng as _;
use rand::rngs::StdRng;
use vidette_agent::outbox::cut;
use vidette_protocol::bounds::{self, Shape};
use vidette_protocol::limits::{
    ANCESTORS_MAX, ARGS_BYTES_MAX, ARGS_MAX, BATCH_EVENTS_MAX, EVENT_BYTES_MAX, LIST_MAX, PATTERNS_MAX,
    ROOTS_MAX, RULES_MAX,
};
use vidette_protocol::wire::{self, event::Kind, to_collector};
use vidette_protocol::{check, ecs};

/// Tags, lengths without an end, groups, numbers of eleven bytes, entries of nothing.
const WORDS: &[&[u8]] = &[
    b"\x52\x00",
    b"\x5a\x00",
    b"\x62\x00",
    b"\x2a\x00",
    b"\x2a\x00\x2a\x00\x2a\x00\x2a\x00\x2a\x00\x2a\x00\x2a\x00\x2a\x00",
    b"\x42\x00\x4a\x00\x52\x00",
    b"\x92\x01\x00",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0b\x0c",
    b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\xff\xfe",
    b"\x1b[2J",
    b"\xe2\x80\xae",
];

/// Every message.
#[derive(Debug, Default)]
pub struct Wire;

impl Target for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }

    fn batch(&self) -> usize {
        256
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        // Events most of all: they have the most in them.
        let which = random.random_range(0..12_u8);
        let message = match which {
            1 => messages::to_collector(random, 7, 1).encode_to_vec(),
            2 => messages::to_agent(random).encode_to_vec(),
            3 => super::join::request(random).encode_to_vec(),
            4 => answer(random).encode_to_vec(),
            5 => {
                let events = (0..random.random_range(0..4)).map(|_| messages::event(random).encode_to_vec());
                wire::EventList { events: events.collect() }.encode_to_vec()
            }
            _ => messages::event(random).encode_to_vec(),
        };
        [vec![which], message].concat()
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        Ok(inputs.iter().map(|input| observe(|| judge(input))).collect())
    }
}

fn answer(random: &mut StdRng) -> wire::JoinAnswer {
    let joined = wire::Joined {
        agent_id: "0f".repeat(16),
        certificates_der: vec![vec![random.random(); 40]; random.random_range(0..3)],
        roots_der: vec![vec![1; 9]],
        expires_unix_s: random.random(),
        replaces: vec!["a0".repeat(16); random.random_range(0..3)],
        repeated: random.random(),
    };
    wire::JoinAnswer { message: Some(wire::join_answer::Message::Joined(joined)) }
}

fn judge(input: &[u8]) -> Judged {
    let (which, bytes) = input.split_first().unwrap_or((&0, &[]));
    match which {
        1 => decode::<wire::ToCollector>(bytes, &bounds::TO_COLLECTOR, said),
        2 => decode::<wire::ToAgent>(bytes, &Shape::NOTHING, |_| Ok(Vec::new())),
        3 => decode::<wire::JoinRequest>(bytes, &Shape::NOTHING, |_| Ok(Vec::new())),
        4 => decode::<wire::JoinAnswer>(bytes, &Shape::NOTHING, |_| Ok(Vec::new())),
        5 => decode::<wire::EventList>(bytes, &bounds::EVENT_LIST, |list| {
            ensure(list.events.len() <= BATCH_EVENTS_MAX, "a list is over its limit")?;
            Ok(vec![log_mark("events", list.events.len())])
        }),
        _ => decode::<wire::Event>(bytes, &bounds::EVENT, event),
    }
}

/// Counts, decodes, encodes, decodes.
fn decode<M: Message + Default + PartialEq + Clone>(
    bytes: &[u8],
    shape: &Shape,
    look: impl FnOnce(&M) -> Judged,
) -> Judged {
    if let Err(error) = bounds::check(shape, bytes) {
        return Ok(vec![error_mark(&error)]);
    }
    let message = match M::decode(bytes) {
        Err(error) => return Ok(vec![error_mark(&error)]),
        Ok(message) => message,
    };
    let encoded = message.encode_to_vec();
    let again = M::decode(encoded.as_slice()).map_err(|_| "a message that was read is not read again")?;
    ensure(again == message && again.encode_to_vec() == encoded, "a message is not itself after encoding")?;
    ensure(
        bounds::check(shape, &encoded).is_ok(),
        "a message that was counted is over its lists after encoding",
    )?;
    look(&message)
}

fn said(message: &wire::ToCollector) -> Judged {
    Ok(match &message.message {
        Some(to_collector::Message::Hello(hello)) => {
            ensure(hello.classes.len() <= LIST_MAX, "a hello is over its limit")?;
            vec![log_mark("classes", hello.classes.len())]
        }
        Some(to_collector::Message::Status(status)) => {
            ensure(
                status.counters.len() <= LIST_MAX && status.health.len() <= LIST_MAX,
                "a status is over it",
            )?;
            vec![log_mark("counters", status.counters.len()), log_mark("health", status.health.len())]
        }
        Some(to_collector::Message::RootsKept(kept)) => {
            ensure(kept.digests.len() <= ROOTS_MAX, "more digests than there may be")?;
            vec![log_mark("digests", kept.digests.len())]
        }
        Some(to_collector::Message::Batch(_)) => vec!["batch".into()],
        Some(to_collector::Message::Renew(_)) => vec!["renew".into()],
        None => vec!["nothing".into()],
    })
}

fn event(event: &wire::Event) -> Judged {
    let mut marks = vec![log_mark("lists", lists(event)?), format!("{}", ecs::words::kind(event))];
    shown(event)?;
    let passes = check::event(event);
    let mut cut_down = event.clone();
    let was_cut = check::cut(&mut cut_down);
    ensure(check::event(&cut_down).is_ok(), "an event that was cut is over a limit")?;
    ensure(cut_down.encoded_len() <= EVENT_BYTES_MAX, "an event that was cut is too large")?;
    match passes {
        Ok(()) => {
            let small = event.encoded_len() <= EVENT_BYTES_MAX;
            ensure(was_cut != small || !small, "an event within its limits was cut")?;
            marks.push("within".into());
        }
        Err(error) => {
            ensure(was_cut, "an event over a limit was not cut")?;
            marks.push(error_mark(&error));
        }
    }
    if let Ok(bytes) = cut::encode(event.clone(), EVENT_BYTES_MAX) {
        ensure(bytes.len() <= EVENT_BYTES_MAX, "the agent's own cut is too large")?;
        ensure(bounds::check(&bounds::EVENT, &bytes).is_ok(), "the collector would refuse an honest event")?;
        let honest = wire::Event::decode(bytes.as_slice()).map_err(|_| "an honest event is not read")?;
        ensure(check::event(&honest).is_ok(), "the collector would refuse an honest event")?;
    }
    Ok(marks)
}

/// How many entries all lists have; each is within the limit that was counted.
fn lists(event: &wire::Event) -> Result<usize, String> {
    let process = match &event.kind {
        Some(Kind::Detection(detection)) => detection.process.as_ref(),
        Some(Kind::File(file)) => file.process.as_ref(),
        Some(Kind::Process(process)) => process.process.as_ref(),
        Some(Kind::Gap(_) | Kind::Health(_) | Kind::Audit(_)) | None => None,
    };
    let mut entries = 0;
    if let Some(process) = process {
        let parents = process.parent.as_ref().map_or(0, |parent| parent.args.len());
        ensure(process.args.len() <= ARGS_MAX && parents <= ARGS_MAX, "arguments beyond what was counted")?;
        ensure(process.ancestors.len() <= ANCESTORS_MAX, "ancestors beyond what was counted")?;
        entries += process.args.len() + parents + process.ancestors.len();
    }
    if let Some(Kind::Detection(detection)) = &event.kind {
        ensure(detection.rules.len() <= RULES_MAX, "rules beyond what was counted")?;
        for rule in &detection.rules {
            ensure(rule.tags.len() <= LIST_MAX && rule.techniques.len() <= LIST_MAX, "tags beyond that")?;
            ensure(rule.patterns.len() <= PATTERNS_MAX, "patterns beyond what was counted")?;
            entries += 1 + rule.tags.len() + rule.techniques.len() + rule.patterns.len();
        }
    }
    Ok(entries)
}

/// Every form for people and programs.
fn shown(event: &wire::Event) -> Result<(), String> {
    let human = ecs::human(event);
    ensure(!human.chars().any(char::is_control), "a control character is shown on a terminal")?;
    let record = ecs::record(ecs::Origin::NONE, event);
    let line = ecs::line(&record);
    let read: serde_json::Value = serde_json::from_str(&line).map_err(|_| "a record is no JSON")?;
    ensure(read == serde_json::Value::Object(record), "a record is another one after it was read")?;
    // Every byte may need six as JSON, and base64 beside it; fields that are made of others repeat them.
    let most = 32 * (event.encoded_len() + ARGS_BYTES_MAX);
    ensure(line.len() <= most, "a record is far larger than its event")
}
