//! An event as JSON with the field names of the Elastic Common Schema (8.17); what it lacks is under
//! `vidette.*`. The one form in which events are shown and sent everywhere: sinks, `--json`, `watch`.
//!
//! What is not known is absent: no nulls, no empty texts. Names are bytes: a name that is UTF-8 is carried
//! exactly; another one has U+FFFD for what is not UTF-8, and its exact bytes in `vidette.<field>_base64`.
//! Fields made of other fields (`file.name`, `process.command_line`, …) have no such twin.

/// Which process, which file.
mod actors;
/// Which rules matched.
mod matches;
/// One line for people.
mod summary;
/// Names for the numbers on the wire.
pub mod words;

pub use summary::human;

use crate::escape;
use crate::id::{Class, EventId};
use crate::wire::{self, event::Kind};
use data_encoding::BASE64;
use serde_json::{Map, Value};
use std::io;

/// The version of the schema whose names are used.
pub const ECS_VERSION: &str = "8.17.0";

/// What is known of an event beside its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Its name; `None` where there is no collector: `scan` and `watch`.
    pub id: Option<EventId>,
    /// When the collector committed it, Unix nanoseconds.
    pub received_unix_ns: Option<i64>,
    /// The collector's disk has changed it: there is no content.
    pub damaged: bool,
}

impl Origin {
    /// Of an event that was never at a collector.
    pub const NONE: Self = Self { id: None, received_unix_ns: None, damaged: false };
}

/// The event as a JSON object with dotted ECS field names (`"file.path": …`).
#[must_use]
pub fn record(origin: Origin, event: &wire::Event) -> Map<String, Value> {
    let mut record = Record(Map::new());
    record.put("@timestamp", rfc3339(event.time_unix_ns));
    if origin.damaged {
        record.put("message", "its content was damaged on the collector's disk");
    } else {
        record.text("message", &summary::sentence(event));
    }
    put_event_fields(&mut record, origin, event);
    if let Some(id) = origin.id {
        record.put("agent.id", id.agent.to_string());
        record.put("vidette.epoch", format!("{:016x}", id.epoch));
    }
    record.put("agent.type", "vidette");
    record.put("ecs.version", ECS_VERSION);
    record.name("host.name", &event.host_name);
    record.text("host.boot.id", &event.boot_id);
    if let Some(class) = origin.id.map(|id| id.class).or_else(|| Class::of(event)) {
        record.put("vidette.class", class.name());
    }
    record.put("vidette.severity", words::severity(event.severity));
    if origin.damaged {
        record.put("vidette.damaged", true);
    }
    if event.uptime_ns != 0 {
        record.put("vidette.uptime_ns", event.uptime_ns);
    }
    put_kind(&mut record, event);
    record.0
}

/// One line, without the newline, of pure ASCII without control bytes.
#[must_use]
pub fn line(record: &Map<String, Value>) -> String {
    use serde::Serialize;
    let mut bytes = Vec::with_capacity(1024);
    // Writing a map with text keys to memory can't fail.
    let _ = record.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Ascii));
    String::from_utf8(bytes).unwrap_or_default()
}

/// Unix nanoseconds as RFC 3339, UTC, with nanoseconds. Any number is a valid moment (years 1677 to 2262).
#[must_use]
pub fn rfc3339(unix_ns: i64) -> String {
    let moment = jiff::Timestamp::from_nanosecond(i128::from(unix_ns)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{moment:.9}")
}

/// Writes what [`escape::json`] makes of texts and keys; the rest of JSON is ASCII already.
struct Ascii;

impl serde_json::ser::Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        writer.write_all(escape::json(fragment).as_bytes())
    }
}

/// A record in the making, that leaves out what is empty.
struct Record(Map<String, Value>);

impl Record {
    fn put(&mut self, field: &str, value: impl Into<Value>) {
        self.0.insert(field.to_owned(), value.into());
    }

    fn text(&mut self, field: &str, text: &str) {
        if !text.is_empty() {
            self.put(field, text);
        }
    }

    /// A name as it came from the system, and its exact bytes where the text can't be exact.
    fn name(&mut self, field: &str, name: &[u8]) {
        let text = String::from_utf8_lossy(name);
        self.text(field, &text);
        if text.as_bytes() != name {
            self.put(&exact(field), BASE64.encode(name));
        }
    }

    fn names(&mut self, field: &str, names: &[Vec<u8>]) {
        if names.is_empty() {
            return;
        }
        self.put(field, names.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>());
        if names.iter().any(|name| std::str::from_utf8(name).is_err()) {
            self.put(&exact(field), names.iter().map(|name| BASE64.encode(name)).collect::<Vec<_>>());
        }
    }

    fn list(&mut self, field: &str, list: &[&str]) {
        if !list.is_empty() {
            self.put(field, list.to_vec());
        }
    }
}

/// `file.path` -> `vidette.file.path_base64`; what is ours already keeps its place.
fn exact(field: &str) -> String {
    format!("vidette.{}_base64", field.strip_prefix("vidette.").unwrap_or(field))
}

fn put_event_fields(record: &mut Record, origin: Origin, event: &wire::Event) {
    let facts = words::facts(event);
    if let Some(id) = origin.id {
        record.put("event.id", id.to_string());
        record.put("event.sequence", id.seq);
    }
    record.put("event.kind", facts.kind);
    record.list("event.category", facts.category);
    record.list("event.type", facts.types);
    record.text("event.action", facts.action);
    record.text("event.outcome", facts.outcome);
    record.put("event.severity", event.severity);
    record.text("event.reason", reason(event));
    record.put("event.module", "vidette");
    record.put("event.dataset", format!("vidette.{}", facts.dataset));
    if let Some(received) = origin.received_unix_ns {
        record.put("event.ingested", rfc3339(received));
    }
}

/// Why: whatever text the event brings of its own.
fn reason(event: &wire::Event) -> &str {
    match &event.kind {
        Some(Kind::Detection(detection)) => &detection.detail,
        Some(Kind::File(file)) => &file.detail,
        Some(Kind::Gap(gap)) => &gap.detail,
        Some(Kind::Health(health)) => &health.message,
        Some(Kind::Audit(audit)) => &audit.detail,
        Some(Kind::Process(_)) | None => "",
    }
}

fn put_kind(record: &mut Record, event: &wire::Event) {
    match &event.kind {
        None => {}
        Some(Kind::Detection(detection)) => put_detection(record, detection),
        Some(Kind::File(file)) => put_file_event(record, file),
        Some(Kind::Process(process)) => put_process_event(record, process),
        Some(Kind::Gap(gap)) => put_gap(record, gap),
        Some(Kind::Health(health)) => {
            record.text("vidette.health.component", &health.component);
            record.put("vidette.health.state", words::health_state(health.state));
        }
        Some(Kind::Audit(audit)) => {
            record.text("vidette.audit.action", &audit.action);
            record.text("vidette.audit.outcome", &audit.outcome);
            audit.process.iter().for_each(|process| actors::put_process(record, process, "done_by"));
        }
    }
}

fn put_detection(record: &mut Record, detection: &wire::Detection) {
    record.put("vidette.verdict", words::verdict(detection.verdict));
    record.put("vidette.trigger", words::trigger(detection.trigger));
    record.text("vidette.rules_version", &detection.rules_version);
    record.put("vidette.scan_us", detection.scan_us);
    detection.file.iter().for_each(|file| actors::put_file(record, file));
    detection
        .process
        .iter()
        .for_each(|process| actors::put_process(record, process, words::detection_role(detection)));
    matches::put_rules(record, &detection.rules);
    detection.memory.iter().for_each(|region| put_memory(record, region, &detection.rules));
}

/// Addresses as text: beyond 2^53 not every reader of JSON has the exact number.
fn put_memory(record: &mut Record, region: &wire::MemoryRegion, rules: &[wire::RuleMatch]) {
    let hex = |address: u64| format!("0x{address:x}");
    record.put("vidette.memory.start", hex(region.start));
    record.put("vidette.memory.end", hex(region.end));
    record.text("vidette.memory.permissions", &region.permissions);
    record.name("vidette.memory.name", &region.name);
    if let Some(first) = rules.iter().flat_map(|rule| &rule.patterns).next() {
        record.put("vidette.memory.address", hex(first.offset));
    }
}

fn put_file_event(record: &mut Record, event: &wire::FileEvent) {
    event.file.iter().for_each(|file| actors::put_file(record, file));
    if event.folder {
        record.put("file.type", "dir");
    }
    record.name("vidette.file.old_path", &event.old_path);
    event
        .process
        .iter()
        .for_each(|process| actors::put_process(record, process, words::file_role(event.action)));
    record.put("vidette.verdict", words::verdict(event.verdict));
    record.text("vidette.rules_version", &event.rules_version);
}

fn put_process_event(record: &mut Record, event: &wire::ProcessEvent) {
    event.process.iter().for_each(|process| actors::put_process(record, process, ""));
    event.image.iter().for_each(|image| actors::put_file(record, image));
    if let Some(status) = event.exit_code {
        actors::put_exit(record, status);
    }
    record.put("vidette.verdict", words::verdict(event.verdict));
}

fn put_gap(record: &mut Record, gap: &wire::Gap) {
    record.put("vidette.gap.reason", words::gap_reason(gap.reason));
    if let Some(count) = gap.count {
        record.put("vidette.gap.count", count);
    }
    if gap.from_unix_ns != 0 || gap.to_unix_ns != 0 {
        record.put("vidette.gap.from", rfc3339(gap.from_unix_ns));
        record.put("vidette.gap.to", rfc3339(gap.to_unix_ns));
    }
    if let Some(class) = Class::from_wire(gap.class) {
        record.put("vidette.gap.class", class.name());
    }
    if gap.last_seq != 0 {
        record.put("vidette.gap.first_seq", gap.first_seq);
        record.put("vidette.gap.last_seq", gap.last_seq);
    }
}

#[cfg(test)]
mod tests;
