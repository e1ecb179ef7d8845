//! An event in one table row. Pure. Every text that comes from a host goes through `escape::terminal` here, once.

use crate::sinks::formats;
use crate::store::Stored;
use serde::{Deserialize, Serialize};
use vidette_protocol::escape::terminal;
use vidette_protocol::wire::{self, event::Kind};

/// The last column: longer ones are cut, `show` has it all. Characters.
const WHAT_CHARS_MAX: usize = 300;

/// What a table shows of an event. Harmless on a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Store id: short, for `show`.
    pub number: u64,
    /// By the host's clock. Unix nanoseconds.
    pub time_unix_ns: i64,
    /// Name of its severity.
    pub severity: String,
    /// Host name.
    pub host: String,
    /// Name of its kind.
    pub kind: String,
    /// What happened, in words.
    pub what: String,
}

/// Makes it.
#[must_use]
pub fn summary(stored: &Stored, event: &wire::Event) -> Summary {
    let mut what = if stored.damaged {
        "its content was damaged on the collector's disk".to_owned()
    } else {
        what(event)
    };
    if let Some((cut, _)) = what.char_indices().nth(WHAT_CHARS_MAX) {
        what.truncate(cut);
        what.push('…');
    }
    Summary {
        number: stored.id,
        time_unix_ns: event.time_unix_ns,
        severity: formats::severity(event.severity()).into(),
        host: terminal(&event.host_name),
        kind: formats::kind(event).into(),
        what,
    }
}

fn what(event: &wire::Event) -> String {
    match &event.kind {
        Some(Kind::Detection(detection)) => detected(detection),
        Some(Kind::File(file)) => {
            let action = name(file.action().as_str_name(), "FILE_ACTION_");
            format!("{action} {}{}", path(file.file.as_ref()), by(file.process.as_ref()))
        }
        Some(Kind::Process(process)) => {
            let action = name(process.action().as_str_name(), "PROCESS_ACTION_");
            let code = process.exit_code.map_or_else(String::new, |code| format!(" (status {code})"));
            format!("{action} {}{code}", process.process.as_ref().map_or_else(String::new, command))
        }
        Some(Kind::Gap(gap)) => {
            let count = gap.count.map_or_else(|| "an unknown number of".into(), |count| count.to_string());
            format!(
                "lost {count} events: {} {}",
                name(gap.reason().as_str_name(), "GAP_REASON_"),
                text(&gap.detail)
            )
        }
        Some(Kind::Health(health)) => {
            let state = name(health.state().as_str_name(), "HEALTH_STATE_");
            format!("{} is {state}: {}", text(&health.component), text(&health.message))
        }
        Some(Kind::Audit(audit)) => {
            let by = by(audit.process.as_ref());
            format!("{} {}{by} {}", text(&audit.action), text(&audit.outcome), text(&audit.detail))
        }
        None => "of a kind that this version does not know".into(),
    }
}

fn detected(detection: &wire::Detection) -> String {
    let rules: Vec<String> = detection.rules.iter().map(|rule| text(&rule.name)).collect();
    let verdict = match detection.verdict() {
        wire::Verdict::Matched => rules.join(", "),
        other => format!("{} {}", name(other.as_str_name(), "VERDICT_"), text(&detection.detail)),
    };
    let place = match &detection.memory {
        Some(region) => memory(region),
        None => path(detection.file.as_ref()),
    };
    format!("{} {place}{}", verdict.trim_end(), by(detection.process.as_ref()))
}

/// In a process instead of a file.
fn memory(region: &wire::MemoryRegion) -> String {
    let place = format!("{} {}", text(&region.permissions), terminal(&region.name));
    format!("in memory at 0x{:x}-0x{:x} {}", region.start, region.end, place.trim_end())
}

fn path(file: Option<&wire::File>) -> String {
    file.map_or_else(|| "(no file)".into(), |file| terminal(&file.path))
}

fn by(process: Option<&wire::Process>) -> String {
    process.map_or_else(String::new, |process| {
        format!(" by {} (pid {})", terminal(&process.executable), process.pid)
    })
}

fn command(process: &wire::Process) -> String {
    let args: Vec<String> = process.args.iter().map(|arg| terminal(arg)).collect();
    format!("{} [{}] pid {}", terminal(&process.executable), args.join(" "), process.pid)
}

fn text(text: &str) -> String {
    terminal(text.as_bytes())
}

/// `GAP_REASON_KERNEL_QUEUE` as `kernel-queue`.
fn name(written: &str, prefix: &str) -> String {
    written.strip_prefix(prefix).unwrap_or(written).to_ascii_lowercase().replace('_', "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use vidette_protocol::id::{AgentId, Class, EventId};

    fn summarised(event: &wire::Event) -> Summary {
        let id = EventId { agent: AgentId([1; 16]), epoch: 1, class: Class::Alert, seq: 1 };
        summary(&Stored { id: 7, event: id, received_unix_ns: 0, body: Vec::new(), damaged: false }, event)
    }

    #[test]
    fn a_detection_names_rule_file_and_process() {
        let rule = wire::RuleMatch { name: "EICAR".into(), ..Default::default() };
        let process = wire::Process { executable: b"/bin/sh".to_vec(), pid: 9, ..Default::default() };
        let file = wire::File { path: b"/tmp/x".to_vec(), ..Default::default() };
        let kind = Kind::Detection(wire::Detection {
            verdict: wire::Verdict::Matched as i32,
            rules: vec![rule],
            file: Some(file),
            process: Some(process),
            ..Default::default()
        });
        let summary = summarised(&wire::Event { kind: Some(kind), ..Default::default() });
        assert_eq!((summary.number, summary.what.as_str()), (7, "EICAR /tmp/x by /bin/sh (pid 9)"));
    }

    #[test]
    fn a_detection_in_memory_names_the_region_instead_of_a_file() {
        let process = wire::Process { executable: b"/bin/sh".to_vec(), pid: 9, ..Default::default() };
        let memory = wire::MemoryRegion {
            start: 0x1000,
            end: 0x3000,
            permissions: "rw-p".into(),
            name: b"[heap]\x1b".to_vec(),
        };
        let kind = Kind::Detection(wire::Detection {
            verdict: wire::Verdict::Matched as i32,
            rules: vec![wire::RuleMatch { name: "EICAR".into(), ..Default::default() }],
            process: Some(process),
            memory: Some(memory),
            ..Default::default()
        });
        let what = summarised(&wire::Event { kind: Some(kind), ..Default::default() }).what;
        assert!(what.starts_with("EICAR in memory at 0x1000-0x3000 rw-p [heap]"), "{what}");
        assert!(what.ends_with(" by /bin/sh (pid 9)") && !what.contains('\x1b'), "{what}");
    }

    #[test]
    fn no_control_byte_passes_in_any_kind() {
        let evil = b"a\x1b[2J\n\r\x07\xff".to_vec();
        let text = "a\u{1b}[2J\n\r\u{7}".to_owned();
        let file = Some(wire::File { path: evil.clone(), ..Default::default() });
        let process =
            Some(wire::Process { executable: evil.clone(), args: vec![evil.clone()], ..Default::default() });
        let rules = vec![wire::RuleMatch { name: text.clone(), ..Default::default() }];
        let kinds = [
            Kind::Detection(wire::Detection {
                file: file.clone(),
                process: process.clone(),
                detail: text.clone(),
                rules: rules.clone(),
                ..Default::default()
            }),
            Kind::Detection(wire::Detection {
                verdict: wire::Verdict::Matched as i32,
                rules,
                ..Default::default()
            }),
            Kind::File(wire::FileEvent { file, process: process.clone(), ..Default::default() }),
            Kind::Process(wire::ProcessEvent { process: process.clone(), ..Default::default() }),
            Kind::Gap(wire::Gap { detail: text.clone(), ..Default::default() }),
            Kind::Health(wire::Health {
                component: text.clone(),
                message: text.clone(),
                ..Default::default()
            }),
            Kind::Audit(wire::Audit { action: text.clone(), outcome: text.clone(), detail: text, process }),
        ];
        for kind in kinds {
            let summary =
                summarised(&wire::Event { host_name: evil.clone(), kind: Some(kind), ..Default::default() });
            for text in [&summary.what, &summary.host, &summary.kind, &summary.severity] {
                assert!(!text.chars().any(char::is_control), "{text:?}");
            }
        }
    }

    #[test]
    fn a_long_one_is_cut() {
        let kind = Kind::Audit(wire::Audit { detail: "ü".repeat(2000), ..Default::default() });
        let summary = summarised(&wire::Event { kind: Some(kind), ..Default::default() });
        assert!(summary.what.chars().count() <= WHAT_CHARS_MAX + 1);
    }
}
