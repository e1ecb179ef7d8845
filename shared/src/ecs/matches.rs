//! Which rules matched: the first, which is the most severe, as ECS fields; all of them under `vidette.rules`.

use super::{Record, words};
use crate::wire;
use data_encoding::BASE64;
use serde_json::{Map, Value, json};

pub(super) fn put_rules(record: &mut Record, rules: &[wire::RuleMatch]) {
    let Some(first) = rules.first() else { return };
    record.text("rule.name", &first.name);
    record.text("rule.id", &first.id);
    record.text("rule.description", &first.description);
    if !first.author.is_empty() {
        record.put("rule.author", vec![first.author.as_str()]); // ECS: always an array
    }
    record.text("rule.reference", &first.reference);
    record.text("rule.ruleset", &first.namespace);
    put_techniques(record, rules);
    record.put("vidette.rules", rules.iter().map(rule).collect::<Vec<_>>());
}

/// Of all rules, each once, in the order of the rules.
fn put_techniques(record: &mut Record, rules: &[wire::RuleMatch]) {
    let mut techniques: Vec<&str> = Vec::new();
    for technique in rules.iter().flat_map(|rule| &rule.techniques) {
        if !techniques.contains(&technique.as_str()) {
            techniques.push(technique);
        }
    }
    if !techniques.is_empty() {
        record.put("threat.framework", "MITRE ATT&CK");
        record.list("threat.technique.id", &techniques);
    }
}

fn rule(rule: &wire::RuleMatch) -> Value {
    let mut object = Map::new();
    for (field, text) in [
        ("name", rule.name.as_str()),
        ("ruleset", &rule.namespace),
        ("id", &rule.id),
        ("description", &rule.description),
        ("severity", words::severity(rule.severity)),
        ("author", &rule.author),
        ("reference", &rule.reference),
    ] {
        if !text.is_empty() {
            object.insert(field.to_owned(), text.into());
        }
    }
    for (field, list) in [("techniques", &rule.techniques), ("tags", &rule.tags)] {
        if !list.is_empty() {
            object.insert(field.to_owned(), list.clone().into());
        }
    }
    if !rule.patterns.is_empty() {
        object.insert("patterns".to_owned(), rule.patterns.iter().map(pattern).collect());
    }
    object.into()
}

fn pattern(pattern: &wire::PatternMatch) -> Value {
    json!({
        "identifier": pattern.identifier,
        "offset": pattern.offset,
        "length": pattern.length,
        "data_base64": BASE64.encode(&pattern.data),
    })
}
