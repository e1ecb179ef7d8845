//! Whether a decoded event keeps within its limits. The agent cuts before it stores; the collector
//! refuses, because an event beyond its limits does not come from an agent of ours.

use crate::limits::{
    ARGS_BYTES_MAX, ARGS_MAX, LIST_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, PATTERN_DATA_BYTES_MAX, PATTERNS_MAX, RULES_MAX,
    TEXT_BYTES_MAX,
};
use crate::wire::{self, event::Kind};

/// What is over which limit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field} is {size} long, allowed is {max}")]
pub struct TooLong {
    field: &'static str,
    size: usize,
    max: usize,
}

/// Checks every field of an event against [`crate::limits`].
///
/// # Errors
/// [`TooLong`] names the first field that is over its limit.
pub fn event(event: &wire::Event) -> Result<(), TooLong> {
    at_most("host name", event.host_name.len(), NAME_BYTES_MAX)?;
    at_most("boot id", event.boot_id.len(), NAME_BYTES_MAX)?;
    match &event.kind {
        None => Ok(()),
        Some(Kind::Detection(detection)) => check_detection(detection),
        Some(Kind::File(file)) => check_file_event(file),
        Some(Kind::Process(process)) => {
            process.process.iter().try_for_each(check_process)?;
            process.image.iter().try_for_each(check_file)
        }
        Some(Kind::Gap(gap)) => at_most("gap detail", gap.detail.len(), TEXT_BYTES_MAX),
        Some(Kind::Health(health)) => {
            at_most("component", health.component.len(), NAME_BYTES_MAX)?;
            at_most("health message", health.message.len(), TEXT_BYTES_MAX)
        }
        Some(Kind::Audit(audit)) => {
            at_most("action", audit.action.len(), NAME_BYTES_MAX)?;
            at_most("outcome", audit.outcome.len(), NAME_BYTES_MAX)?;
            at_most("audit detail", audit.detail.len(), TEXT_BYTES_MAX)
        }
    }
}

fn check_detection(detection: &wire::Detection) -> Result<(), TooLong> {
    detection.file.iter().try_for_each(check_file)?;
    detection.process.iter().try_for_each(check_process)?;
    at_most("rules version", detection.rules_version.len(), NAME_BYTES_MAX)?;
    at_most("detail", detection.detail.len(), TEXT_BYTES_MAX)?;
    at_most("rules", detection.rules.len(), RULES_MAX)?;
    detection.rules.iter().try_for_each(check_rule)
}

fn check_rule(rule: &wire::RuleMatch) -> Result<(), TooLong> {
    at_most("rule name", rule.name.len(), NAME_BYTES_MAX)?;
    at_most("rule namespace", rule.namespace.len(), PATH_BYTES_MAX)?;
    for text in [&rule.id, &rule.description, &rule.author, &rule.reference] {
        at_most("rule text", text.len(), TEXT_BYTES_MAX)?;
    }
    for list in [&rule.techniques, &rule.tags] {
        at_most("rule list", list.len(), LIST_MAX)?;
        list.iter().try_for_each(|text| at_most("rule list entry", text.len(), NAME_BYTES_MAX))?;
    }
    at_most("patterns", rule.patterns.len(), PATTERNS_MAX)?;
    rule.patterns.iter().try_for_each(|pattern| {
        at_most("pattern name", pattern.identifier.len(), NAME_BYTES_MAX)?;
        at_most("pattern data", pattern.data.len(), PATTERN_DATA_BYTES_MAX)
    })
}

fn check_file_event(event: &wire::FileEvent) -> Result<(), TooLong> {
    event.file.iter().try_for_each(check_file)?;
    event.process.iter().try_for_each(check_process)?;
    at_most("old path", event.old_path.len(), PATH_BYTES_MAX)?;
    at_most("rules version", event.rules_version.len(), NAME_BYTES_MAX)?;
    at_most("detail", event.detail.len(), TEXT_BYTES_MAX)
}

fn check_file(file: &wire::File) -> Result<(), TooLong> {
    at_most("path", file.path.len(), PATH_BYTES_MAX)?;
    at_most("digest", file.blake3.len(), 32)?;
    at_most("digest", file.sha256.len(), 32)
}

fn check_process(process: &wire::Process) -> Result<(), TooLong> {
    at_most("entity id", process.entity_id.len(), NAME_BYTES_MAX)?;
    at_most("executable", process.executable.len(), PATH_BYTES_MAX)?;
    at_most("working directory", process.working_directory.len(), PATH_BYTES_MAX)?;
    at_most("process name", process.name.len(), NAME_BYTES_MAX)?;
    at_most("user name", process.user_name.len(), NAME_BYTES_MAX)?;
    check_args(&process.args)?;
    process.parent.iter().try_for_each(|parent| {
        at_most("entity id", parent.entity_id.len(), NAME_BYTES_MAX)?;
        at_most("executable", parent.executable.len(), PATH_BYTES_MAX)?;
        at_most("process name", parent.name.len(), NAME_BYTES_MAX)?;
        check_args(&parent.args)
    })
}

fn check_args(args: &[Vec<u8>]) -> Result<(), TooLong> {
    at_most("arguments", args.len(), ARGS_MAX)?;
    at_most("arguments", args.iter().map(Vec::len).sum(), ARGS_BYTES_MAX)
}

fn at_most(field: &'static str, size: usize, max: usize) -> Result<(), TooLong> {
    if size > max { Err(TooLong { field, size, max }) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_over_the_limit_is_named() {
        let file = wire::File { path: vec![b'a'; PATH_BYTES_MAX + 1], ..Default::default() };
        let kind = Kind::File(wire::FileEvent { file: Some(file), ..Default::default() });
        let error = event(&wire::Event { kind: Some(kind), ..Default::default() }).unwrap_err();
        assert_eq!(error.to_string(), format!("path is {} long, allowed is {PATH_BYTES_MAX}", PATH_BYTES_MAX + 1));
    }

    #[test]
    fn an_empty_event_is_within_its_limits() {
        assert_eq!(event(&wire::Event::default()), Ok(()));
    }
}
