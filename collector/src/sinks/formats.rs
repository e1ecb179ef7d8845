//! Formats: an event as the bytes that a receiver reads. Pure; the outputs carry what is made here.
//!
//! Every byte made here is printable ASCII, whatever a host, file or rule is called: the JSON line is pure ASCII
//! by its own promise, ids are hex and digits, and the host name is cut down to RFC 5424's letters.

use crate::store::Stored;
use prost::Message;
pub use vidette_protocol::ecs::words::kind;
use vidette_protocol::ecs::{self, Origin, words};
use vidette_protocol::{escape, wire};

/// RFC 5612: the enterprise number reserved for documentation; no receiver takes it for a vendor's.
const SD_ID: &str = "vidette@32473";

/// An event ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Store id, for the cursor.
    pub id: u64,
    /// What goes out, with its framing.
    pub bytes: Vec<u8>,
}

/// The event inside. One that can't be decoded is shown empty, under its id: nothing stored is left out.
#[must_use]
pub fn decoded(stored: &Stored) -> wire::Event {
    // A damaged one has no body; the reader told of it.
    wire::Event::decode(stored.body.as_slice()).unwrap_or_else(|error| {
        tracing::warn!(event = %stored.event, %error, "a stored event can't be decoded; it is shown without content");
        wire::Event::default()
    })
}

/// What is known of a stored event beside its body.
#[must_use]
pub fn origin(stored: &Stored) -> Origin {
    Origin {
        id: Some(stored.event),
        received_unix_ns: Some(stored.received_unix_ns),
        damaged: stored.damaged,
    }
}

/// One line of JSON, with its newline.
#[must_use]
pub fn json_line(stored: &Stored) -> Record {
    let mut line = ecs::line(&ecs::record(origin(stored), &decoded(stored)));
    line.push('\n');
    Record { id: stored.id, bytes: line.into_bytes() }
}

/// One RFC 5424 message, framed by octet counting (RFC 6587 §3.4.1).
///
/// `<PRI>1 TIMESTAMP HOSTNAME vidette - KIND [vidette@32473 id="…" …] {JSON}`. The message is ASCII, so it
/// carries no byte order mark: RFC 5424 §6.4 leaves that to the sender (MSG-ANY).
#[must_use]
pub fn syslog(stored: &Stored, facility: u8) -> Record {
    let event = decoded(stored);
    let id = stored.event;
    let message = format!(
        "<{}>1 {} {} vidette - {} [{SD_ID} id=\"{id}\" agent=\"{}\" class=\"{}\" sequence=\"{}\" severity=\"{}\"] {}",
        u32::from(facility) * 8 + priority(event.severity()),
        timestamp(event.time_unix_ns),
        escape::syslog_hostname(&event.host_name),
        kind(&event),
        id.agent,
        id.class,
        id.seq,
        severity(event.severity()),
        ecs::line(&ecs::record(origin(stored), &event)),
    );
    Record { id: stored.id, bytes: format!("{} {message}", message.len()).into_bytes() }
}

/// Name of a severity, as in the filters.
#[must_use]
pub fn severity(severity: wire::Severity) -> &'static str {
    words::severity(severity.into())
}

/// RFC 5424 §6.2.1, table 2: critical 2, error 3, warning 4, notice 5, informational 6.
fn priority(severity: wire::Severity) -> u32 {
    match severity {
        wire::Severity::Critical => 2,
        wire::Severity::High => 3,
        wire::Severity::Medium => 4,
        wire::Severity::Low => 5,
        wire::Severity::Info | wire::Severity::Unspecified => 6,
    }
}

/// RFC 5424 §6.2.3: at most six digits of a second.
fn timestamp(unix_ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(unix_ns)) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => "-".into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use vidette_protocol::id::{AgentId, Class, EventId};
    use vidette_protocol::wire::event::Kind;

    /// A parser of RFC 5424 written from its ABNF (§6), independent of the code above.
    struct Parsed {
        priority: u32,
        header: Vec<String>,
        params: BTreeMap<String, String>,
        message: Vec<u8>,
    }

    /// RFC 6587 §3.4.1: every frame of a stream.
    fn frames(mut stream: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while !stream.is_empty() {
            let blank = stream.iter().position(|b| *b == b' ').unwrap();
            let digits = std::str::from_utf8(&stream[..blank]).unwrap();
            assert!(digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0'));
            let end = blank + 1 + digits.parse::<usize>().unwrap();
            frames.push(stream[blank + 1..end].to_vec());
            stream = &stream[end..];
        }
        frames
    }

    fn parse(frame: &[u8]) -> Parsed {
        let close = frame.iter().position(|b| *b == b'>').unwrap();
        assert_eq!(frame[0], b'<');
        let digits = std::str::from_utf8(&frame[1..close]).unwrap();
        assert!((1..=3).contains(&digits.len()) && (digits == "0" || !digits.starts_with('0')));
        let mut rest = &frame[close + 1..];
        let mut header = Vec::new();
        for limit in [3, 32, 255, 48, 128, 32] {
            let blank = rest.iter().position(|b| *b == b' ').unwrap();
            let field = &rest[..blank];
            assert!((1..=limit).contains(&field.len()) && field.iter().all(|b| (33..=126).contains(b)));
            header.push(String::from_utf8(field.to_vec()).unwrap());
            rest = &rest[blank + 1..];
        }
        let (params, rest) = element(rest);
        let message = rest.strip_prefix(b" ").unwrap().to_vec();
        Parsed { priority: digits.parse().unwrap(), header, params, message }
    }

    /// One SD-ELEMENT: names are PRINTUSASCII without `=`, `]`, `"`; in values `"`, `\`, `]` are escaped.
    fn element(bytes: &[u8]) -> (BTreeMap<String, String>, &[u8]) {
        let mut at = 1;
        assert_eq!(bytes[0], b'[');
        let name = |at: &mut usize| {
            let start = *at;
            while !b"= ]\"".contains(&bytes[*at]) {
                assert!((33..=126).contains(&bytes[*at]));
                *at += 1;
            }
            assert!((1..=32).contains(&(*at - start)));
            String::from_utf8(bytes[start..*at].to_vec()).unwrap()
        };
        assert_eq!(name(&mut at), "vidette@32473");
        let mut params = BTreeMap::new();
        while bytes[at] == b' ' {
            at += 1;
            let key = name(&mut at);
            assert_eq!(&bytes[at..at + 2], b"=\"");
            at += 2;
            let mut value = Vec::new();
            while bytes[at] != b'"' {
                assert_ne!(bytes[at], b']');
                at += usize::from(bytes[at] == b'\\');
                value.push(bytes[at]);
                at += 1;
            }
            at += 1;
            assert!(params.insert(key, String::from_utf8(value).unwrap()).is_none());
        }
        assert_eq!(bytes[at], b']');
        (params, &bytes[at + 1..])
    }

    fn stored(host: &[u8], path: &[u8], severity: wire::Severity) -> Stored {
        let file = wire::File { path: path.to_vec(), ..Default::default() };
        let detection = wire::Detection { file: Some(file), ..Default::default() };
        let event = wire::Event {
            time_unix_ns: 1_700_000_000_123_456_789,
            host_name: host.to_vec(),
            severity: severity as i32,
            kind: Some(Kind::Detection(detection)),
            ..Default::default()
        };
        let id = EventId { agent: AgentId([7; 16]), epoch: 9, class: Class::Alert, seq: 5 };
        Stored { id: 1, event: id, received_unix_ns: 1, body: event.encode_to_vec(), damaged: false }
    }

    fn hostile() -> Vec<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = [
            "",
            "web-1.example.org",
            "a b",
            "a\nb",
            "\u{1b}[2J",
            "\"]\\",
            "] <14>1 - - - - - -",
            "<script>",
            "$(id)",
            "=cmd|'x'!A0",
            "\u{202e}gpj.exe",
            "ünï",
            "\u{feff}",
            "\r\n",
            "\0",
            "12 <14>1 ",
            "-",
            "%n%s",
            "{\"a\":1}",
            "'; --",
        ]
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
        names.push(vec![0xff, 0xfe, 0x80]);
        names.push(vec![b'a'; 256]);
        names.extend((0..=255u8).map(|byte| vec![b'x', byte, b'y']));
        names
    }

    #[test]
    fn every_hostile_name_is_one_message_that_a_strict_parser_reads() {
        let names = hostile();
        let mut stream = Vec::new();
        for name in &names {
            stream.extend(syslog(&stored(name, name, wire::Severity::High), 16).bytes);
        }
        let frames = frames(&stream);
        assert_eq!(frames.len(), names.len());
        for (frame, name) in frames.iter().zip(&names) {
            assert!(frame.iter().all(|b| (32..=126).contains(b)), "{name:?}");
            let parsed = parse(frame);
            assert_eq!(parsed.priority, 16 * 8 + 3);
            let expected =
                ["1", "2023-11-14T22:13:20.123456Z", &parsed.header[2], "vidette", "-", "detection"];
            assert_eq!(parsed.header, expected);
            assert_eq!(parsed.params["id"], "07070707070707070707070707070707/0000000000000009/alert/5");
            assert_eq!(parsed.params["severity"], "high");
            let json: serde_json::Value = serde_json::from_slice(&parsed.message).unwrap();
            assert!(json.is_object());
        }
    }

    #[test]
    fn an_ordinary_host_name_stays_as_it_is() {
        let frame = syslog(&stored(b"web-1.example.org", b"/x", wire::Severity::Low), 4);
        let frame = frames(&frame.bytes).remove(0);
        assert_eq!(parse(&frame).header[2], "web-1.example.org");
        assert_eq!(parse(&frame).priority, 4 * 8 + 5);
    }

    #[test]
    fn every_hostile_name_is_one_json_line() {
        for name in hostile() {
            let line = json_line(&stored(&name, &name, wire::Severity::Info)).bytes;
            let (newline, text) = line.split_last().unwrap();
            assert_eq!(*newline, b'\n');
            assert!(text.iter().all(|b| (32..=126).contains(b)), "{name:?}");
            assert!(serde_json::from_slice::<serde_json::Value>(text).unwrap().is_object());
        }
    }

    #[test]
    fn an_event_that_cannot_be_decoded_keeps_its_id() {
        let broken = Stored { body: vec![0xff; 9], ..stored(b"h", b"/x", wire::Severity::Low) };
        let frame = frames(&syslog(&broken, 16).bytes).remove(0);
        assert_eq!(parse(&frame).params["sequence"], "5");
    }
}
