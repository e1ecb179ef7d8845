//! Rules that only together are too much, or that take too long to compile.

use super::rig::{self, MARKER, MARKER_RULE, Said, file, ready, scan, settings, source, until, with_rules};
use std::fmt::Write as _;
use std::time::{Duration, Instant};
use vidette_agent::worker::RuleSet;
use vidette_agent::worker::compiler::{SILENCE_MAX, STRIKES_MAX};
use vidette_agent::worker::pool::Pool;
use vidette_protocol::wire::Verdict;

/// What a compiler may have here. Bytes.
const MEMORY_BYTES: u64 = 64 << 20;

/// Few rules with long conditions: cheap to take, dear to translate, which is the joint step.
fn wordy(rules: usize, terms: usize) -> String {
    let mut text = String::new();
    for rule in 0..rules {
        let term = |term: usize| format!("uint32({}) == {}", rule + term, rule * 977 + term);
        let condition = (0..terms).map(term).collect::<Vec<_>>().join(" or ");
        writeln!(text, "rule w{rule} {{ condition: {condition} }}").unwrap();
    }
    text
}

/// Many rules that the compiler keeps in memory from the first to the last step.
fn many(rules: usize) -> String {
    let rule = |n: usize| {
        format!("rule r{n} {{ strings: $a = \"{n:08x}{:08x}\" condition: $a }}\n", n * 7919 % (1 << 32))
    };
    (0..rules).map(rule).collect()
}

#[test]
fn rules_that_are_too_much_together_cost_the_largest_file_and_the_others_are_in_force() {
    let name = "together::rules_that_are_too_much_together_cost_the_largest_file_and_the_others_are_in_force";
    if !rig::with_memory(name, MEMORY_BYTES) {
        return;
    }
    let (small, large) = (wordy(10, 280), many(10_000));
    // Each fits alone.
    for (name, text) in [("wordy.yar", &small), ("many.yar", &large)] {
        let (_, said) = ready(settings(with_rules(name, text)));
        assert!(said.died.is_empty() && said.loaded[0].problems.is_empty(), "{name}: {said:?}");
    }
    let sources = [("marker.yar", MARKER_RULE), ("wordy.yar", &small), ("many.yar", &large)];
    let rules = RuleSet::new(sources.map(|(name, text)| source(name, text)).to_vec());
    let (mut pool, mut said) = ready(settings(rules));
    assert!(
        said.died.iter().all(|died| died.starts_with("the compiler died: signal 6")),
        "by none: {said:?}"
    );
    assert!(said.died.last().unwrap().contains("many.yar"), "{said:?}");
    let [problem] = said.loaded[0].problems.as_slice() else { panic!("{said:?}") };
    assert!(problem.error && problem.file == "many.yar", "{problem:?}");
    assert!(problem.message.contains("too much together"), "{problem:?}");
    assert_eq!(said.loaded[0].rules, 11);
    scan(&mut pool, &mut said, 1, file(MARKER));
    assert_eq!(said.scan(1).verdict, Verdict::Matched);
}

#[test]
fn a_file_that_kills_only_when_all_are_worked_on_together_is_found_by_trying_each() {
    let name = "together::a_file_that_kills_only_when_all_are_worked_on_together_is_found_by_trying_each";
    if !rig::with_memory(name, MEMORY_BYTES) {
        return;
    }
    let text = wordy(20, 500);
    let sources = [("marker.yar", MARKER_RULE), ("wordy.yar", &text), ("many.yar", &many(2_000))];
    let rules = RuleSet::new(sources.map(|(name, text)| source(name, text)).to_vec());
    let (mut pool, mut said) = ready(settings(rules));
    let [joint, first, second] = said.died.as_slice() else { panic!("{said:?}") };
    assert_eq!(joint, "the compiler died: signal 6", "nobody knows which");
    for died in [first, second] {
        assert_eq!(died, "the compiler died in the rule file wordy.yar: signal 6", "tried alone");
    }
    let [problem] = said.loaded[0].problems.as_slice() else { panic!("{said:?}") };
    assert!(problem.file == "wordy.yar" && problem.message.contains("kills the compiler"), "{problem:?}");
    assert_eq!(said.loaded[0].rules, 2_001);
    scan(&mut pool, &mut said, 1, file(MARKER));
    assert_eq!(said.scan(1).verdict, Verdict::Matched);
}

/// The clock that the pool is given runs ahead while the compiler is at the file.
#[test]
fn a_rule_file_that_takes_too_long_to_compile_is_said_to_take_too_long() {
    let mut pool = Pool::new(settings(with_rules("long.yar", "rule long { condition: true }")));
    let mut said = Said::default();
    said.take(pool.prepare(Instant::now()));
    for _ in 0..STRIKES_MAX {
        // The second file: the pool shows where its compiler is.
        until(&mut pool, &mut said, |_, pool| format!("{pool:?}").contains("current: Some(1)"));
        said.take(pool.tick(Instant::now() + SILENCE_MAX + Duration::from_secs(1)));
    }
    until(&mut pool, &mut said, |said, _| !said.loaded.is_empty());
    let expected = "the rule file long.yar took more than 120 s to compile; the compiler was replaced";
    assert_eq!(said.died, [expected; 2]);
    let [problem] = said.loaded[0].problems.as_slice() else { panic!("{said:?}") };
    assert_eq!(problem.sentence(), "long.yar: the file takes too long to compile: more than 120 s");
    scan(&mut pool, &mut said, 1, file(MARKER));
    assert_eq!(said.scan(1).verdict, Verdict::Matched);
}
