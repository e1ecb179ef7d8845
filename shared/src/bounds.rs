//! How long the lists of an encoded message are, counted before it is decoded: an entry that is empty takes two bytes on
//! the wire and a hundred times that in memory, so that limits which are checked afterwards come too late.
//!
//! Pure. Walks the wire format (protobuf.dev, "Encoding") along a table of the fields that repeat. What it lets through is
//! decoded by `prost` and then goes to `check`. Its errors end a connection or refuse an event.

use crate::limits::{
    ANCESTORS_MAX, ARGS_MAX, BATCH_EVENTS_MAX, LIST_MAX, PATTERNS_MAX, ROOTS_MAX, RULES_MAX,
};
use crate::wire;

/// Fields of one message that repeat, or hold something that does.
const FIELDS_MAX: usize = 4;

/// What repeats in a message. Everything that is not named here is passed over.
#[derive(Debug)]
pub struct Shape(&'static [Field]);

#[derive(Debug)]
struct Field {
    number: u64,
    name: &'static str,
    max: usize,
    /// One entry in memory, without what it points to. Bytes.
    entry_bytes: usize,
    inner: Shape,
}

/// Why a message is not decoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BoundsError {
    /// A list is over its limit, or a part that there is once comes again.
    #[error("{field} has more entries than {max}, which is the limit")]
    TooMany {
        /// Which.
        field: &'static str,
        /// What is allowed.
        max: usize,
    },
    /// It does not follow the wire format.
    #[error("it is no message: {0}")]
    Unreadable(&'static str),
}

impl Shape {
    /// A message in which nothing repeats.
    pub const NOTHING: Self = Self(&[]);
}

const fn list<T>(number: u64, name: &'static str, max: usize, inner: &'static [Field]) -> Field {
    Field { number, name, max, entry_bytes: size_of::<T>(), inner: Shape(inner) }
}

/// A part that there is once. Its memory is a part of what holds it.
const fn part(number: u64, name: &'static str, inner: &'static [Field]) -> Field {
    Field { number, name, max: 1, entry_bytes: 0, inner: Shape(inner) }
}

/// [`wire::ToCollector`].
pub const TO_COLLECTOR: Shape = Shape(&[
    part(
        1,
        "hello",
        &[
            list::<wire::ClassState>(7, "classes", LIST_MAX, &[]),
            list::<Vec<u8>>(14, "roots", ROOTS_MAX, &[]),
        ],
    ),
    part(
        3,
        "status",
        &[
            list::<wire::Counter>(9, "counters", LIST_MAX, &[]),
            list::<wire::Health>(10, "health", LIST_MAX, &[]),
        ],
    ),
    part(5, "roots_kept", &[list::<Vec<u8>>(1, "digests", ROOTS_MAX, &[])]),
]);
/// [`wire::EventList`].
pub const EVENT_LIST: Shape = Shape(&[list::<Vec<u8>>(1, "events", BATCH_EVENTS_MAX, &[])]);
/// [`wire::Event`].
pub const EVENT: Shape = Shape(&[
    part(
        10,
        "detection",
        &[part(4, "process", PROCESS), list::<wire::RuleMatch>(5, "rules", RULES_MAX, RULE)],
    ),
    part(11, "file", &[part(3, "process", PROCESS)]),
    part(12, "process", &[part(2, "process", PROCESS)]),
    part(15, "audit", &[part(4, "process", PROCESS)]),
]);

const PROCESS: &[Field] = &[
    list::<Vec<u8>>(5, "arguments", ARGS_MAX, &[]),
    part(11, "parent", &[list::<Vec<u8>>(4, "arguments", ARGS_MAX, &[])]),
    list::<wire::Ancestor>(18, "ancestors", ANCESTORS_MAX, &[]),
];
const RULE: &[Field] = &[
    list::<String>(8, "techniques", LIST_MAX, &[]),
    list::<String>(9, "tags", LIST_MAX, &[]),
    list::<wire::PatternMatch>(10, "patterns", PATTERNS_MAX, &[]),
];

/// Counts along `shape` and says what all entries together take in memory, beside the bytes themselves.
///
/// # Errors
/// [`BoundsError`] at the first list that is too long, or where the message ends to be one.
pub fn check(shape: &Shape, message: &[u8]) -> Result<usize, BoundsError> {
    let (mut rest, mut bytes) = (message, 0);
    let mut counts = [0_usize; FIELDS_MAX];
    while !rest.is_empty() {
        let (number, content) = field(&mut rest)?;
        let known = shape.0.iter().zip(&mut counts).find(|(field, _)| field.number == number);
        if let (Some((field, count)), Some(content)) = (known, content) {
            *count += 1;
            if *count > field.max {
                return Err(BoundsError::TooMany { field: field.name, max: field.max });
            }
            bytes += field.entry_bytes;
            if !field.inner.0.is_empty() {
                bytes += check(&field.inner, content)?;
            }
        }
    }
    Ok(bytes)
}

/// The next field: its number, and its content when it has a length.
fn field<'m>(rest: &mut &'m [u8]) -> Result<(u64, Option<&'m [u8]>), BoundsError> {
    let key = varint(rest)?;
    let content = match key & 7 {
        0 => {
            varint(rest)?;
            None
        }
        1 => skip(rest, 8).map(|_| None)?,
        2 => {
            let length = usize::try_from(varint(rest)?).unwrap_or(usize::MAX);
            Some(skip(rest, length)?)
        }
        5 => skip(rest, 4).map(|_| None)?,
        // Groups: proto3 has none, so no newer version sends one either.
        _ => return Err(BoundsError::Unreadable("a field of a type that is not in use")),
    };
    Ok((key >> 3, content))
}

fn skip<'m>(rest: &mut &'m [u8], length: usize) -> Result<&'m [u8], BoundsError> {
    let (content, after) =
        rest.split_at_checked(length).ok_or(BoundsError::Unreadable("a field runs over the end"))?;
    *rest = after;
    Ok(content)
}

/// Seven bits a byte, the lowest first; at most ten bytes.
fn varint(rest: &mut &[u8]) -> Result<u64, BoundsError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, after) = rest.split_first().ok_or(BoundsError::Unreadable("a number without an end"))?;
        *rest = after;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(BoundsError::Unreadable("a number of more than ten bytes"))
}

const fn is_small(fields: &[Field]) -> bool {
    let mut at = 0;
    while at < fields.len() {
        if !is_small(fields[at].inner.0) {
            return false;
        }
        at += 1;
    }
    fields.len() <= FIELDS_MAX
}

const _: () = assert!(is_small(EVENT.0) && is_small(TO_COLLECTOR.0) && is_small(EVENT_LIST.0));

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use prost::Message;
    use wire::event::Kind;

    fn detection(detection: wire::Detection) -> Vec<u8> {
        wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn a_hundred_thousand_empty_entries_are_refused_and_the_limit_is_not() {
        let with = |count| {
            detection(wire::Detection {
                rules: vec![wire::RuleMatch::default(); count],
                ..Default::default()
            })
        };
        assert_eq!(check(&EVENT, &with(RULES_MAX)), Ok(RULES_MAX * size_of::<wire::RuleMatch>()));
        for count in [RULES_MAX + 1, 100_000] {
            let error = Err(BoundsError::TooMany { field: "rules", max: RULES_MAX });
            assert_eq!(check(&EVENT, &with(count)), error);
        }
        let process = wire::Process { args: vec![Vec::new(); ARGS_MAX + 1], ..Default::default() };
        let error =
            check(&EVENT, &detection(wire::Detection { process: Some(process), ..Default::default() }));
        assert_eq!(error.unwrap_err().to_string(), "arguments has more entries than 256, which is the limit");
    }

    #[test]
    fn a_part_that_comes_again_is_refused_because_decoding_would_merge_it() {
        let process = wire::Process { args: vec![Vec::new(); ARGS_MAX], ..Default::default() };
        let file = wire::FileEvent { process: Some(process), ..Default::default() };
        let once = wire::Event { kind: Some(Kind::File(file)), ..Default::default() }.encode_to_vec();
        assert!(check(&EVENT, &once).is_ok());
        let twice = once.repeat(2);
        let merged = wire::Event::decode(twice.as_slice()).unwrap();
        assert!(
            matches!(merged.kind, Some(Kind::File(file)) if file.process.as_ref().unwrap().args.len() > ARGS_MAX)
        );
        assert_eq!(check(&EVENT, &twice), Err(BoundsError::TooMany { field: "file", max: 1 }));
    }

    #[test]
    fn what_is_no_message_is_refused_and_unknown_fields_are_passed_over() {
        for bad in [&b"\x0b\x0c"[..], b"\xff", b"\x52\x05a", b"\x09\x00", &[0x80; 11]] {
            assert!(matches!(check(&EVENT, bad), Err(BoundsError::Unreadable(_))), "{bad:?}");
        }
        assert_eq!(check(&EVENT, b"\xf8\x07\x01\xfa\x07\x02ab\xfd\x07\x00\x00\x00\x00"), Ok(0));
    }
}
