//! One line for people: what happened, to what, by whom. Harmless on any terminal.

use super::words;
use crate::escape::terminal;
use crate::wire::{self, event::Kind};

/// One line for a terminal, without the newline: time, severity, then what `sentence` says.
/// Every name in it went through [`terminal`].
#[must_use]
pub fn human(event: &wire::Event) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(event.time_unix_ns))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.3}  {:<8}  {}", words::severity(event.severity), sentence(event))
}

/// What happened as a short sentence. Every name in it went through [`terminal`].
pub(super) fn sentence(event: &wire::Event) -> String {
    match &event.kind {
        None => "an event of a kind that is not known here".to_owned(),
        Some(Kind::Detection(detection)) => of_detection(detection),
        Some(Kind::File(file)) => of_file(file),
        Some(Kind::Process(process)) => of_process(process),
        Some(Kind::Gap(gap)) => of_gap(gap),
        Some(Kind::Health(health)) => {
            let state = words::health_state(health.state);
            format!("{} is {state}{}", terminal(health.component.as_bytes()), because(&health.message))
        }
        Some(Kind::Audit(audit)) => {
            let (action, outcome) = (terminal(audit.action.as_bytes()), terminal(audit.outcome.as_bytes()));
            let by = by("done_by", audit.process.as_ref());
            format!("{action} {outcome}{by}{}", because(&audit.detail)).replace("  ", " ")
        }
    }
}

fn of_detection(detection: &wire::Detection) -> String {
    let path = match (&detection.memory, &detection.process) {
        (Some(region), process) => memory_of(region, process.as_ref()),
        (None, Some(process)) if detection.file.is_none() => format!("memory of {}", who(process)),
        (None, _) => path_of(detection.file.as_ref()),
    };
    let by = by(words::detection_role(detection), detection.process.as_ref());
    let Some(first) = detection.rules.first() else {
        return format!("{path} {}{by}{}", verdict_phrase(detection.verdict), because(&detection.detail));
    };
    let id = if first.id.is_empty() { String::new() } else { format!("{} ", terminal(first.id.as_bytes())) };
    let more = match detection.rules.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{id}{}{more} matched {path}{by}", terminal(first.name.as_bytes()))
}

/// `memory of /usr/bin/x (pid 7) at 0x7f00-0x7f80 rw-p [heap]`.
fn memory_of(region: &wire::MemoryRegion, process: Option<&wire::Process>) -> String {
    let process = process.map_or_else(|| "a process that is not known".to_owned(), who);
    let (permissions, name) = (terminal(region.permissions.as_bytes()), terminal(&region.name));
    let place =
        format!("memory of {process} at 0x{:x}-0x{:x} {permissions} {name}", region.start, region.end);
    place.trim_end().to_owned()
}

fn who(process: &wire::Process) -> String {
    let name = if process.executable.is_empty() { &process.name } else { &process.executable };
    if name.is_empty() {
        return format!("process {}", process.pid);
    }
    format!("{} (pid {})", terminal(name), process.pid)
}

fn verdict_phrase(number: i32) -> &'static str {
    match wire::Verdict::try_from(number) {
        Ok(wire::Verdict::Clean) => "is clean",
        Ok(wire::Verdict::Matched) => "matched",
        Ok(wire::Verdict::TooLarge) => "is too large to be scanned whole",
        Ok(wire::Verdict::TimedOut) => "was not scanned to its end in time",
        Ok(wire::Verdict::Failed) => "could not be scanned",
        Ok(wire::Verdict::NotScanned) => "was not scanned",
        Ok(wire::Verdict::Unspecified) | Err(_) => "has a verdict that is not known here",
    }
}

fn of_file(event: &wire::FileEvent) -> String {
    let action = match wire::FileAction::try_from(event.action) {
        Ok(wire::FileAction::Written) => "written",
        Ok(wire::FileAction::Renamed) => "renamed",
        Ok(wire::FileAction::Linked) => "linked",
        Ok(wire::FileAction::Deleted) => "deleted",
        Ok(wire::FileAction::Attributes) => "changed",
        Ok(wire::FileAction::Created) => "created",
        Ok(wire::FileAction::Unspecified) | Err(_) => "seen",
    };
    let from = if event.old_path.is_empty() {
        String::new()
    } else {
        format!(" from {}", terminal(&event.old_path))
    };
    let by = by(words::file_role(event.action), event.process.as_ref());
    format!("{action} {}{from}{by}", path_of(event.file.as_ref()))
}

fn of_process(event: &wire::ProcessEvent) -> String {
    let action = match wire::ProcessAction::try_from(event.action) {
        Ok(wire::ProcessAction::Run) => "run",
        Ok(wire::ProcessAction::Ended) => "ended",
        Ok(wire::ProcessAction::Found) => "found",
        Ok(wire::ProcessAction::Unspecified) | Err(_) => "seen",
    };
    let process = event.process.as_ref();
    let image = match process {
        Some(process) if !process.executable.is_empty() => terminal(&process.executable),
        _ => path_of(event.image.as_ref()),
    };
    let arguments: Vec<String> = process
        .into_iter()
        .flat_map(|process| process.args.iter().skip(1))
        .map(|argument| terminal(argument))
        .collect();
    let pid = process.map_or_else(String::new, |process| format!(" (pid {})", process.pid));
    let line = format!("{action} {image} {}", arguments.join(" "));
    format!("{}{pid}", line.trim_end())
}

fn of_gap(gap: &wire::Gap) -> String {
    let count = gap.count.map_or_else(|| "an unknown number of".to_owned(), |count| count.to_string());
    let reason = words::gap_reason(gap.reason).replace('_', " ");
    format!("{count} events lost at: {reason}{}", because(&gap.detail))
}

fn path_of(file: Option<&wire::File>) -> String {
    match file {
        Some(file) if !file.path.is_empty() => terminal(&file.path),
        _ => "a file without a known name".to_owned(),
    }
}

fn by(role: &str, process: Option<&wire::Process>) -> String {
    let Some(process) = process else { return String::new() };
    let name = if process.name.is_empty() { &process.executable } else { &process.name };
    if role.is_empty() || (name.is_empty() && process.pid == 0) {
        return String::new();
    }
    format!(", {} {} (pid {})", role.replace('_', " "), terminal(name), process.pid)
}

fn because(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {}", terminal(text.as_bytes())) }
}
