//! Whether a decoded event keeps within its limits. The agent cuts before it stores; the collector
//! refuses, because an event beyond its limits does not come from an agent of ours.

use crate::limits::{
    ANCESTORS_MAX, ARGS_BYTES_MAX, ARGS_MAX, EVENT_BYTES_MAX, LIST_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX,
    PATTERN_DATA_BYTES_MAX, PATTERNS_MAX, RULES_MAX, TEXT_BYTES_MAX,
};
use crate::wire::{self, event::Kind};
use prost::Message;

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
            at_most("audit detail", audit.detail.len(), TEXT_BYTES_MAX)?;
            audit.process.iter().try_for_each(check_process)
        }
    }
}

fn check_detection(detection: &wire::Detection) -> Result<(), TooLong> {
    detection.file.iter().try_for_each(check_file)?;
    detection.process.iter().try_for_each(check_process)?;
    at_most("rules version", detection.rules_version.len(), NAME_BYTES_MAX)?;
    at_most("detail", detection.detail.len(), TEXT_BYTES_MAX)?;
    at_most("rules", detection.rules.len(), RULES_MAX)?;
    detection.memory.iter().try_for_each(check_region)?;
    detection.rules.iter().try_for_each(check_rule)
}

fn check_region(region: &wire::MemoryRegion) -> Result<(), TooLong> {
    at_most("permissions of memory", region.permissions.len(), NAME_BYTES_MAX)?;
    at_most("name of memory", region.name.len(), PATH_BYTES_MAX)
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
    at_most("path in the container", file.container_path.len(), PATH_BYTES_MAX)?;
    at_most("digest", file.blake3.len(), 32)?;
    at_most("digest", file.sha256.len(), 32)?;
    at_most("digest", file.sha1.len(), 20)?;
    at_most("digest", file.md5.len(), 16)
}

fn check_process(process: &wire::Process) -> Result<(), TooLong> {
    at_most("entity id", process.entity_id.len(), NAME_BYTES_MAX)?;
    at_most("executable", process.executable.len(), PATH_BYTES_MAX)?;
    at_most("working directory", process.working_directory.len(), PATH_BYTES_MAX)?;
    at_most("process name", process.name.len(), NAME_BYTES_MAX)?;
    at_most("user name", process.user_name.len(), NAME_BYTES_MAX)?;
    check_args(&process.args)?;
    at_most("control group", process.cgroup.len(), PATH_BYTES_MAX)?;
    at_most("container id", process.container_id.len(), NAME_BYTES_MAX)?;
    at_most("ancestors", process.ancestors.len(), ANCESTORS_MAX)?;
    process.ancestors.iter().try_for_each(|ancestor| {
        at_most("entity id", ancestor.entity_id.len(), NAME_BYTES_MAX)?;
        at_most("executable", ancestor.executable.len(), PATH_BYTES_MAX)?;
        at_most("process name", ancestor.name.len(), NAME_BYTES_MAX)
    })?;
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

/// Cuts every field to its limit, and the event to [`EVENT_BYTES_MAX`] encoded bytes; afterwards [`event`]
/// finds nothing. True when anything was cut. Texts are cut between characters, names between bytes.
pub fn cut(event: &mut wire::Event) -> bool {
    let mut cut = bytes(&mut event.host_name, NAME_BYTES_MAX) | text(&mut event.boot_id, NAME_BYTES_MAX);
    match &mut event.kind {
        None => {}
        Some(Kind::Detection(detection)) => cut |= cut_detection(detection),
        Some(Kind::File(file)) => {
            cut |= cut_actors(&mut file.file, &mut file.process) | bytes(&mut file.old_path, PATH_BYTES_MAX);
            cut |= text(&mut file.rules_version, NAME_BYTES_MAX) | text(&mut file.detail, TEXT_BYTES_MAX);
        }
        Some(Kind::Process(process)) => cut |= cut_actors(&mut process.image, &mut process.process),
        Some(Kind::Gap(gap)) => cut |= text(&mut gap.detail, TEXT_BYTES_MAX),
        Some(Kind::Health(health)) => {
            cut |= text(&mut health.component, NAME_BYTES_MAX) | text(&mut health.message, TEXT_BYTES_MAX);
        }
        Some(Kind::Audit(audit)) => {
            cut |= text(&mut audit.action, NAME_BYTES_MAX) | text(&mut audit.outcome, NAME_BYTES_MAX);
            cut |= text(&mut audit.detail, TEXT_BYTES_MAX);
            cut = audit.process.iter_mut().fold(cut, |cut, process| cut | cut_process(process));
        }
    }
    cut | cut_whole(event)
}

/// Each rule may be within its limits and all together too much: the least severe, which stand last, go.
fn cut_whole(event: &mut wire::Event) -> bool {
    let over = event.encoded_len().saturating_sub(EVENT_BYTES_MAX);
    if let (true, Some(Kind::Detection(detection))) = (over > 0, &mut event.kind) {
        let mut freed = 0;
        while freed < over {
            let Some(rule) = detection.rules.pop() else { break };
            freed += rule.encoded_len();
        }
    }
    over > 0
}

fn cut_detection(detection: &mut wire::Detection) -> bool {
    let mut cut = cut_actors(&mut detection.file, &mut detection.process);
    cut |= text(&mut detection.rules_version, NAME_BYTES_MAX) | text(&mut detection.detail, TEXT_BYTES_MAX);
    cut |= list(&mut detection.rules, RULES_MAX);
    if let Some(region) = &mut detection.memory {
        cut |= text(&mut region.permissions, NAME_BYTES_MAX) | bytes(&mut region.name, PATH_BYTES_MAX);
    }
    detection.rules.iter_mut().fold(cut, |cut, rule| cut | cut_rule(rule))
}

fn cut_rule(rule: &mut wire::RuleMatch) -> bool {
    let mut cut = text(&mut rule.name, NAME_BYTES_MAX) | text(&mut rule.namespace, PATH_BYTES_MAX);
    for field in [&mut rule.id, &mut rule.description, &mut rule.author, &mut rule.reference] {
        cut |= text(field, TEXT_BYTES_MAX);
    }
    for entries in [&mut rule.techniques, &mut rule.tags] {
        cut |= list(entries, LIST_MAX);
        cut = entries.iter_mut().fold(cut, |cut, entry| cut | text(entry, NAME_BYTES_MAX));
    }
    cut |= list(&mut rule.patterns, PATTERNS_MAX);
    for pattern in &mut rule.patterns {
        cut |=
            text(&mut pattern.identifier, NAME_BYTES_MAX) | bytes(&mut pattern.data, PATTERN_DATA_BYTES_MAX);
    }
    cut
}

fn cut_actors(file: &mut Option<wire::File>, process: &mut Option<wire::Process>) -> bool {
    let mut cut = false;
    if let Some(file) = file {
        cut |=
            bytes(&mut file.path, PATH_BYTES_MAX) | bytes(&mut file.blake3, 32) | bytes(&mut file.sha256, 32);
        cut |= bytes(&mut file.sha1, 20) | bytes(&mut file.md5, 16);
        cut |= bytes(&mut file.container_path, PATH_BYTES_MAX);
    }
    if let Some(process) = process {
        cut |= cut_process(process);
    }
    cut
}

fn cut_process(process: &mut wire::Process) -> bool {
    let mut cut =
        text(&mut process.entity_id, NAME_BYTES_MAX) | bytes(&mut process.executable, PATH_BYTES_MAX);
    cut |= bytes(&mut process.working_directory, PATH_BYTES_MAX) | bytes(&mut process.name, NAME_BYTES_MAX);
    cut |= bytes(&mut process.user_name, NAME_BYTES_MAX) | cut_args(&mut process.args);
    cut |= bytes(&mut process.cgroup, PATH_BYTES_MAX) | text(&mut process.container_id, NAME_BYTES_MAX);
    cut |= list(&mut process.ancestors, ANCESTORS_MAX);
    for ancestor in &mut process.ancestors {
        cut |= text(&mut ancestor.entity_id, NAME_BYTES_MAX) | bytes(&mut ancestor.name, NAME_BYTES_MAX);
        cut |= bytes(&mut ancestor.executable, PATH_BYTES_MAX);
    }
    if let Some(parent) = &mut process.parent {
        cut |= text(&mut parent.entity_id, NAME_BYTES_MAX) | bytes(&mut parent.executable, PATH_BYTES_MAX);
        cut |= bytes(&mut parent.name, NAME_BYTES_MAX) | cut_args(&mut parent.args);
    }
    cut
}

/// Keeps the first arguments: what was run says more than what it was run on.
fn cut_args(args: &mut Vec<Vec<u8>>) -> bool {
    let mut cut = list(args, ARGS_MAX);
    let mut left = ARGS_BYTES_MAX;
    for argument in args {
        cut |= bytes(argument, left);
        left -= argument.len();
    }
    cut
}

fn bytes(field: &mut Vec<u8>, max: usize) -> bool {
    list(field, max)
}

fn list<T>(field: &mut Vec<T>, max: usize) -> bool {
    let over = field.len() > max;
    field.truncate(max);
    over
}

fn text(field: &mut String, max: usize) -> bool {
    let over = field.len() > max;
    field.truncate(field.floor_char_boundary(max));
    over
}

fn at_most(field: &'static str, size: usize, max: usize) -> Result<(), TooLong> {
    if size > max { Err(TooLong { field, size, max }) } else { Ok(()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::escape::hostile::Random;

    #[test]
    fn a_path_over_the_limit_is_named() {
        let file = wire::File { path: vec![b'a'; PATH_BYTES_MAX + 1], ..Default::default() };
        let kind = Kind::File(wire::FileEvent { file: Some(file), ..Default::default() });
        let error = event(&wire::Event { kind: Some(kind), ..Default::default() }).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("path is {} long, allowed is {PATH_BYTES_MAX}", PATH_BYTES_MAX + 1)
        );
    }

    #[test]
    fn an_empty_event_is_within_its_limits() {
        assert_eq!(event(&wire::Event::default()), Ok(()));
    }

    /// Any event, often far over every limit.
    fn large_event(seed: u64) -> wire::Event {
        let random = std::cell::RefCell::new(Random(seed));
        let size = |max: usize| [0, 1, max - 1, max, max + 1, 3 * max][random.borrow_mut().below(6)];
        let name = |max: usize| vec![b'a'; size(max)];
        let words = |max: usize| "\u{20ac}".repeat(size(max) / 2);
        let args = || vec![name(ARGS_BYTES_MAX / 40); size(ARGS_MAX)];
        let file = wire::File {
            path: name(PATH_BYTES_MAX),
            blake3: name(32),
            sha256: name(32),
            sha1: name(20),
            md5: name(16),
            container_path: name(PATH_BYTES_MAX),
            ..Default::default()
        };
        let parent = wire::ParentProcess {
            executable: name(PATH_BYTES_MAX),
            args: args(),
            name: name(256),
            ..Default::default()
        };
        let ancestor = wire::Ancestor {
            entity_id: words(NAME_BYTES_MAX),
            executable: name(PATH_BYTES_MAX),
            name: name(NAME_BYTES_MAX),
            ..Default::default()
        };
        let process = wire::Process {
            entity_id: words(NAME_BYTES_MAX),
            executable: name(PATH_BYTES_MAX),
            args: args(),
            working_directory: name(PATH_BYTES_MAX),
            user_name: name(NAME_BYTES_MAX),
            parent: Some(parent),
            cgroup: name(PATH_BYTES_MAX),
            container_id: words(NAME_BYTES_MAX),
            ancestors: vec![ancestor; size(ANCESTORS_MAX)],
            ..Default::default()
        };
        let pattern =
            wire::PatternMatch { identifier: words(NAME_BYTES_MAX), data: name(64), ..Default::default() };
        let rule = wire::RuleMatch {
            name: words(NAME_BYTES_MAX),
            namespace: words(PATH_BYTES_MAX),
            description: words(TEXT_BYTES_MAX),
            techniques: vec![words(NAME_BYTES_MAX); size(LIST_MAX)],
            patterns: vec![pattern; size(PATTERNS_MAX)],
            ..Default::default()
        };
        let (file, process) = (Some(file), Some(process));
        let region = wire::MemoryRegion {
            permissions: words(NAME_BYTES_MAX),
            name: name(PATH_BYTES_MAX),
            ..Default::default()
        };
        let kind = match seed % 6 {
            0 => Kind::Detection(wire::Detection {
                file,
                process,
                rules: vec![rule; size(RULES_MAX)],
                memory: Some(region),
                ..Default::default()
            }),
            1 => Kind::File(wire::FileEvent {
                file,
                process,
                old_path: name(PATH_BYTES_MAX),
                ..Default::default()
            }),
            2 => Kind::Process(wire::ProcessEvent { process, image: file, ..Default::default() }),
            3 => Kind::Gap(wire::Gap { detail: words(TEXT_BYTES_MAX), ..Default::default() }),
            4 => {
                Kind::Health(wire::Health { component: words(256), message: words(TEXT_BYTES_MAX), state: 1 })
            }
            _ => Kind::Audit(wire::Audit {
                action: words(256),
                outcome: words(256),
                detail: words(TEXT_BYTES_MAX),
                process,
            }),
        };
        wire::Event {
            host_name: name(NAME_BYTES_MAX),
            boot_id: words(NAME_BYTES_MAX),
            kind: Some(kind),
            ..Default::default()
        }
    }

    #[test]
    fn what_was_cut_is_within_every_limit_and_nothing_else_is_touched() {
        for seed in 0..600 {
            let before = large_event(seed);
            let over = event(&before).is_err() || before.encoded_len() > EVENT_BYTES_MAX;
            let mut after = before.clone();
            assert_eq!(cut(&mut after), over, "seed {seed}");
            assert_eq!(event(&after), Ok(()), "seed {seed}");
            assert!(after.encoded_len() <= EVENT_BYTES_MAX, "seed {seed}: {} bytes", after.encoded_len());
            assert_eq!(before == after, !over, "seed {seed}");
            assert!(!cut(&mut after), "seed {seed}: cut twice");
        }
    }
}
