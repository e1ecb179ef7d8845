//! What the two halves of the worker say to each other: one protobuf message a packet, bounded in size.
//!
//! Requests come from the parent and are trusted; answers come from a process that may have been taken over by a
//! file, so `Answer::decode_hostile` takes nothing on trust. They go on to `pool` as `super::Scan`.

use super::{RULE_FILES_MAX, SIZE_BYTES_MAX, Scan};
use crate::sys::sandbox::COMPILED_BYTES_MAX;
use prost::Message as _;
use vidette_protocol::limits::{LIST_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, TEXT_BYTES_MAX};
use vidette_protocol::{check, limits, wire};

/// One request without its descriptors. Bytes.
pub const REQUEST_BYTES_MAX: usize = 8192;
/// Files that are handed over at once.
pub const FILES_AT_ONCE_MAX: usize = super::channel::DESCRIPTORS_MAX;
/// Sets of compiled rules: one for each class of files at most.
pub const SETS_MAX: usize = 32;
/// One answer. Bytes.
pub const ANSWER_BYTES_MAX: usize = 144 << 10;
/// All matches of one file, as encoded; what is beyond is left out, least severe first. Bytes.
pub const MATCHES_BYTES_MAX: usize = 96 << 10;
/// Errors and warnings of rules that are told, of all rule files together.
pub const PROBLEMS_MAX: usize = 256;
/// All of them, as encoded. Bytes.
pub const PROBLEMS_BYTES_MAX: usize = 128 << 10;

const _: () = assert!(MATCHES_BYTES_MAX + 4 * TEXT_BYTES_MAX < ANSWER_BYTES_MAX);
const _: () = assert!(PROBLEMS_BYTES_MAX + 4 * TEXT_BYTES_MAX < ANSWER_BYTES_MAX);
const _: () = assert!(
    MATCHES_BYTES_MAX + 4 * PATH_BYTES_MAX + 2 * limits::ARGS_BYTES_MAX + 16 * 1024 < limits::EVENT_BYTES_MAX
);

/// From the parent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    /// What it wants.
    #[prost(oneof = "Ask", tags = "1, 2, 3")]
    pub ask: Option<Ask>,
}

/// What the parent wants.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Ask {
    /// Compile these rules: the only request to a compiling worker.
    #[prost(message, tag = "1")]
    Compile(Compile),
    /// Scan these files.
    #[prost(message, tag = "2")]
    Scan(ScanFiles),
    /// Use these rules: the first request to a scanning worker, and once.
    #[prost(message, tag = "3")]
    Load(Load),
}

/// With a sealed memory file that holds [`RuleFiles`], and an empty file for what comes of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Compile {
    /// The version of the rule set.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Each file is tried alone first: nobody knows yet which one kills compilers.
    #[prost(bool, tag = "2")]
    pub each: bool,
}

/// No rule file's number.
pub const JOINTLY: u32 = u32::MAX;

/// How to look for digests in a table of `clean`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CleanTable {
    /// 32 bytes, of its fingerprints and checksums.
    #[prost(bytes = "vec", tag = "1")]
    pub key: Vec<u8>,
    /// Buckets of states of files.
    #[prost(uint64, tag = "2")]
    pub files: u64,
    /// Buckets of digests.
    #[prost(uint64, tag = "3")]
    pub digests: u64,
    /// 8 bytes: the rules that count.
    #[prost(bytes = "vec", tag = "4")]
    pub version: Vec<u8>,
}

/// With the file that a compiling worker wrote.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Load {
    /// The version of the rule set.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Scans in flight.
    #[prost(uint32, tag = "2")]
    pub threads: u32,
    /// Where in the file what is.
    #[prost(message, repeated, tag = "3")]
    pub sets: Vec<CompiledSet>,
    /// A second descriptor: what is known to be clean.
    #[prost(message, optional, tag = "4")]
    pub clean: Option<CleanTable>,
}

/// Compiled rules for some classes of files, as a part of a file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CompiledSet {
    /// A bit for each class, see `routing`.
    #[prost(uint32, tag = "1")]
    pub classes: u32,
    /// Where it begins. Bytes.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub length: u64,
    /// BLAKE3 of these bytes: what does not have it is not loaded.
    #[prost(bytes = "vec", tag = "4")]
    pub blake3: Vec<u8>,
    /// How many rules.
    #[prost(uint32, tag = "5")]
    pub rules: u32,
}

/// With as many files.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScanFiles {
    /// One for each file, in order.
    #[prost(message, repeated, tag = "1")]
    pub files: Vec<ScanRequest>,
}

/// One file to scan.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScanRequest {
    /// The answer carries it back.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Above it only head and tail are scanned. Bytes.
    #[prost(uint64, tag = "2")]
    pub size_max_bytes: u64,
    /// When the scan is given up. Milliseconds.
    #[prost(uint64, tag = "3")]
    pub timeout_ms: u64,
    /// Bits of [`super::digests`]; any of them asks for digests of the whole file.
    #[prost(uint32, tag = "14")]
    pub digests: u32,
}

/// All rule sources.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuleFiles {
    /// In the order of the rule set.
    #[prost(message, repeated, tag = "1")]
    pub files: Vec<RuleFile>,
}

/// One of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RuleFile {
    /// Its name and namespace.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its source.
    #[prost(bytes = "vec", tag = "2")]
    pub text: Vec<u8>,
}

/// From the worker, as sent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RawAnswer {
    /// What it says.
    #[prost(oneof = "Say", tags = "1, 2, 3, 4, 5, 6")]
    pub say: Option<Say>,
}

/// What the worker says.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Say {
    /// The sandbox is closed, or could not be.
    #[prost(message, tag = "1")]
    Ready(Ready),
    /// The rules of this version can be scanned with.
    #[prost(string, tag = "2")]
    Loaded(String),
    /// Verdicts of some files.
    #[prost(message, tag = "3")]
    Scanned(ScannedFiles),
    /// Its last words: why it ends itself.
    #[prost(string, tag = "4")]
    Dying(String),
    /// The rule file, by its number, that is being compiled now; [`JOINTLY`] when it is all of them.
    #[prost(uint32, tag = "5")]
    Compiling(u32),
    /// The rules are compiled.
    #[prost(message, tag = "6")]
    Compiled(Compiled),
}

/// The rules are compiled, and written.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Compiled {
    /// What came of them.
    #[prost(message, optional, tag = "1")]
    pub loaded: Option<Loaded>,
    /// Where in the file what is; together they serve every class.
    #[prost(message, repeated, tag = "2")]
    pub sets: Vec<CompiledSet>,
}

/// Verdicts of some files.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScannedFiles {
    /// In any order.
    #[prost(message, repeated, tag = "1")]
    pub files: Vec<Scanned>,
}

/// The sandbox is closed, or could not be.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ready {
    /// How much of Landlock this kernel has: `full`, `partial`, `none`.
    #[prost(string, tag = "1")]
    pub landlock: String,
    /// It runs as `nobody`.
    #[prost(bool, tag = "2")]
    pub user_dropped: bool,
    /// Why there is no sandbox; empty when there is.
    #[prost(string, tag = "3")]
    pub failure: String,
}

/// What came of rules.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Loaded {
    /// As in [`Compile`].
    #[prost(string, tag = "1")]
    pub version: String,
    /// How many rules.
    #[prost(uint32, tag = "2")]
    pub rules: u32,
    /// Errors first, then warnings.
    #[prost(message, repeated, tag = "3")]
    pub problems: Vec<Problem>,
    /// How many more there are.
    #[prost(uint32, tag = "4")]
    pub problems_left_out: u32,
}

/// An error or a warning of one rule file.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Problem {
    /// The file's name.
    #[prost(string, tag = "1")]
    pub file: String,
    /// From 1; 0 when it is about no line.
    #[prost(uint32, tag = "2")]
    pub line: u32,
    /// From 1, in characters; 0 when it is about no line.
    #[prost(uint32, tag = "3")]
    pub column: u32,
    /// The compiler's code of it, such as `E001`.
    #[prost(string, tag = "4")]
    pub code: String,
    /// One sentence.
    #[prost(string, tag = "5")]
    pub message: String,
    /// The file was left out because of it; else a warning.
    #[prost(bool, tag = "6")]
    pub error: bool,
    /// The rule that it is in; empty when it is in none, or nobody knows.
    #[prost(string, tag = "7")]
    pub rule: String,
}

impl Problem {
    /// `file:line:column: in rule name: message`, as far as it is known. Not escaped.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { file, line, column, rule, message, .. } = self;
        // Of the file as a whole when there is no line.
        let place = if *line == 0 { String::new() } else { format!(":{line}:{column}") };
        let of_rule = if rule.is_empty() { String::new() } else { format!("in rule {rule}: ") };
        format!("{file}{place}: {of_rule}{message}")
    }
}

/// One file's verdict.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Scanned {
    /// As in [`ScanRequest`].
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// See [`Scan::verdict`].
    #[prost(enumeration = "wire::Verdict", tag = "2")]
    pub verdict: i32,
    /// 32 bytes or none.
    #[prost(bytes = "vec", tag = "3")]
    pub blake3: Vec<u8>,
    /// 32 bytes or none.
    #[prost(bytes = "vec", tag = "4")]
    pub sha256: Vec<u8>,
    /// Most severe first.
    #[prost(message, repeated, tag = "5")]
    pub rules: Vec<wire::RuleMatch>,
    /// See [`Scan::detail`].
    #[prost(string, tag = "6")]
    pub detail: String,
    /// Microseconds.
    #[prost(uint64, tag = "7")]
    pub scan_us: u64,
    /// Bytes.
    #[prost(uint64, tag = "8")]
    pub scanned_bytes: u64,
    /// See [`Scan::stable`].
    #[prost(bool, tag = "9")]
    pub stable: bool,
    /// 20 bytes or none.
    #[prost(bytes = "vec", tag = "14")]
    pub sha1: Vec<u8>,
    /// 16 bytes or none.
    #[prost(bytes = "vec", tag = "15")]
    pub md5: Vec<u8>,
    /// See [`Scan::whole`].
    #[prost(bool, tag = "16")]
    pub whole: bool,
    /// See [`Scan::lasting`].
    #[prost(bool, tag = "17")]
    pub lasting: bool,
    /// See [`Scan::of_the_day`].
    #[prost(bool, tag = "18")]
    pub of_the_day: bool,
}

/// An answer that was checked.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The sandbox is closed, or could not be.
    Ready(Ready),
    /// The rules of this version can be scanned with.
    Loaded(String),
    /// Verdicts, each with the request that it answers; the pool knows whether there is one. At least one.
    Scanned(Vec<(u64, Scan)>),
    /// The rule file, by its number, that is being compiled now; none when it is all of them.
    Compiling(Option<u32>),
    /// The rules are compiled, and where what is.
    Compiled(Loaded, Vec<CompiledSet>),
    /// It ends itself; the text is bounded, not trusted.
    Dying(String),
}

/// An answer that no worker of ours gives.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Hostile {
    /// Not the format, or longer than allowed.
    #[error("the scanner's answer could not be read")]
    Unreadable,
    /// A field that can't be.
    #[error("the scanner's answer has a bad {0}")]
    Field(&'static str),
}

impl Answer {
    /// Reads an answer of a process that may be in an attacker's hands.
    ///
    /// # Errors
    /// [`Hostile`] for whatever breaks the format, a limit, or the sense of it: a clean file with matches.
    pub fn decode_hostile(bytes: &[u8]) -> Result<Self, Hostile> {
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(Hostile::Unreadable);
        }
        let raw = RawAnswer::decode(bytes).map_err(|_| Hostile::Unreadable)?;
        match raw.say.ok_or(Hostile::Unreadable)? {
            Say::Ready(ready) => {
                at_most(&[(&ready.landlock, NAME_BYTES_MAX), (&ready.failure, TEXT_BYTES_MAX)], "text")?;
                Ok(Self::Ready(ready))
            }
            Say::Loaded(version) => {
                at_most(&[(&version, NAME_BYTES_MAX)], "version")?;
                Ok(Self::Loaded(version))
            }
            Say::Scanned(ScannedFiles { files }) if (1..=FILES_AT_ONCE_MAX).contains(&files.len()) => {
                files.into_iter().map(check_scanned).collect::<Result<_, _>>().map(Self::Scanned)
            }
            Say::Scanned(_) => Err(Hostile::Field("number of files")),
            Say::Compiling(number) => Ok(Self::Compiling((number != JOINTLY).then_some(number))),
            Say::Compiled(compiled) => check_compiled(compiled),
            Say::Dying(reason) => {
                at_most(&[(&reason, TEXT_BYTES_MAX)], "text")?;
                Ok(Self::Dying(reason))
            }
        }
    }
}

/// The sets lie one behind the other within what a compiling worker may write, and every class has one.
fn check_compiled(compiled: Compiled) -> Result<Answer, Hostile> {
    let loaded = check_loaded(compiled.loaded.ok_or(Hostile::Unreadable)?)?;
    let (mut end, mut classes) = (compiled.sets.first().map_or(0, |set| set.offset), 0);
    for set in &compiled.sets {
        if set.offset != end || set.length == 0 || set.blake3.len() != 32 || classes & set.classes != 0 {
            return Err(Hostile::Field("rule set"));
        }
        end = set.offset.checked_add(set.length).ok_or(Hostile::Field("rule set"))?;
        classes |= set.classes;
    }
    if classes != u32::MAX || compiled.sets.len() > SETS_MAX || end > COMPILED_BYTES_MAX {
        return Err(Hostile::Field("rule set"));
    }
    Ok(Answer::Compiled(loaded, compiled.sets))
}

fn check_loaded(loaded: Loaded) -> Result<Loaded, Hostile> {
    at_most(&[(&loaded.version, NAME_BYTES_MAX)], "version")?;
    if loaded.problems.len() > PROBLEMS_MAX {
        return Err(Hostile::Field("number of problems"));
    }
    for problem in &loaded.problems {
        let texts = [
            (&problem.file, PATH_BYTES_MAX),
            (&problem.code, NAME_BYTES_MAX),
            (&problem.rule, NAME_BYTES_MAX),
            (&problem.message, TEXT_BYTES_MAX),
        ];
        at_most(&texts, "problem")?;
    }
    Ok(loaded)
}

fn check_scanned(scanned: Scanned) -> Result<(u64, Scan), Hostile> {
    let verdict = wire::Verdict::try_from(scanned.verdict).map_err(|_| Hostile::Field("verdict"))?;
    let sensible = match verdict {
        wire::Verdict::Clean => scanned.rules.is_empty() && !scanned.blake3.is_empty(),
        wire::Verdict::Matched => {
            !scanned.rules.is_empty() && !scanned.blake3.is_empty() && !scanned.sha256.is_empty()
        }
        wire::Verdict::TooLarge | wire::Verdict::TimedOut | wire::Verdict::Failed => scanned.rules.is_empty(),
        wire::Verdict::Unspecified | wire::Verdict::NotScanned => false,
    };
    if !sensible || (scanned.whole && scanned.blake3.is_empty()) {
        return Err(Hostile::Field("verdict"));
    }
    // Whoever adds these up must not be led beyond all numbers.
    if scanned.scanned_bytes > SIZE_BYTES_MAX {
        return Err(Hostile::Field("number of bytes"));
    }
    for rule in &scanned.rules {
        let severity = wire::Severity::try_from(rule.severity).map_err(|_| Hostile::Field("severity"))?;
        if severity == wire::Severity::Unspecified || rule.techniques.len() > LIST_MAX {
            return Err(Hostile::Field("rule"));
        }
    }
    let detection = wire::Detection { rules: scanned.rules, detail: scanned.detail, ..Default::default() };
    let event = wire::Event { kind: Some(wire::event::Kind::Detection(detection)), ..Default::default() };
    check::event(&event).map_err(|_| Hostile::Field("length"))?;
    let Some(wire::event::Kind::Detection(detection)) = event.kind else { return Err(Hostile::Unreadable) };
    let scan = Scan {
        verdict,
        blake3: digest(&scanned.blake3)?,
        sha256: digest(&scanned.sha256)?,
        sha1: digest(&scanned.sha1)?,
        md5: digest(&scanned.md5)?,
        whole: scanned.whole,
        rules: detection.rules,
        detail: detection.detail,
        scan_us: scanned.scan_us,
        scanned_bytes: scanned.scanned_bytes,
        stable: scanned.stable,
        lasting: scanned.lasting,
        of_the_day: scanned.of_the_day,
    };
    Ok((scanned.id, scan))
}

/// A verdict to be kept on disk, as a worker would send it.
#[must_use]
pub fn encode_kept(scan: &Scan) -> Vec<u8> {
    fn bytes<const N: usize>(digest: Option<[u8; N]>) -> Vec<u8> {
        digest.map(Vec::from).unwrap_or_default()
    }
    let scanned = Scanned {
        id: 0,
        verdict: scan.verdict as i32,
        blake3: bytes(scan.blake3),
        sha256: bytes(scan.sha256),
        rules: scan.rules.clone(),
        detail: scan.detail.clone(),
        scan_us: scan.scan_us,
        scanned_bytes: scan.scanned_bytes,
        stable: scan.stable,
        sha1: bytes(scan.sha1),
        md5: bytes(scan.md5),
        whole: scan.whole,
        lasting: scan.lasting,
        of_the_day: scan.of_the_day,
    };
    scanned.encode_to_vec()
}

/// A verdict that was kept, checked as if a worker had sent it now: the disk is not to be trusted either.
#[must_use]
pub fn decode_kept(bytes: &[u8]) -> Option<Scan> {
    if bytes.len() > ANSWER_BYTES_MAX {
        return None;
    }
    let scanned = Scanned::decode(bytes).ok()?;
    check_scanned(scanned).ok().map(|(_, scan)| scan)
}

fn digest<const N: usize>(bytes: &[u8]) -> Result<Option<[u8; N]>, Hostile> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(Some).map_err(|_| Hostile::Field("digest"))
}

fn at_most(texts: &[(&String, usize)], field: &'static str) -> Result<(), Hostile> {
    if texts.iter().any(|(text, max)| text.len() > *max) { Err(Hostile::Field(field)) } else { Ok(()) }
}

impl RuleFiles {
    /// Whether it is within what a worker takes.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.files.len() <= RULE_FILES_MAX
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    fn matched() -> Scanned {
        Scanned {
            id: 7,
            verdict: wire::Verdict::Matched as i32,
            blake3: vec![1; 32],
            sha256: vec![2; 32],
            rules: vec![wire::RuleMatch {
                name: "rule".into(),
                severity: wire::Severity::High as i32,
                ..Default::default()
            }],
            stable: true,
            lasting: true,
            of_the_day: false,
            ..Default::default()
        }
    }

    fn encode(scanned: Scanned) -> Vec<u8> {
        RawAnswer { say: Some(Say::Scanned(ScannedFiles { files: vec![scanned] })) }.encode_to_vec()
    }

    #[test]
    fn an_honest_answer_is_read() {
        let Answer::Scanned(files) = Answer::decode_hostile(&encode(matched())).unwrap() else { panic!() };
        let [(id, scan)] = files.as_slice() else { panic!() };
        assert_eq!((*id, scan.verdict, scan.rules.len()), (7, wire::Verdict::Matched, 1));
        assert_eq!(scan.blake3, Some([1; 32]));
    }

    type Change = fn(&mut Scanned);

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused: [(&str, Change); 13] = [
            ("clean with matches", |s| s.verdict = wire::Verdict::Clean as i32),
            ("matched without rules", |s| s.rules.clear()),
            ("not scanned", |s| s.verdict = wire::Verdict::NotScanned as i32),
            ("unknown verdict", |s| s.verdict = 99),
            ("more bytes than are ever scanned", |s| s.scanned_bytes = SIZE_BYTES_MAX + 1),
            ("short digest", |s| s.blake3.truncate(31)),
            ("no digest", |s| s.sha256.clear()),
            ("short SHA-1", |s| s.sha1 = vec![0; 19]),
            ("long MD5", |s| s.md5 = vec![0; 17]),
            ("the whole of nothing", |s| {
                (s.verdict, s.whole) = (wire::Verdict::Failed as i32, true);
                (s.rules, s.blake3) = (vec![], vec![]);
            }),
            ("no severity", |s| s.rules[0].severity = 0),
            ("long name", |s| s.rules[0].name = "x".repeat(NAME_BYTES_MAX + 1)),
            ("many rules", |s| s.rules = vec![s.rules[0].clone(); limits::RULES_MAX + 1]),
        ];
        for (what, change) in refused {
            let mut scanned = matched();
            change(&mut scanned);
            assert!(matches!(Answer::decode_hostile(&encode(scanned)), Err(Hostile::Field(_))), "{what}");
        }
        assert_eq!(Answer::decode_hostile(&[]), Err(Hostile::Unreadable));
        assert_eq!(Answer::decode_hostile(&vec![0; ANSWER_BYTES_MAX + 1]), Err(Hostile::Unreadable));
    }

    #[test]
    fn rule_sets_lie_one_behind_the_other_and_serve_every_class_once() {
        let set = |classes: u32, offset: u64, length: u64| CompiledSet {
            classes,
            offset,
            length,
            blake3: vec![0; 32],
            rules: 1,
        };
        let decode = |sets: Vec<CompiledSet>| {
            let compiled = Compiled { loaded: Some(Loaded::default()), sets };
            Answer::decode_hostile(&RawAnswer { say: Some(Say::Compiled(compiled)) }.encode_to_vec())
        };
        assert!(decode(vec![set(1, 0, 10), set(!1, 10, 5)]).is_ok());
        for (what, sets) in [
            ("none", vec![]),
            ("a hole", vec![set(1, 0, 10), set(!1, 11, 5)]),
            ("one upon another", vec![set(1, 0, 10), set(!1, 9, 5)]),
            ("a class twice", vec![set(1, 0, 10), set(u32::MAX, 10, 5)]),
            ("a class without", vec![set(1, 0, 10), set(!3, 10, 5)]),
            ("empty", vec![set(u32::MAX, 0, 0)]),
            ("too large", vec![set(u32::MAX, 0, COMPILED_BYTES_MAX + 1)]),
            ("beyond all numbers", vec![set(1, 0, 1), set(!1, 1, u64::MAX)]),
            ("no digest", vec![CompiledSet { blake3: vec![], ..set(u32::MAX, 0, 1) }]),
        ] {
            assert_eq!(decode(sets), Err(Hostile::Field("rule set")), "{what}");
        }
    }

    #[test]
    fn garbage_is_refused_or_within_every_limit() {
        let honest = encode(matched());
        for seed in 0..2_000u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut bytes = honest.clone();
            for _ in 0..random.random_range(1..8) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            bytes.truncate(random.random_range(0..=bytes.len()));
            let Ok(answer) = Answer::decode_hostile(&bytes) else { continue };
            if let Answer::Scanned(files) = answer {
                assert!((1..=FILES_AT_ONCE_MAX).contains(&files.len()), "seed {seed}");
                for (_, scan) in files {
                    assert!(scan.rules.len() <= limits::RULES_MAX, "seed {seed}");
                    assert!(scan.verdict != wire::Verdict::Clean || scan.rules.is_empty(), "seed {seed}");
                }
            }
        }
    }
}
