//! What matched, as the contract says it: metadata read, everything bounded, most severe first. Inside the worker.

use super::clip;
use super::messages::MATCHES_BYTES_MAX;
use prost::Message as _;
use vidette_protocol::limits::{
    LIST_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, PATTERN_DATA_BYTES_MAX, PATTERNS_MAX, RULES_MAX, TEXT_BYTES_MAX,
};
use vidette_protocol::wire;
use yara_x::{MetaValue, Rule};

/// Matches of one pattern that are kept.
const MATCHES_OF_A_PATTERN_MAX: usize = 4;

/// One rule that matched in a part of a file that starts at `base`.
#[must_use]
pub fn to_wire(rule: &Rule<'_, '_>, base: u64) -> wire::RuleMatch {
    let mut out = wire::RuleMatch {
        name: clip(rule.identifier(), NAME_BYTES_MAX),
        namespace: clip(rule.namespace(), PATH_BYTES_MAX),
        severity: severity_of(rule).0 as i32,
        tags: rule.tags().take(LIST_MAX).map(|tag| clip(tag.identifier(), NAME_BYTES_MAX)).collect(),
        patterns: patterns(rule, base),
        ..Default::default()
    };
    for (key, value) in rule.metadata() {
        if let Some(text) = text(&value) {
            set(&mut out, key, &text);
        }
    }
    out
}

fn text(value: &MetaValue<'_>) -> Option<String> {
    match value {
        MetaValue::Integer(number) => Some(number.to_string()),
        MetaValue::Float(number) => Some(number.to_string()),
        MetaValue::Bool(truth) => Some(truth.to_string()),
        MetaValue::String(text) => Some((*text).to_owned()),
        MetaValue::Bytes(_) => None,
    }
}

fn set(out: &mut wire::RuleMatch, key: &str, value: &str) {
    let text = || clip(value, TEXT_BYTES_MAX);
    match key {
        "id" => out.id = text(),
        "description" => out.description = text(),
        "author" => out.author = text(),
        "reference" => out.reference = text(),
        "technique" | "mitre_attack" | "attack" => add_techniques(&mut out.techniques, value),
        // Rules carry keys of their authors' own.
        _ => {}
    }
}

/// What a rule says of itself, the last word that is one; and the words that are none. Medium when it says nothing.
#[must_use]
pub fn severity_of(rule: &Rule<'_, '_>) -> (wire::Severity, Vec<String>) {
    let (mut found, mut unknown) = (wire::Severity::Medium, Vec::new());
    for (_, value) in rule.metadata().filter(|(key, _)| *key == "severity") {
        let word = text(&value).unwrap_or_else(|| "bytes".to_owned());
        match severity(&word) {
            Some(severity) => found = severity,
            None => unknown.push(word),
        }
    }
    (found, unknown)
}

/// As a rule may write it.
#[must_use]
pub fn severity_word(severity: wire::Severity) -> &'static str {
    match severity {
        wire::Severity::Info => "info",
        wire::Severity::Low => "low",
        wire::Severity::Medium | wire::Severity::Unspecified => "medium",
        wire::Severity::High => "high",
        wire::Severity::Critical => "critical",
    }
}

/// By its name in a rule, whatever its case.
fn severity(text: &str) -> Option<wire::Severity> {
    match text.trim().to_ascii_lowercase().as_str() {
        "info" | "informational" => Some(wire::Severity::Info),
        "low" => Some(wire::Severity::Low),
        "medium" => Some(wire::Severity::Medium),
        "high" => Some(wire::Severity::High),
        "critical" => Some(wire::Severity::Critical),
        _ => None,
    }
}

/// `T1059`, `T1059.004`; what does not look like an ATT&CK technique is left out.
fn add_techniques(techniques: &mut Vec<String>, list: &str) {
    for word in list.split(|c: char| c == ',' || c == ';' || c.is_whitespace()) {
        let id = word.to_ascii_uppercase();
        let is_id = id.strip_prefix('T').is_some_and(|rest| {
            let (number, part) = rest.split_once('.').unwrap_or((rest, "000"));
            [(number, 4), (part, 3)]
                .iter()
                .all(|(text, n)| text.len() == *n && text.bytes().all(|b| b.is_ascii_digit()))
        });
        if is_id && techniques.len() < LIST_MAX && !techniques.contains(&id) {
            techniques.push(id);
        }
    }
}

fn patterns(rule: &Rule<'_, '_>, base: u64) -> Vec<wire::PatternMatch> {
    let of_pattern = |pattern: yara_x::Pattern<'_, '_>| {
        let identifier = clip(pattern.identifier(), NAME_BYTES_MAX);
        let found: Vec<wire::PatternMatch> = pattern
            .matches()
            .take(MATCHES_OF_A_PATTERN_MAX)
            .map(|found| wire::PatternMatch {
                identifier: identifier.clone(),
                offset: base + found.range().start as u64,
                length: found.range().len() as u64,
                data: found.data().iter().take(PATTERN_DATA_BYTES_MAX).copied().collect(),
            })
            .collect();
        found
    };
    rule.patterns().flat_map(of_pattern).take(PATTERNS_MAX).collect()
}

/// Adds a match; of a rule that matched in an earlier part of the same file only the patterns.
pub fn merge(all: &mut Vec<wire::RuleMatch>, found: wire::RuleMatch) {
    match all.iter_mut().find(|known| known.name == found.name && known.namespace == found.namespace) {
        Some(known) => {
            known.patterns.extend(found.patterns);
            known.patterns.truncate(PATTERNS_MAX);
        }
        None => all.push(found),
    }
}

/// Most severe first, then by name; cut to what an answer and an event hold, patterns before rules.
pub fn order_and_bound(all: &mut Vec<wire::RuleMatch>) {
    all.sort_by(|a, b| {
        b.severity.cmp(&a.severity).then_with(|| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)))
    });
    all.truncate(RULES_MAX);
    let size = |rules: &[wire::RuleMatch]| rules.iter().map(|rule| rule.encoded_len() + 4).sum::<usize>();
    for index in (0..all.len()).rev() {
        if size(all) <= MATCHES_BYTES_MAX {
            return;
        }
        all[index].patterns.clear();
    }
    while size(all) > MATCHES_BYTES_MAX && all.len() > 1 {
        all.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn techniques_are_read_from_lists_and_nothing_else() {
        let mut techniques = vec![];
        add_techniques(&mut techniques, "T1059.004, t1505.003;T1059.004 attack.t1027 T12 T1027.1");
        assert_eq!(techniques, ["T1059.004", "T1505.003"]);
    }

    #[test]
    fn matches_fit_and_the_most_severe_stay() {
        let rule = |n: usize| wire::RuleMatch {
            name: format!("r{n}"),
            severity: i32::try_from(n % 5 + 1).unwrap_or(1),
            description: "x".repeat(TEXT_BYTES_MAX),
            tags: vec!["t".repeat(NAME_BYTES_MAX); LIST_MAX],
            ..Default::default()
        };
        let mut all: Vec<_> = (0..100).map(rule).collect();
        order_and_bound(&mut all);
        assert!(!all.is_empty() && all.len() < 100);
        assert!(all.iter().all(|rule| rule.severity == wire::Severity::Critical as i32));
        assert!(all.iter().map(|rule| rule.encoded_len() + 4).sum::<usize>() <= MATCHES_BYTES_MAX);
    }
}
