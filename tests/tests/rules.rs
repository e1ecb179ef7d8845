//! The rules that ship: each says what it must, matches its samples and nothing else, and leaves the files of
//! this machine's packages alone. Everything is asked through the `vidette-agent` binary.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use vidette_protocol::ecs::words;

/// Rules that the project promises at least.
const RULES_MIN: usize = 25;
/// What a rule's `meta` must hold.
const METAS: [&str; 6] = ["id", "description", "severity", "author", "reference", "technique"];
/// The whole machine, as far as packages put files there.
const PACKAGE_FOLDERS: [&str; 3] = ["/usr", "/etc", "/opt"];

/// A rule as its source says it.
#[derive(Debug, Default)]
struct Rule {
    name: String,
    metas: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Samples {
    sample: Vec<Sample>,
}

/// Content that is put together only when a test runs, so that no file of the project looks like malware.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    rule: String,
    matches: bool,
    name: String,
    /// Hexadecimal, spaces ignored; comes before the parts.
    #[serde(default)]
    hex: String,
    #[serde(default)]
    parts: Vec<String>,
    /// Other rules that match it too, and may.
    #[serde(default)]
    also: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReviewedList {
    reviewed: Vec<Reviewed>,
}

/// A match on a packaged file that somebody has looked at.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reviewed {
    rule: String,
    path: String,
    why: String,
}

/// One rule on one file, as the agent reports it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Match {
    path: String,
    rule: String,
    id: String,
    severity: String,
}

impl Sample {
    fn content(&self) -> Vec<u8> {
        let hex = self.hex.replace(' ', "");
        let mut content = data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        content.extend(self.parts.concat().bytes());
        content
    }

    fn expected(&self) -> BTreeSet<&str> {
        let own = self.matches.then_some(self.rule.as_str());
        self.also.iter().map(String::as_str).chain(own).collect()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("rules")
}

/// Files below the rules' folder that end in `extension`.
fn files(extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Every rule of the sources. They are written one `name = "value"` a line, which this relies on.
fn rules() -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for file in files("yar") {
        let mut in_meta = false;
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            let text = line.trim();
            if let Some(rest) = line.strip_prefix("rule ") {
                let name = rest.split([' ', ':', '{']).next().unwrap().to_owned();
                rules.push(Rule { name, ..Default::default() });
            } else if text.ends_with(':') {
                in_meta = text == "meta:";
            } else if let (true, Some((key, value))) = (in_meta, text.split_once(" = ")) {
                let rule = rules.last_mut().unwrap();
                let value = value.trim_matches('"').to_owned();
                let before = rule.metas.insert(key.to_owned(), value);
                assert!(before.is_none(), "{}: `{key}` twice", rule.name);
            }
        }
    }
    rules
}

fn samples() -> Vec<Sample> {
    let read = |file: &PathBuf| -> Samples {
        let text = std::fs::read_to_string(file).unwrap();
        toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    };
    files("toml")
        .iter()
        .filter(|file| !file.ends_with("reviewed.toml"))
        .flat_map(|file| read(file).sample)
        .collect()
}

fn reviewed() -> Vec<Reviewed> {
    let text = std::fs::read_to_string(folder().join("reviewed.toml")).unwrap();
    toml::from_str::<ReviewedList>(&text).unwrap().reviewed
}

/// The agent that was built with these tests, or the one that `VIDETTE_AGENT` names.
fn agent() -> Command {
    let built = || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("vidette-agent");
    let binary = std::env::var_os("VIDETTE_AGENT").map_or_else(built, PathBuf::from);
    assert!(binary.is_file(), "{} is missing: run the tests with --workspace", binary.display());
    Command::new(binary)
}

/// Scans with the rules of the source tree and nothing else.
fn scan(paths: &[&Path]) -> (Vec<Match>, Output) {
    let mut command = agent();
    command.args(["scan", "--json", "--no-builtin-rules", "--rules"]).arg(folder()).args(paths);
    let output = command.output().unwrap();
    let matches = String::from_utf8(output.stdout.clone()).unwrap().lines().flat_map(matches_of).collect();
    (matches, output)
}

/// Scans `paths` and a test file that must match, so that a scan that saw nothing is not taken for a clean one.
fn scan_beside_a_control(paths: &[&Path]) -> (Vec<Match>, Output) {
    let control = tempfile::tempdir().unwrap();
    let samples = samples();
    let eicar = samples.iter().find(|sample| sample.rule == "EICAR_Test_File" && sample.matches).unwrap();
    std::fs::write(control.path().join("control"), eicar.content()).unwrap();
    let all: Vec<&Path> = paths.iter().copied().chain([control.path()]).collect();
    let (found, output) = scan(&all);
    let (in_control, elsewhere): (Vec<Match>, Vec<Match>) =
        found.into_iter().partition(|found| Path::new(&found.path).starts_with(control.path()));
    assert_eq!(in_control.len(), 1, "the control was not found: {}", stderr(&output));
    (elsewhere, output)
}

fn matches_of(line: &str) -> Vec<Match> {
    let record: serde_json::Value = serde_json::from_str(line).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let path = text(&record["file.path"]);
    let rules = record["vidette.rules"].as_array().cloned().unwrap_or_default();
    let of = |rule: &serde_json::Value| Match {
        path: path.clone(),
        rule: text(&rule["name"]),
        id: text(&rule["id"]),
        severity: text(&rule["severity"]),
    };
    rules.iter().map(of).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether `path` is `pattern`, in which `*` stands for any run of characters.
fn fits(pattern: &str, path: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == path };
    let Some(tail) = path.strip_prefix(start) else { return false };
    (0..=tail.len()).any(|at| tail.is_char_boundary(at) && fits(rest, &tail[at..]))
}

/// Matches of severity medium or above that nobody has looked at.
fn unexplained<'a>(matches: &'a [Match], reviewed: &[Reviewed]) -> Vec<&'a Match> {
    let serious = |found: &Match| !matches!(found.severity.as_str(), "info" | "low");
    let known = |found: &Match| {
        reviewed.iter().any(|entry| entry.rule == found.rule && fits(&entry.path, &found.path))
    };
    matches.iter().filter(|found| serious(found) && !known(found)).collect()
}

fn is_technique(text: &str) -> bool {
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(number) = text.strip_prefix('T') else { return false };
    match number.split_once('.') {
        None => digits(number, 4),
        Some((technique, sub)) => digits(technique, 4) && digits(sub, 3),
    }
}

#[test]
fn every_rule_says_what_it_must() {
    let rules = rules();
    assert!(rules.len() >= RULES_MIN, "{} rules", rules.len());
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for Rule { name, metas } in &rules {
        assert_eq!(metas.keys().map(String::as_str).collect::<BTreeSet<_>>(), METAS.into(), "{name}");
        assert!(names.insert(name), "{name}: the name is taken");
        let id = &metas["id"];
        assert!(ids.insert(id), "{name}: {id} is taken");
        let number = id.strip_prefix("VID-").unwrap_or_default();
        assert!(number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit()), "{name}: {id}");
        assert!(words::severity_of(&metas["severity"]).is_some(), "{name}: severity {}", metas["severity"]);
        assert!(metas["technique"].split(',').all(is_technique), "{name}: technique {}", metas["technique"]);
        assert!(metas["reference"].starts_with("https://"), "{name}: reference {}", metas["reference"]);
        assert!(metas["description"].len() >= 20, "{name}: description {}", metas["description"]);
        assert_eq!(metas["author"], "Vidette project", "{name}");
    }
}

#[test]
fn every_rule_has_a_sample_that_matches_and_one_that_does_not() {
    let names: BTreeSet<String> = rules().into_iter().map(|rule| rule.name).collect();
    let samples = samples();
    for name in &names {
        for matches in [true, false] {
            let found = samples.iter().any(|sample| &sample.rule == name && sample.matches == matches);
            assert!(found, "{name} has no sample with matches = {matches}");
        }
    }
    for sample in samples {
        let named = [&sample.rule].into_iter().chain(&sample.also);
        named.for_each(|name| assert!(names.contains(name), "{}: there is no rule {name}", sample.name));
    }
}

#[test]
fn the_scanner_has_nothing_to_say_against_the_rules() {
    let output = agent().args(["rules", "check"]).arg(folder()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("warning"), "{said}");
    assert!(said.contains(&format!("{} rules usable", rules().len())), "{said}");
}

#[test]
fn samples_match_their_rule_and_no_other() {
    let (rules, samples) = (rules(), samples());
    let folder = tempfile::tempdir().unwrap();
    for (at, sample) in samples.iter().enumerate() {
        std::fs::write(folder.path().join(format!("{at:04}")), sample.content()).unwrap();
    }
    let (found, output) = scan(&[folder.path()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    for (at, sample) in samples.iter().enumerate() {
        let end = format!("/{at:04}");
        let of_sample: Vec<&Match> = found.iter().filter(|found| found.path.ends_with(&end)).collect();
        let names: BTreeSet<&str> = of_sample.iter().map(|found| found.rule.as_str()).collect();
        assert_eq!(names, sample.expected(), "{}: {}", sample.rule, sample.name);
        for found in of_sample {
            let metas = &rules.iter().find(|rule| rule.name == found.rule).unwrap().metas;
            assert_eq!((&found.id, &found.severity), (&metas["id"], &metas["severity"]), "{}", found.rule);
        }
    }
}

#[test]
fn the_rules_and_their_samples_do_not_match_themselves() {
    let (found, _) = scan_beside_a_control(&[&folder()]);
    assert_eq!(found, Vec::new());
}

#[test]
fn a_match_that_nobody_has_looked_at_is_found_out() {
    let found = |path: &str, rule: &str, severity: &str| Match {
        path: path.into(),
        rule: rule.into(),
        id: "VID-0000".into(),
        severity: severity.into(),
    };
    let matches = [
        found("/usr/lib/php/dev/setup.php", "A", "high"),
        found("/usr/lib/php/setup.php", "A", "high"),
        found("/usr/lib/php/dev/setup.php", "B", "medium"),
        found("/usr/bin/packed", "C", "low"),
    ];
    let entry = Reviewed { rule: "A".into(), path: "/usr/*/dev/setup.php".into(), why: String::new() };
    assert_eq!(unexplained(&matches, &[entry]), [&matches[1], &matches[2]]);
}

#[test]
fn reviewed_matches_name_a_rule_and_a_reason() {
    let names: BTreeSet<String> = rules().into_iter().map(|rule| rule.name).collect();
    for entry in reviewed() {
        assert!(names.contains(&entry.rule), "there is no rule {}", entry.rule);
        assert!(entry.why.len() >= 20, "{}: why?", entry.path);
        assert!(entry.path.trim_matches('*').len() >= 8, "{}: too wide", entry.path);
    }
}

#[test]
fn packaged_files_of_this_machine_do_not_match() {
    let paths: Vec<&Path> = PACKAGE_FOLDERS.iter().map(Path::new).collect();
    let (in_packages, output) = scan_beside_a_control(&paths);
    println!("{}", stderr(&output));
    let mut by_severity: BTreeMap<&str, usize> = BTreeMap::new();
    in_packages.iter().for_each(|found| *by_severity.entry(&found.severity).or_default() += 1);
    println!("matches by severity: {by_severity:?}");
    assert_eq!(unexplained(&in_packages, &reviewed()), Vec::<&Match>::new());
}
