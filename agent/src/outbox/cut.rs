//! Events made to fit the limits of the wire before they are numbered, so that no honest event is refused.
//!
//! Pure. What can't be made to fit becomes a `gap` event in `db`.

use prost::Message;
use vidette_protocol::check;
use vidette_protocol::limits::{
    ANCESTORS_MAX, ARGS_BYTES_MAX, ARGS_MAX, EVENT_BYTES_MAX, LIST_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX,
    PATTERN_DATA_BYTES_MAX, PATTERNS_MAX, RULES_MAX, TEXT_BYTES_MAX,
};
use vidette_protocol::wire::{self, event::Kind};

/// Rules that stay when a detection is too large with all of them.
const RULES_KEPT_MAX: usize = 4;

/// The encoded event, cut where it must be to take at most `bytes_max`; `Err` is its size in bytes when no cutting
/// helps.
pub fn encode(mut event: wire::Event, bytes_max: usize) -> Result<Vec<u8>, usize> {
    let bytes_max = bytes_max.min(EVENT_BYTES_MAX);
    cut(&mut event);
    for shrink in [drop_patterns, drop_texts, drop_rules] {
        if event.encoded_len() <= bytes_max {
            break;
        }
        shrink(&mut event);
    }
    let bytes = event.encoded_len();
    if bytes > bytes_max || check::event(&event).is_err() { Err(bytes) } else { Ok(event.encode_to_vec()) }
}

fn cut(event: &mut wire::Event) {
    event.host_name.truncate(NAME_BYTES_MAX);
    text(&mut event.boot_id, NAME_BYTES_MAX);
    match &mut event.kind {
        Some(Kind::Detection(detection)) => cut_detection(detection),
        Some(Kind::File(file)) => {
            file.file.iter_mut().for_each(cut_file);
            file.process.iter_mut().for_each(cut_process);
            file.old_path.truncate(PATH_BYTES_MAX);
            text(&mut file.rules_version, NAME_BYTES_MAX);
            text(&mut file.detail, TEXT_BYTES_MAX);
        }
        Some(Kind::Process(process)) => {
            process.process.iter_mut().for_each(cut_process);
            process.image.iter_mut().for_each(cut_file);
        }
        Some(Kind::Gap(gap)) => text(&mut gap.detail, TEXT_BYTES_MAX),
        Some(Kind::Health(health)) => {
            text(&mut health.component, NAME_BYTES_MAX);
            text(&mut health.message, TEXT_BYTES_MAX);
        }
        Some(Kind::Audit(audit)) => {
            text(&mut audit.action, NAME_BYTES_MAX);
            text(&mut audit.outcome, NAME_BYTES_MAX);
            text(&mut audit.detail, TEXT_BYTES_MAX);
        }
        None => {}
    }
}

fn cut_detection(detection: &mut wire::Detection) {
    detection.file.iter_mut().for_each(cut_file);
    detection.process.iter_mut().for_each(cut_process);
    text(&mut detection.rules_version, NAME_BYTES_MAX);
    text(&mut detection.detail, TEXT_BYTES_MAX);
    detection.rules.truncate(RULES_MAX);
    for rule in &mut detection.rules {
        text(&mut rule.name, NAME_BYTES_MAX);
        text(&mut rule.namespace, PATH_BYTES_MAX);
        for long in [&mut rule.id, &mut rule.description, &mut rule.author, &mut rule.reference] {
            text(long, TEXT_BYTES_MAX);
        }
        for list in [&mut rule.techniques, &mut rule.tags] {
            list.truncate(LIST_MAX);
            list.iter_mut().for_each(|entry| text(entry, NAME_BYTES_MAX));
        }
        rule.patterns.truncate(PATTERNS_MAX);
        for pattern in &mut rule.patterns {
            text(&mut pattern.identifier, NAME_BYTES_MAX);
            pattern.data.truncate(PATTERN_DATA_BYTES_MAX);
        }
    }
}

fn cut_file(file: &mut wire::File) {
    file.path.truncate(PATH_BYTES_MAX);
    file.container_path.truncate(PATH_BYTES_MAX);
}

fn cut_process(process: &mut wire::Process) {
    text(&mut process.entity_id, NAME_BYTES_MAX);
    process.executable.truncate(PATH_BYTES_MAX);
    process.working_directory.truncate(PATH_BYTES_MAX);
    process.name.truncate(NAME_BYTES_MAX);
    process.user_name.truncate(NAME_BYTES_MAX);
    cut_args(&mut process.args);
    process.cgroup.truncate(PATH_BYTES_MAX);
    text(&mut process.container_id, NAME_BYTES_MAX);
    process.ancestors.truncate(ANCESTORS_MAX);
    for ancestor in &mut process.ancestors {
        text(&mut ancestor.entity_id, NAME_BYTES_MAX);
        ancestor.executable.truncate(PATH_BYTES_MAX);
        ancestor.name.truncate(NAME_BYTES_MAX);
    }
    if let Some(parent) = &mut process.parent {
        text(&mut parent.entity_id, NAME_BYTES_MAX);
        parent.executable.truncate(PATH_BYTES_MAX);
        parent.name.truncate(NAME_BYTES_MAX);
        cut_args(&mut parent.args);
    }
}

fn cut_args(args: &mut Vec<Vec<u8>>) {
    args.truncate(ARGS_MAX);
    let mut left = ARGS_BYTES_MAX;
    for arg in args {
        arg.truncate(left);
        left -= arg.len();
    }
}

/// Cuts at a character's border, so that it stays UTF-8.
fn text(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
    }
}

fn rules(event: &mut wire::Event) -> Option<&mut Vec<wire::RuleMatch>> {
    match &mut event.kind {
        Some(Kind::Detection(detection)) => Some(&mut detection.rules),
        _ => None, // only detections carry rules
    }
}

fn drop_patterns(event: &mut wire::Event) {
    rules(event).into_iter().flatten().for_each(|rule| rule.patterns.clear());
}

fn drop_texts(event: &mut wire::Event) {
    for rule in rules(event).into_iter().flatten() {
        rule.tags.clear();
        rule.author.clear();
        rule.reference.clear();
    }
}

fn drop_rules(event: &mut wire::Event) {
    if let Some(rules) = rules(event) {
        rules.truncate(RULES_KEPT_MAX);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_detection_fits_after_cutting() {
        let long = "é".repeat(9000);
        let pattern =
            wire::PatternMatch { identifier: long.clone(), data: vec![1; 9000], ..Default::default() };
        let rule = wire::RuleMatch {
            name: long.clone(),
            namespace: long.clone(),
            id: long.clone(),
            description: long.clone(),
            author: long.clone(),
            reference: long.clone(),
            techniques: vec![long.clone(); 99],
            tags: vec![long.clone(); 99],
            patterns: vec![pattern; 99],
            severity: 3,
        };
        let process = wire::Process { args: vec![vec![b'a'; 9000]; 400], ..Default::default() };
        let file = wire::File { path: vec![b'p'; 99_999], ..Default::default() };
        let detection = wire::Detection {
            rules: vec![rule; 99],
            process: Some(process),
            file: Some(file),
            ..Default::default()
        };
        let bytes = encode(
            wire::Event { kind: Some(Kind::Detection(detection)), ..Default::default() },
            EVENT_BYTES_MAX,
        )
        .unwrap();
        let event = wire::Event::decode(bytes.as_slice()).unwrap();
        check::event(&event).unwrap();
        let Some(Kind::Detection(detection)) = event.kind else { panic!("it is a detection") };
        assert_eq!(detection.rules.len(), RULES_KEPT_MAX);
        assert_eq!(detection.process.unwrap().args.iter().map(Vec::len).sum::<usize>(), ARGS_BYTES_MAX);
    }

    #[test]
    fn an_event_within_its_limits_is_not_touched() {
        let health = wire::Health { component: "worker".into(), state: 1, message: "é".into() };
        let event = wire::Event { kind: Some(Kind::Health(health)), ..Default::default() };
        assert_eq!(
            wire::Event::decode(encode(event.clone(), EVENT_BYTES_MAX).unwrap().as_slice()).unwrap(),
            event
        );
    }

    #[test]
    fn what_cannot_be_cut_is_reported_with_its_size() {
        let file = wire::File { blake3: vec![0; 33], ..Default::default() };
        let kind = Kind::File(wire::FileEvent { file: Some(file), ..Default::default() });
        assert!(encode(wire::Event { kind: Some(kind), ..Default::default() }, EVENT_BYTES_MAX).is_err());
    }
}
