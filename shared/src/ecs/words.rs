//! Names for the numbers on the wire, as they stand in JSON, on terminals and in filters. A number that this
//! version does not know is `unknown`, never an error: a newer agent may have sent it.

use crate::wire::{self, event::Kind};

const UNKNOWN: &str = "unknown";

/// `info`, `low`, `medium`, `high`, `critical`.
#[must_use]
pub fn severity(number: i32) -> &'static str {
    match wire::Severity::try_from(number) {
        Ok(wire::Severity::Info) => "info",
        Ok(wire::Severity::Low) => "low",
        Ok(wire::Severity::Medium) => "medium",
        Ok(wire::Severity::High) => "high",
        Ok(wire::Severity::Critical) => "critical",
        Ok(wire::Severity::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// The severity of a word that [`severity`] gives; `None` for any other.
#[must_use]
pub fn severity_of(word: &str) -> Option<wire::Severity> {
    use wire::Severity::{Critical, High, Info, Low, Medium};
    [Info, Low, Medium, High, Critical].into_iter().find(|level| severity(*level as i32) == word)
}

/// `clean`, `matched`, `too_large`, `timed_out`, `failed`, `not_scanned`.
#[must_use]
pub fn verdict(number: i32) -> &'static str {
    match wire::Verdict::try_from(number) {
        Ok(wire::Verdict::Clean) => "clean",
        Ok(wire::Verdict::Matched) => "matched",
        Ok(wire::Verdict::TooLarge) => "too_large",
        Ok(wire::Verdict::TimedOut) => "timed_out",
        Ok(wire::Verdict::Failed) => "failed",
        Ok(wire::Verdict::NotScanned) => "not_scanned",
        Ok(wire::Verdict::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// `close_write`, `exec`, `rename`, `link`, `sweep`, `request`, `attributes`.
#[must_use]
pub fn trigger(number: i32) -> &'static str {
    match wire::Trigger::try_from(number) {
        Ok(wire::Trigger::CloseWrite) => "close_write",
        Ok(wire::Trigger::Exec) => "exec",
        Ok(wire::Trigger::Rename) => "rename",
        Ok(wire::Trigger::Link) => "link",
        Ok(wire::Trigger::Sweep) => "sweep",
        Ok(wire::Trigger::Request) => "request",
        Ok(wire::Trigger::Attributes) => "attributes",
        Ok(wire::Trigger::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// What the process of a detection did to the file. `closed_by`, not `written_by`: it is the last one that
/// closed it, others may have written. Empty where nobody did anything.
#[must_use]
pub fn role(number: i32) -> &'static str {
    match wire::Trigger::try_from(number) {
        Ok(wire::Trigger::CloseWrite) => "closed_by",
        Ok(wire::Trigger::Exec) => "run_as",
        Ok(wire::Trigger::Rename) => "renamed_by",
        Ok(wire::Trigger::Link) => "linked_by",
        Ok(wire::Trigger::Attributes) => "changed_by",
        Ok(wire::Trigger::Sweep | wire::Trigger::Request | wire::Trigger::Unspecified) | Err(_) => "",
    }
}

/// The same for a whole detection: in memory the process did nothing to a file.
#[must_use]
pub fn detection_role(detection: &wire::Detection) -> &'static str {
    if detection.memory.is_some() { "" } else { role(detection.trigger) }
}

/// The same for a file event.
#[must_use]
pub fn file_role(number: i32) -> &'static str {
    match wire::FileAction::try_from(number) {
        Ok(wire::FileAction::Written) => "closed_by",
        Ok(wire::FileAction::Renamed) => "renamed_by",
        Ok(wire::FileAction::Linked) => "linked_by",
        Ok(wire::FileAction::Deleted) => "deleted_by",
        Ok(wire::FileAction::Attributes) => "changed_by",
        Ok(wire::FileAction::Created) => "created_by",
        Ok(wire::FileAction::Unspecified) | Err(_) => "",
    }
}

/// Where an attribution comes from: `kernel`, `join`, `proc`, `inventory`, `none`.
#[must_use]
pub fn source(number: i32) -> &'static str {
    match wire::Source::try_from(number) {
        Ok(wire::Source::None) => "none",
        Ok(wire::Source::Kernel) => "kernel",
        Ok(wire::Source::Join) => "join",
        Ok(wire::Source::Proc) => "proc",
        Ok(wire::Source::Inventory) => "inventory",
        Err(_) => UNKNOWN,
    }
}

/// Why something was lost: `kernel_queue`, `descriptors`, `outbox_bound`, ….
#[must_use]
pub fn gap_reason(number: i32) -> &'static str {
    use wire::GapReason as Reason;
    match Reason::try_from(number) {
        Ok(Reason::KernelQueue) => "kernel_queue",
        Ok(Reason::Descriptors) => "descriptors",
        Ok(Reason::ProcessConnector) => "process_connector",
        Ok(Reason::DetectionQueue) => "detection_queue",
        Ok(Reason::OutboxBound) => "outbox_bound",
        Ok(Reason::Poison) => "poison",
        Ok(Reason::OutboxDamaged) => "outbox_damaged",
        Ok(Reason::SensorDown) => "sensor_down",
        Ok(Reason::WatchLimit) => "watch_limit",
        Ok(Reason::PortableQueue) => "portable_queue",
        Ok(Reason::StoreRestored) => "store_restored",
        Ok(Reason::Mount) => "mount",
        Ok(Reason::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// `ok`, `degraded`, `failed`.
#[must_use]
pub fn health_state(number: i32) -> &'static str {
    match wire::HealthState::try_from(number) {
        Ok(wire::HealthState::Ok) => "ok",
        Ok(wire::HealthState::Degraded) => "degraded",
        Ok(wire::HealthState::Failed) => "failed",
        Ok(wire::HealthState::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// The kind of an event: `detection`, `file`, `process`, `gap`, `health`, `audit`.
#[must_use]
pub fn kind(event: &wire::Event) -> &'static str {
    match &event.kind {
        Some(Kind::Detection(_)) => "detection",
        Some(Kind::File(_)) => "file",
        Some(Kind::Process(_)) => "process",
        Some(Kind::Gap(_)) => "gap",
        Some(Kind::Health(_)) => "health",
        Some(Kind::Audit(_)) => "audit",
        None => UNKNOWN,
    }
}

/// The `event.*` categorization of an event. Values are those that ECS allows for each field
/// (ECS, "Categorization Fields"); an empty one is left out.
pub(super) struct Facts<'a> {
    pub(super) dataset: &'static str,
    pub(super) kind: &'static str,
    pub(super) category: &'static [&'static str],
    pub(super) types: &'static [&'static str],
    pub(super) action: &'a str,
    pub(super) outcome: &'static str,
}

pub(super) fn facts(event: &wire::Event) -> Facts<'_> {
    let (kind_, category, types, action, outcome): (_, &[_], &[_], _, _) = match &event.kind {
        None => ("event", &[], &[], "", ""),
        Some(Kind::Detection(detection)) => detection_facts(detection),
        Some(Kind::File(file)) => file_facts(file.action),
        Some(Kind::Process(process)) => process_facts(process),
        // "Something went wrong on the way: data may be missing": ECS's word for a gap.
        Some(Kind::Gap(_)) => ("pipeline_error", &["host"], &["info"], "events-lost", "failure"),
        Some(Kind::Health(health)) => {
            ("state", &["host"], &["info"], "health-changed", health_outcome(health.state))
        }
        Some(Kind::Audit(audit)) => {
            ("event", &["host"], &["info"], audit.action.as_str(), audit_outcome(&audit.outcome))
        }
    };
    Facts { dataset: kind(event), kind: kind_, category, types, action, outcome }
}

type Parts<'a> = (&'static str, &'static [&'static str], &'static [&'static str], &'a str, &'static str);

fn detection_facts(detection: &wire::Detection) -> Parts<'_> {
    // A detection that names no file is of memory, and one without a region of all of it.
    let of_memory = detection.file.is_none() && detection.process.is_some();
    if of_memory && !detection.rules.is_empty() {
        return ("alert", &["malware", "process"], &["info"], "malware-detected", "success");
    }
    if !detection.rules.is_empty() {
        return ("alert", &["malware", "file"], &["info"], "malware-detected", "success");
    }
    let (action, outcome) = match wire::Verdict::try_from(detection.verdict) {
        Ok(wire::Verdict::Matched) => {
            return ("alert", &["malware", "file"], &["info"], "malware-detected", "success");
        }
        Ok(wire::Verdict::Clean) => ("file-scanned", "success"),
        Ok(wire::Verdict::TooLarge) => ("scan-incomplete", UNKNOWN),
        Ok(wire::Verdict::TimedOut) => ("scan-timed-out", "failure"),
        Ok(wire::Verdict::Failed) => ("scan-failed", "failure"),
        Ok(wire::Verdict::NotScanned) => ("scan-skipped", UNKNOWN),
        Ok(wire::Verdict::Unspecified) | Err(_) => ("file-scanned", UNKNOWN),
    };
    ("event", if of_memory { &["process"] } else { &["file"] }, &["info"], action, outcome)
}

fn file_facts(action: i32) -> Parts<'static> {
    let (types, action): (&[_], _) = match wire::FileAction::try_from(action) {
        Ok(wire::FileAction::Written) => (&["change"], "file-written"),
        Ok(wire::FileAction::Renamed) => (&["change"], "file-renamed"),
        Ok(wire::FileAction::Linked) => (&["creation"], "file-linked"),
        Ok(wire::FileAction::Deleted) => (&["deletion"], "file-deleted"),
        Ok(wire::FileAction::Attributes) => (&["change"], "file-attributes-changed"),
        Ok(wire::FileAction::Created) => (&["creation"], "file-created"),
        Ok(wire::FileAction::Unspecified) | Err(_) => (&["info"], "file-seen"),
    };
    ("event", &["file"], types, action, "")
}

fn process_facts(event: &wire::ProcessEvent) -> Parts<'static> {
    let (types, action): (&[_], _) = match wire::ProcessAction::try_from(event.action) {
        Ok(wire::ProcessAction::Run) => (&["start"], "process-run"),
        Ok(wire::ProcessAction::Ended) => (&["end"], "process-ended"),
        Ok(wire::ProcessAction::Found) => (&["info"], "process-found"),
        Ok(wire::ProcessAction::Unspecified) | Err(_) => (&["info"], "process-seen"),
    };
    ("event", &["process"], types, action, "")
}

fn health_outcome(state: i32) -> &'static str {
    match wire::HealthState::try_from(state) {
        Ok(wire::HealthState::Ok) => "success",
        Ok(wire::HealthState::Degraded | wire::HealthState::Failed) => "failure",
        Ok(wire::HealthState::Unspecified) | Err(_) => UNKNOWN,
    }
}

/// ECS allows three words only; what the agent said is in `vidette.audit.outcome`.
fn audit_outcome(word: &str) -> &'static str {
    ["success", "failure"].into_iter().find(|known| *known == word).unwrap_or(UNKNOWN)
}
