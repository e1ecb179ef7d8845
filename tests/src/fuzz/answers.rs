//! The target `answers`: bytes as a worker in wrong hands may send them, through the parent's decoder. Whatever it lets through is
//! measured against every limit again, here, by itself.

use super::behaviour::Behaviour;
use super::bytes::name;
use super::{Kind, Observed, Target};
use prost::Message as _;
use rand::Rng as _;
use rand::rngs::StdRng;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use vidette_agent::sys::sandbox::COMPILED_BYTES_MAX;
use vidette_agent::worker::messages::{
    ANSWER_BYTES_MAX, Answer, Compiled, CompiledSet, FILES_AT_ONCE_MAX, Loaded, PROBLEMS_MAX, Problem,
    RawAnswer, Ready, SETS_MAX, Say, Scanned, ScannedFiles,
};
use vidette_agent::worker::{SIZE_BYTES_MAX, Scan};
use vidette_protocol::limits::{
    EVENT_BYTES_MAX, LIST_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, PATTERN_DATA_BYTES_MAX, PATTERNS_MAX,
    RULES_MAX, TEXT_BYTES_MAX,
};
use vidette_protocol::wire::{self, RuleMatch, Verdict};

/// No answer may keep the parent busy for longer.
const DECODE_TIME_MAX: Duration = Duration::from_secs(2);

/// Tags, lengths without an end, groups, numbers of eleven bytes.
const WORDS: &[&[u8]] = &[
    b"\x0a\x00",
    b"\x1a\x02\x0a\x00",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0b\x0c",
    b"\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\x2a\x00",
    b"\x2a\x02\x52\x00",
    b"\x22\x20",
    b"\x1b[2J",
    b"\xff",
];

/// The parent's decoder.
#[derive(Debug, Default)]
pub struct Answers;

impl Target for Answers {
    fn name(&self) -> &'static str {
        "answers"
    }

    fn batch(&self) -> usize {
        256
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        RawAnswer { say: Some(say(random)) }.encode_to_vec()
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        Ok(inputs.iter().map(|input| decode(input)).collect())
    }
}

fn decode(input: &[u8]) -> Observed {
    let began = Instant::now();
    let decoded = catch_unwind(AssertUnwindSafe(|| Answer::decode_hostile(input)));
    let time = began.elapsed();
    let answer = match decoded {
        Err(_) => return Observed::found(Kind::Limit, "the decoder panicked".into()),
        Ok(_) if time > DECODE_TIME_MAX => {
            return Observed::found(Kind::Limit, format!("decoding took {} ms", time.as_millis()));
        }
        Ok(Err(hostile)) => return Observed::fine(Behaviour::new(hostile.to_string(), [], time)),
        Ok(Ok(answer)) => answer,
    };
    match broken(&answer) {
        Some(limit) => Observed::found(Kind::Limit, format!("an answer was let through with {limit}")),
        None => Observed::fine(Behaviour::new("read".into(), marks(&answer), time)),
    }
}

/// Which limit an answer is past.
#[must_use]
pub fn broken(answer: &Answer) -> Option<&'static str> {
    let long = |text: &str, max: usize| text.len() > max;
    match answer {
        Answer::Ready(ready) => (long(&ready.landlock, NAME_BYTES_MAX)
            || long(&ready.failure, TEXT_BYTES_MAX))
        .then_some("a long text"),
        Answer::Loaded(version) => long(version, NAME_BYTES_MAX).then_some("a long version"),
        Answer::Dying(reason) => long(reason, TEXT_BYTES_MAX).then_some("long last words"),
        Answer::Compiling(_) => None,
        Answer::Compiled(loaded, sets) => broken_problems(loaded).or_else(|| broken_sets(sets)),
        Answer::Scanned(files) if !(1..=FILES_AT_ONCE_MAX).contains(&files.len()) => {
            Some("a bad number of files")
        }
        Answer::Scanned(files) => files.iter().find_map(|(_, scan)| broken_scan(scan)),
    }
}

fn broken_problems(loaded: &Loaded) -> Option<&'static str> {
    let long = |problem: &Problem| {
        problem.file.len() > PATH_BYTES_MAX
            || problem.code.len() > NAME_BYTES_MAX
            || problem.message.len() > TEXT_BYTES_MAX
    };
    if loaded.version.len() > NAME_BYTES_MAX || loaded.problems.iter().any(long) {
        return Some("a long problem");
    }
    (loaded.problems.len() > PROBLEMS_MAX).then_some("many problems")
}

/// Every class once, no byte twice, nothing beyond the file.
fn broken_sets(sets: &[CompiledSet]) -> Option<&'static str> {
    let classes: u32 = sets.iter().map(|set| set.classes.count_ones()).sum();
    let all = sets.iter().fold(0, |all, set| all | set.classes);
    let lengths: u128 = sets.iter().map(|set| u128::from(set.length)).sum();
    let inside = |set: &CompiledSet| u128::from(set.offset) + u128::from(set.length) <= lengths;
    if classes != u32::BITS || all != u32::MAX {
        return Some("a class without rules, or with two sets");
    }
    if lengths > u128::from(COMPILED_BYTES_MAX) || !sets.iter().all(inside) {
        return Some("a set beyond its file");
    }
    (sets.len() > SETS_MAX || sets.iter().any(|set| set.blake3.len() != 32))
        .then_some("many sets, or without digest")
}

fn broken_scan(scan: &Scan) -> Option<&'static str> {
    let sensible = match scan.verdict {
        Verdict::Matched => !scan.rules.is_empty() && scan.blake3.is_some() && scan.sha256.is_some(),
        Verdict::Clean => scan.rules.is_empty() && scan.blake3.is_some(),
        Verdict::TooLarge | Verdict::TimedOut | Verdict::Failed => scan.rules.is_empty(),
        Verdict::Unspecified | Verdict::NotScanned => false,
    };
    if !sensible {
        return Some("a verdict without sense");
    }
    if scan.scanned_bytes > SIZE_BYTES_MAX {
        return Some("more bytes than are ever scanned");
    }
    if scan.rules.len() > RULES_MAX || scan.detail.len() > TEXT_BYTES_MAX {
        return Some("many rules or a long text");
    }
    // As an event, beside what the agent adds itself.
    let event = wire::Detection { rules: scan.rules.clone(), ..Default::default() };
    if event.encoded_len() > ANSWER_BYTES_MAX.min(EVENT_BYTES_MAX) {
        return Some("more than an event holds");
    }
    scan.rules.iter().find_map(broken_rule)
}

fn broken_rule(rule: &RuleMatch) -> Option<&'static str> {
    let texts = [&rule.id, &rule.description, &rule.author, &rule.reference];
    let long_list =
        |list: &Vec<String>| list.len() > LIST_MAX || list.iter().any(|text| text.len() > NAME_BYTES_MAX);
    if rule.name.len() > NAME_BYTES_MAX || rule.namespace.len() > PATH_BYTES_MAX {
        return Some("a long name");
    }
    if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX)
        || long_list(&rule.tags)
        || long_list(&rule.techniques)
    {
        return Some("a long text or list");
    }
    if !(1..=5).contains(&rule.severity) {
        return Some("a severity that is none");
    }
    let long = |pattern: &wire::PatternMatch| {
        pattern.identifier.len() > NAME_BYTES_MAX || pattern.data.len() > PATTERN_DATA_BYTES_MAX
    };
    (rule.patterns.len() > PATTERNS_MAX || rule.patterns.iter().any(long)).then_some("many or long patterns")
}

/// Which answer, and roughly how much of what.
fn marks(answer: &Answer) -> Vec<String> {
    let log = |what: &str, count: usize| format!("{what} 2^{}", (count + 1).ilog2());
    match answer {
        Answer::Ready(ready) => vec!["ready".into(), log("failure", ready.failure.len())],
        Answer::Loaded(version) => vec![log("version", version.len())],
        Answer::Dying(reason) => vec![log("dying", reason.len())],
        Answer::Compiling(_) => vec!["compiling".into()],
        Answer::Compiled(loaded, sets) => {
            vec![log("problems", loaded.problems.len()), log("sets", sets.len())]
        }
        Answer::Scanned(files) => {
            let mut marks = vec![log("files", files.len())];
            for (_, scan) in files {
                let patterns = scan.rules.iter().map(|rule| rule.patterns.len()).sum();
                marks.push(format!("{:?}", scan.verdict));
                marks.extend([log("rules", scan.rules.len()), log("patterns", patterns)]);
            }
            marks
        }
    }
}

fn say(random: &mut StdRng) -> Say {
    match random.random_range(0..10) {
        0 => Say::Ready(Ready { landlock: "full".into(), user_dropped: true, failure: name(random) }),
        1 => Say::Loaded(name(random)),
        2 => Say::Dying(name(random)),
        3 => Say::Compiling(random.random()),
        4 | 5 => Say::Compiled(compiled(random)),
        _ => {
            let count = random.random_range(1..=FILES_AT_ONCE_MAX);
            Say::Scanned(ScannedFiles { files: (0..count).map(|_| scanned(random)).collect() })
        }
    }
}

fn compiled(random: &mut StdRng) -> Compiled {
    let problem = |random: &mut StdRng| Problem {
        file: name(random),
        line: random.random(),
        column: random.random(),
        code: "E001".into(),
        message: name(random),
        error: random.random(),
        rule: name(random),
    };
    let problems = (0..random.random_range(0..6)).map(|_| problem(random)).collect();
    let loaded = Loaded {
        version: name(random),
        rules: random.random(),
        problems,
        problems_left_out: random.random(),
    };
    let (mut sets, mut offset, mut left) = (Vec::new(), 0, u32::MAX);
    while left != 0 {
        let classes =
            if sets.len() > 3 { left } else { left & (random.random::<u32>() | 1 << left.trailing_zeros()) };
        let length = random.random_range(1..4096);
        sets.push(CompiledSet { classes, offset, length, blake3: vec![7; 32], rules: random.random() });
        (offset, left) = (offset + length, left & !classes);
    }
    Compiled { loaded: Some(loaded), sets }
}

fn scanned(random: &mut StdRng) -> Scanned {
    let matched = random.random();
    let rules: Vec<RuleMatch> =
        if matched { (0..random.random_range(1..4)).map(|_| rule(random)).collect() } else { Vec::new() };
    let verdict = if matched { Verdict::Matched } else { Verdict::Clean };
    Scanned {
        id: random.random_range(0..64),
        verdict: verdict as i32,
        blake3: vec![1; 32],
        whole: random.random_bool(0.5),
        sha1: vec![],
        md5: vec![],
        sha256: if matched { vec![2; 32] } else { Vec::new() },
        rules,
        detail: name(random),
        scan_us: random.random_range(0..99_999),
        scanned_bytes: random.random_range(0..99_999),
        stable: true,
        lasting: true,
        of_the_day: false,
    }
}

fn rule(random: &mut StdRng) -> RuleMatch {
    let pattern = |random: &mut StdRng| wire::PatternMatch {
        identifier: "$a".into(),
        offset: random.random(),
        length: random.random(),
        data: name(random).into_bytes().into_iter().take(PATTERN_DATA_BYTES_MAX).collect(),
    };
    RuleMatch {
        name: name(random).chars().take(60).collect(),
        namespace: name(random),
        description: name(random),
        severity: random.random_range(1..6),
        tags: vec!["tag".into(); random.random_range(0..3)],
        patterns: (0..random.random_range(0..4)).map(|_| pattern(random)).collect(),
        ..Default::default()
    }
}
