//! Rules that loop, eat memory, match without end, kill the compiler, try to get out.

use super::rig::{self, MARKER, file, ready, scan, settings, submit, until, with_rules};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use vidette_agent::sys::sandbox::Violation;
use vidette_agent::worker::poison::Poison;
use vidette_agent::worker::pool::Settings;
use vidette_agent::worker::process::Launcher;
use vidette_agent::worker::{Outcome, RuleSet};
use vidette_protocol::limits::TEXT_BYTES_MAX;
use vidette_protocol::wire::Verdict;

/// Goes on for years for a file that says so; the compiler only warns of it.
const LOOPING: &str = r#"rule looping { strings: $m = "loop-me" condition:
    $m and for all i in (0..40000000) : ( for all j in (0..100000) : ( i + j >= 0 ) ) }"#;

/// Remembers millions of digests for a file that says so.
const EATING: &str = r#"import "hash" rule eating { strings: $m = "eat-me" condition:
    $m and for all i in (0..60000) : ( for all j in (1..100) : ( hash.sha256(i, j) != "x" and hash.md5(i, j) != "y" ) ) }"#;

pub(crate) fn deadly() -> Vec<u8> {
    [b"eat-me".as_slice(), &[b'x'; 60_100]].concat()
}

pub(crate) fn eating() -> &'static str {
    EATING
}

/// Deep enough to exhaust the compiler's stack.
fn bottomless() -> String {
    format!("rule deep {{ condition: {}true{} }}", "(".repeat(200_000), ")".repeat(200_000))
}

#[test]
fn a_rule_that_loops_costs_its_file_alone_and_the_next_is_scanned_meanwhile() {
    let (mut pool, mut said) = ready(settings(with_rules("loop.yar", LOOPING)));
    // Handed over together: the one that loops is in front of the others.
    for (id, content) in [(1, b"loop-me".as_slice()), (2, MARKER), (3, b"clean"), (4, MARKER)] {
        submit(&mut pool, &mut said, id, file(content));
    }
    until(&mut pool, &mut said, |said, _| said.done.len() == 4);
    assert_eq!((said.order[3], said.scan(1).verdict), (1, Verdict::TimedOut), "{said:?}");
    assert_eq!((said.scan(2).verdict, said.scan(4).verdict), (Verdict::Matched, Verdict::Matched));
    assert!(said.died.is_empty() && pool.poison().is_empty(), "the scanner gives it up by itself: {said:?}");
}

#[test]
fn regular_expressions_that_others_backtrack_in_end() {
    let text = r#"rule back { strings: $a = /abcd(x+x+)+y/ $b = /abcd.{0,1000}.{0,1000}.{0,1000}efgh/s condition: any of them }"#;
    let (mut pool, mut said) = ready(settings(with_rules("back.yar", text)));
    let content = [b"abcd".as_slice(), &[b'x'; 3000]].concat().repeat(300);
    submit(&mut pool, &mut said, 1, file(&content));
    scan(&mut pool, &mut said, 2, file(MARKER));
    until(&mut pool, &mut said, |said, _| said.done.len() == 2);
    assert!(matches!(said.scan(1).verdict, Verdict::Clean | Verdict::TimedOut), "{said:?}");
    assert_eq!(said.scan(2).verdict, Verdict::Matched);
    assert!(said.died.is_empty(), "{said:?}");
}

#[test]
fn a_rule_that_takes_all_memory_costs_the_file_that_made_it_and_survives_a_restart() {
    let name = "rules::a_rule_that_takes_all_memory_costs_the_file_that_made_it_and_survives_a_restart";
    if !rig::with_little_memory(name) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("poison");
    let of = |poison| Settings {
        poison,
        timeout: Duration::from_secs(100),
        ..settings(with_rules("eat.yar", EATING))
    };
    let (mut pool, mut said) = ready(of(Poison::at(&list)));
    let killer = file(&deadly());
    submit(&mut pool, &mut said, 1, killer.try_clone().unwrap());
    until(&mut pool, &mut said, |said, _| said.done.contains_key(&1));
    assert!(matches!(&said.done[&1], Outcome::Died(detail) if detail.contains("signal 6")), "{said:?}");
    assert_eq!(said.died.len(), 2, "twice, then never again: {said:?}");
    scan(&mut pool, &mut said, 2, file(MARKER));
    assert_eq!(said.scan(2).verdict, Verdict::Matched);
    scan(&mut pool, &mut said, 3, killer.try_clone().unwrap());
    assert!(matches!(&said.done[&3], Outcome::Died(detail) if detail.starts_with("not tried again")));
    drop(pool);
    // Another agent with the same state folder; the same file; no death.
    let (mut pool, mut said) = ready(of(Poison::at(&list)));
    scan(&mut pool, &mut said, 1, killer);
    assert!(matches!(&said.done[&1], Outcome::Died(detail) if detail.starts_with("not tried again")));
    assert!(said.died.is_empty(), "{said:?}");
}

#[test]
fn a_rule_that_matches_a_million_times_gives_a_bounded_answer() {
    let text = r#"rule million : t { meta: description = "d" strings: $a = "ab" $b = "ba" $c = { 61 ?? 61 } condition: all of them }"#;
    let (mut pool, mut said) = ready(settings(with_rules("million.yar", text)));
    scan(&mut pool, &mut said, 1, file(&b"ab".repeat(1 << 20)));
    let rule = &said.scan(1).rules[0];
    assert!(!rule.patterns.is_empty() && rule.patterns.len() < 1000, "{}", rule.patterns.len());
    scan(&mut pool, &mut said, 2, file(MARKER));
    assert_eq!(said.scan(2).verdict, Verdict::Matched);
    assert!(said.died.is_empty(), "{said:?}");
}

#[test]
fn many_rules_with_everything_as_long_as_it_gets_give_a_bounded_answer() {
    let (long, tags) =
        ("x".repeat(100_000), (0..500).map(|n| format!("tag{n}")).collect::<Vec<_>>().join(" "));
    let rule = |number: usize| {
        format!(
            "rule r{number} : {tags} {{ meta: id = \"{long}\" description = \"{long}\" author = \"\\x1b[31m\" \
             strings: $a = \"vidette-marker\" condition: $a }}\n"
        )
    };
    let text: String = (0..40).map(rule).collect();
    let (mut pool, mut said) = ready(settings(with_rules("long.yar", &text)));
    scan(&mut pool, &mut said, 1, file(&MARKER.repeat(1000)));
    let scan = said.scan(1);
    assert!(scan.verdict == Verdict::Matched && !scan.rules.is_empty(), "{scan:?}");
    assert!(scan.rules.iter().all(|rule| rule.description.len() <= TEXT_BYTES_MAX));
    assert!(said.died.is_empty(), "{said:?}");
}

#[test]
fn a_rule_file_that_kills_the_compiler_is_left_out_by_name() {
    for (name, text) in [
        ("deep.yar", bottomless()),
        ("not.yar", format!("rule deep {{ condition: {}true }}", "not ".repeat(500_000))),
    ] {
        let (mut pool, mut said) = ready(settings(with_rules(name, &text)));
        let problem = &said.loaded[0].problems[0];
        assert!(
            problem.file == name && problem.error && problem.message.contains("kills the compiler"),
            "{problem:?}"
        );
        assert!(said.died.len() == 2 && said.died.iter().all(|died| died.contains(name)), "{said:?}");
        scan(&mut pool, &mut said, 1, file(MARKER));
        assert_eq!(said.scan(1).verdict, Verdict::Matched, "the other files' rules are in use");
    }
}

#[test]
fn a_rule_file_that_takes_all_memory_to_compile_is_left_out_by_name() {
    if !rig::with_little_memory("rules::a_rule_file_that_takes_all_memory_to_compile_is_left_out_by_name") {
        return;
    }
    let many: String = (0..100_000)
        .map(|n| format!("rule r{n} {{ strings: $a = \"{n:08x}{:08x}\" condition: $a }}\n", n * 7919))
        .collect();
    let (mut pool, mut said) = ready(settings(with_rules("many.yar", &many)));
    assert_eq!(said.died.len(), 2, "{said:?}");
    assert!(said.loaded[0].problems.iter().any(|p| p.file == "many.yar" && p.error), "{said:?}");
    scan(&mut pool, &mut said, 1, file(MARKER));
    assert_eq!(said.scan(1).verdict, Verdict::Matched);
}

#[test]
fn no_rule_gets_out() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "rule stolen { condition: true }").unwrap();
    let path = secret.path().display();
    let attempts = [
        format!("include \"{path}\"\n"),
        format!("include \"../../../../../../../../{path}\"\nrule a {{ condition: stolen }}"),
        "include \"/proc/self/environ\"\nrule a { condition: true }".into(),
        "import \"console\" rule a { condition: console.log(\"out\") }".into(),
        "import \"console\" rule a { condition: console.hex(uint32(0)) and console.log(hash.md5(0, 10)) }"
            .into(),
        "import \"vt\" rule a { condition: vt.metadata.new_file }".into(),
        "import \"cuckoo\" rule a { condition: cuckoo.network.http_get(/x/) }".into(),
        format!("import \"{path}\" rule a {{ condition: true }}"),
        "rule a { condition: undefined_external == \"/etc/passwd\" }".into(),
        "rule a { condition: uint8(-1) == 0 or uint32(0x7fffffffffffffff) == 1 }".into(),
        "rule a { strings: $a = \"v\" condition: @a[9223372036854775807] == 1 or !a[-1] == 2 }".into(),
    ];
    let sources = attempts.iter().enumerate().map(|(n, text)| rig::source(&format!("{n}.yar"), text));
    let all: Vec<_> = sources.chain([rig::source("marker.yar", rig::MARKER_RULE)]).collect();
    let launcher = Launcher::of(Path::new(rig::AGENT)).unwrap().with_violation(Violation::Kill);
    let (mut pool, mut said) = ready(Settings { launcher, ..settings(RuleSet::new(all)) });
    for number in 0..9 {
        let refused = said.loaded[0].problems.iter().any(|p| p.error && p.file == format!("{number}.yar"));
        assert!(refused, "{number}: {:?}", said.loaded[0].problems);
    }
    scan(&mut pool, &mut said, 1, file(MARKER));
    let names: Vec<&str> = said.scan(1).rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, ["marker"]);
    assert!(said.died.is_empty(), "not one call that is not allowed: {said:?}");
}

/// One rule for each module that ships, and the files of a system: no call that the sandbox lacks, in either duty.
#[test]
fn every_module_works_where_the_first_violation_kills() {
    let modules = [
        "pe", "elf", "macho", "dotnet", "lnk", "dex", "hash", "math", "string", "time", "magic", "crx", "zip",
    ];
    let import =
        |module: &str| rig::source(module, &format!("import \"{module}\" rule m {{ condition: true }}"));
    let used = r#"import "pe" import "elf" import "macho" import "hash" import "math" import "time"
        rule used { condition: pe.number_of_sections > 0 or elf.number_of_sections > 0 or macho.magic == 1
            or hash.md5(0, filesize) == "x" or math.entropy(0, filesize) > 7.0 or time.now() == 0 }"#;
    let sources = modules.iter().map(|module| import(module)).chain([rig::source("used", used)]);
    let launcher = Launcher::of(Path::new(rig::AGENT)).unwrap().with_violation(Violation::Kill);
    let (mut pool, mut said) = ready(Settings { launcher, ..settings(RuleSet::new(sources.collect())) });
    let mut heads: Vec<Vec<u8>> =
        ["MZ", "\x7fELF\x02\x01\x01", "PK\x03\x04", "dex\n035\0", "%PDF-1.7", "#!/bin/sh"]
            .iter()
            .map(|head| [head.as_bytes(), &[0; 500]].concat())
            .collect();
    heads.push([&[0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1][..], &[0xff; 600]].concat());
    heads.push([&[0xcf, 0xfa, 0xed, 0xfe][..], &[1; 600]].concat());
    heads.push([&[0x4c, 0, 0, 0, 1, 0x14, 2, 0][..], &[7; 600]].concat());
    heads.extend(["/bin/ls", "/usr/bin/env", "/etc/passwd"].iter().map(|path| std::fs::read(path).unwrap()));
    let count = heads.len() as u64;
    for (id, content) in heads.into_iter().enumerate() {
        scan(&mut pool, &mut said, id as u64, file(&content));
    }
    assert!(said.died.is_empty() && said.done.len() as u64 == count, "{said:?}");
    (0..count).for_each(|id| assert_eq!(said.scan(id).verdict, Verdict::Matched));
}

#[test]
fn the_probe_is_denied_everything_in_both_duties() {
    for duty in [&["worker", "--probe"][..], &["worker", "--probe", "--compile"]] {
        let output = Command::new(rig::AGENT).args(duty).output().unwrap();
        let lines = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !lines.contains("ALLOWED"), "{duty:?}: {lines}");
        assert_eq!(lines.matches("errno 1\n").count(), 14, "{duty:?}: {lines}");
        let mut killed = Command::new(rig::AGENT);
        let output = killed.args(duty).arg("--kill-on-violation").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("signal: 31"), "{duty:?}");
    }
}
