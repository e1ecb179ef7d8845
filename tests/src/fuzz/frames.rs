//! The target `frames`: a stream of bytes as an agent may send it, cut anywhere, through the decoder of frames, the
//! unpacking of batches and the collector's half of a session.
//!
//! The first byte says how the stream is cut. Promises: how it is cut changes nothing; what is decoded encodes and decodes
//! to itself; a batch that unpacks is within its limits; what a session gives to the store follows what it gave before.

use super::inside::{Judged, ensure, error_mark, log_mark, observe};
use super::messages;
use super::{Observed, Target};
use rand::Rng as _;
use rand::rngs::StdRng;
use std::time::Instant;
use vidette_collector::ingest::session::{Committed, Input, Output, Session, Stream, WAITING_BYTES_MAX};
use vidette_protocol::frame::{self, Decoder};
use vidette_protocol::id::{AgentId, Class};
use vidette_protocol::limits::{
    BATCH_EVENTS_MAX, BATCH_MEMORY_BYTES_MAX, BATCH_UNPACKED_BYTES_MAX, EVENT_BYTES_MAX, FRAME_BYTES_MAX,
    SEQ_MAX, TEXT_BYTES_MAX,
};
use vidette_protocol::wire::{ToCollector, to_collector};
use vidette_protocol::{batch, bounds, check};

/// The outbox that the session is opened for.
const EPOCH: u64 = 7;
/// One in so many batches is packed again.
const PACKED_AGAIN_EACH: usize = 16;
/// Frames of one input that reach the session.
const FRAMES_MAX: usize = 64;

/// Lengths, headers of frames, of batches and of zstd.
const WORDS: &[&[u8]] = &[
    b"\x00\x00\x00\x00",
    b"\x00\x00\x00\x01",
    b"\x00\x10\x10\x00",
    b"\x00\x10\x10\x01",
    b"\xff\xff\xff\xff",
    b"\x0a\x00",
    b"\x12\x00",
    b"\x1a\x00",
    b"\x28\xb5\x2f\xfd\x00\x70",
    b"\x03\x00\x10\x0a",
    b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x20\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x28\xff\xff\xff\xff\x0f",
    b"\x52\x00",
    b"\x2a\x00\x2a\x00\x2a\x00\x2a\x00",
];

/// The decoder of frames and what follows it.
#[derive(Debug, Default)]
pub struct Frames;

impl Target for Frames {
    fn name(&self) -> &'static str {
        "frames"
    }

    fn batch(&self) -> usize {
        256
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        let mut bytes = vec![random.random()];
        let mut first_seq = 1;
        for _ in 0..random.random_range(1..5) {
            let message = messages::to_collector(random, EPOCH, first_seq);
            if let Some(to_collector::Message::Batch(batch)) = &message.message {
                first_seq += u64::from(batch.count);
            }
            bytes.extend(frame::encode(&message));
        }
        bytes
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        Ok(inputs.iter().map(|input| observe(|| judge(input))).collect())
    }
}

type Decoded = (Vec<ToCollector>, Option<String>);

fn judge(input: &[u8]) -> Judged {
    let (step, stream) = input.split_first().unwrap_or((&0, &[]));
    let whole = decode(stream, stream.len().max(1));
    let cut = decode(stream, usize::from(*step) % 61 + 1);
    ensure(whole == cut, "how a stream is cut changes what is read")?;
    let (messages, error) = whole;
    let mut marks: Vec<String> = error.iter().map(|error| error_mark(error)).collect();
    marks.push(log_mark("messages", messages.len()));
    for message in &messages {
        let again = decode(&frame::encode(message), usize::MAX);
        ensure(again == (vec![message.clone()], None), "a message that was read is not read again")?;
        if let Some(to_collector::Message::Batch(packed)) = &message.message {
            marks.push(unpack(packed)?);
        }
    }
    marks.extend(converse(messages)?);
    Ok(marks)
}

fn decode(stream: &[u8], step: usize) -> Decoded {
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    let mut messages = Vec::new();
    for piece in stream.chunks(step.max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next_within::<ToCollector>(&bounds::TO_COLLECTOR) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    (messages, None)
}

fn unpack(packed: &vidette_protocol::wire::Batch) -> Result<String, String> {
    let events = match batch::unpack(packed) {
        Err(error) => return Ok(error_mark(&error)),
        Ok(events) => events,
    };
    let bytes: usize = events.iter().map(Vec::len).sum();
    ensure(
        events.len() == packed.count as usize && events.len() <= BATCH_EVENTS_MAX,
        "another number of events",
    )?;
    ensure(bytes <= BATCH_UNPACKED_BYTES_MAX, "a batch is over its limit")?;
    ensure(
        packed.first_seq > 0 && packed.first_seq + events.len() as u64 <= SEQ_MAX,
        "numbers over the end",
    )?;
    let class = Class::from_wire(packed.class).ok_or("a batch of no class was unpacked")?;
    // Some alone: compressing costs more than all the rest.
    if !bytes.is_multiple_of(PACKED_AGAIN_EACH) {
        return Ok(log_mark("unpacked", bytes));
    }
    match batch::pack(class, packed.epoch, packed.first_seq, packed.skipped, events.clone()) {
        Ok(again) => ensure(batch::unpack(&again) == Ok(events), "a batch packed again is another one")?,
        // Random bytes of an entry's length may need more room than they had.
        Err(error) => return Ok(error_mark(&error)),
    }
    Ok(log_mark("unpacked", bytes))
}

/// Everything that was read, said to a session of an agent. The store takes all it gets.
fn converse(messages: Vec<ToCollector>) -> Result<Vec<String>, String> {
    let (agent, now) = (AgentId([3; 16]), Instant::now());
    let mut session = Session::new(agent, now);
    let mut marks = Vec::new();
    let mut next = [1_u64; 2];
    let greeting = vidette_protocol::wire::Hello { protocol: 1, epoch: EPOCH, ..Default::default() };
    let hello = ToCollector { message: Some(to_collector::Message::Hello(greeting)) };
    let mut inputs = vec![Input::Frame(Stream::Control, hello)];
    for message in messages.into_iter().take(FRAMES_MAX) {
        let stream = match &message.message {
            Some(to_collector::Message::Batch(batch)) => {
                Stream::Class(Class::from_wire(batch.class).unwrap_or(Class::Alert))
            }
            Some(
                to_collector::Message::Hello(_)
                | to_collector::Message::Status(_)
                | to_collector::Message::Renew(_)
                | to_collector::Message::RootsKept(_),
            )
            | None => Stream::Control,
        };
        inputs.push(Input::Frame(stream, message));
    }
    inputs.reverse();
    while let Some(input) = inputs.pop() {
        for output in session.handle(input, now) {
            match output {
                Output::Load { epoch } => {
                    inputs.push(Input::Loaded { epoch, durable: Vec::new(), time_unix_ns: 0 });
                }
                Output::Commit(arrival) => {
                    let place = &mut next[usize::from(arrival.class == Class::Telemetry)];
                    let start = arrival.first_seq - arrival.skipped;
                    let last = arrival.first_seq + arrival.events.len() as u64 - 1;
                    ensure(arrival.agent == agent && arrival.epoch == EPOCH, "events of somebody else")?;
                    ensure(start <= *place && last < SEQ_MAX, "events that do not follow")?;
                    for event in &arrival.events {
                        ensure(event.body.len() <= EVENT_BYTES_MAX, "an event over its limit")?;
                        ensure(check::event(&event.event).is_ok(), "an event over a limit of its fields")?;
                        ensure(
                            Class::of(&event.event).is_none_or(|class| class == arrival.class),
                            "a class",
                        )?;
                    }
                    *place = (*place).max(last + 1);
                    marks.push(log_mark("committed", arrival.events.len()));
                    inputs.push(Input::Committed {
                        class: arrival.class,
                        result: Ok(Committed::Durable(*place - 1)),
                    });
                }
                Output::Send { message, .. } => {
                    let bytes = prost::Message::encoded_len(&message);
                    ensure(bytes <= 2 * TEXT_BYTES_MAX, "a long answer")?;
                }
                Output::Refuse { reason, .. } => {
                    ensure(reason.len() <= TEXT_BYTES_MAX, "a long reason")?;
                    marks.push(error_mark(&reason));
                }
                Output::Renew(_) => {
                    marks.push("renew".into());
                    inputs.push(Input::Renewed(Ok(vidette_protocol::wire::Joined::default())));
                }
                Output::Seen(_) => marks.push("seen".into()),
            }
        }
        let most = 2 * (WAITING_BYTES_MAX + BATCH_MEMORY_BYTES_MAX);
        ensure(session.waiting_bytes() <= most, "too much waits for its commit")?;
    }
    Ok(marks)
}
