//! The commands as they really run: `scan` and `rules check`, their words and exit codes.

#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vidette_agent::worker::pool::IDLE_TIME;

const AGENT: &str = env!("CARGO_BIN_EXE_vidette-agent");
/// For an agent to come up, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Put together at run time, so that no scanner takes this file for it.
fn eicar() -> Vec<u8> {
    ["X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR", "-STANDARD-ANTIVIRUS-", "TEST-FILE!$H+H*"].concat().into_bytes()
}

const MARKER_RULES: &str = r#"
private rule hidden { condition: true }
rule marker { meta: severity = "Critical" strings: $marker = "vidette-marker-string" condition: $marker and hidden }
"#;

fn agent(arguments: &[&str]) -> Output {
    Command::new(AGENT).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What came of it: exit code, standard output, standard error.
fn told(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = agent(arguments);
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn scan_finds_reports_and_exits_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("clean"), "clean").unwrap();
    let clean = agent(&["scan", folder.path().to_str().unwrap()]);
    assert_eq!((clean.status.code(), clean.stdout.len()), (Some(0), 0), "{}", text(&clean.stderr));
    std::fs::create_dir(path("deep")).unwrap();
    std::fs::write(path("deep/bad\u{1b}[31m"), eicar()).unwrap();
    let found = agent(&["scan", folder.path().to_str().unwrap()]);
    let out = text(&found.stdout);
    assert_eq!((found.status.code(), out.lines().count()), (Some(1), 1), "{out}{}", text(&found.stderr));
    assert!(out.contains("deep/bad\\x1b[31m") && !out.contains('\u{1b}'), "{out}");
    let missing = agent(&["scan", &path("missing")]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("could not scan") && text(&missing.stderr).contains("missing"));
    let json = agent(&["scan", "--json", folder.path().to_str().unwrap()]);
    let lines = text(&json.stdout);
    assert_eq!((json.status.code(), lines.lines().count()), (Some(1), 1));
    assert!(serde_json::from_str::<serde_json::Value>(lines.trim()).unwrap().is_object());
}

#[test]
fn scan_does_not_open_what_could_hang() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
    let all = [folder.path(), &fifo, &socket, Path::new("/dev/zero"), Path::new("/dev/null")];
    let mut arguments = vec!["scan", "--follow"];
    arguments.extend(all.iter().map(|path| path.to_str().unwrap()));
    let output = agent(&arguments);
    let said = text(&output.stderr);
    // What was named and is no file is an error; what only lies in a folder is passed over.
    assert_eq!((output.status.code(), said.matches("it is no regular file").count()), (Some(2), 4), "{said}");
    let output = agent(&["scan", "--follow", folder.path().to_str().unwrap()]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("0 files"), "{said}");
}

#[test]
fn a_tree_deeper_than_anybody_needs_is_told_and_not_fallen_into() {
    let folder = tempfile::tempdir().unwrap();
    let deep = (0..300).fold(folder.path().to_owned(), |path, _| path.join("d"));
    std::fs::create_dir_all(deep).unwrap();
    std::fs::write(folder.path().join("d/eicar"), eicar()).unwrap();
    let output = agent(&["scan", folder.path().to_str().unwrap()]);
    let said = text(&output.stderr);
    assert!(said.contains("deeper than 256 folders"), "{said}");
    assert_eq!((output.status.code(), text(&output.stdout).lines().count()), (Some(1), 1), "{said}");
}

#[test]
fn a_scan_without_usable_rules_is_an_error_and_not_clean() {
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("bad.yar");
    std::fs::write(&bad, "rule {").unwrap();
    let target = folder.path().to_str().unwrap();
    for arguments in [
        vec!["scan", "--no-builtin-rules", target],
        vec!["scan", "--no-builtin-rules", "--rules", bad.to_str().unwrap(), target],
        vec!["scan", "--rules", "/nonexistent.yar", target],
    ] {
        let output = agent(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn rules_check_names_file_line_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let good = write("good.yar", MARKER_RULES);
    let include = write("include.yar", "\ninclude \"other.yar\"\n");
    let slow = write("slow.yar", "rule slow {\n  strings:\n    $a = /[a-z]+/\n  condition: $a\n}");
    let output = agent(&["rules", "check", &good]);
    assert_eq!(output.status.code(), Some(0), "{}{}", text(&output.stdout), text(&output.stderr));
    let output = agent(&["rules", "check", &good, &include, &slow]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("include.yar:2:1: error") && said.contains("put the included rules into the file"),
        "{said}"
    );
    assert!(said.contains("slow.yar:3:5: error") && said.contains("slow pattern"), "{said}");
    assert!(said.contains("good.yar: ok"), "{said}");
    let json = agent(&["rules", "check", "--json", &include]);
    let object: serde_json::Value = serde_json::from_str(text(&json.stdout).trim()).unwrap();
    assert_eq!((object["ok"].as_bool(), object["problems"][0]["line"].as_u64()), (Some(false), Some(2)));
    assert_eq!(agent(&["rules", "check", "/nonexistent.yar"]).status.code(), Some(2));
    let hostile = write("a\x1b[31m\nb.yar", MARKER_RULES);
    let said = text(&agent(&["rules", "check", &hostile]).stdout);
    assert!(said.contains("/a\\x1b[31m\\x0ab.yar: ok") || said.contains("/a\\x1b[31m\\nb.yar: ok"), "{said}");
}

#[test]
fn what_is_named_twice_or_lies_within_another_is_scanned_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir_all(path("tree/deep")).unwrap();
    std::fs::write(path("tree/deep/bad"), eicar()).unwrap();
    let (tree, deep, bad) = (path("tree"), path("tree/deep"), path("tree/deep/bad"));
    for named in [vec![&tree, &tree], vec![&bad, &deep, &tree], vec![&bad, &bad], vec![&deep, &tree, &bad]] {
        let mut arguments = vec!["scan", "--no-cache"];
        arguments.extend(named.iter().map(|path| path.as_str()));
        let (code, out, said) = told(&arguments);
        assert_eq!((code, out.lines().count()), (Some(1), 1), "{named:?}: {out}{said}");
        assert!(said.starts_with("1 files"), "{named:?}: {said}");
    }
}

/// In a mount namespace of its own, which goes with it.
#[test]
fn another_file_system_within_a_folder_is_scanned_when_it_is_named_too() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("tree/mount")).unwrap();
    std::fs::write(folder.path().join("eicar"), eicar()).unwrap();
    let script = r#"mount -t tmpfs none tree/mount; cp eicar tree/mount/
        "$AGENT" scan --no-cache tree/mount tree || echo "code $?"
        "$AGENT" scan --no-cache --cross-filesystems tree/mount tree || echo "code $?""#;
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", script]).env("AGENT", AGENT).current_dir(folder.path());
    let output = command.output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(out.matches("code 1").count(), 2, "{out}{said}");
    assert_eq!((out.matches("tree/mount/eicar").count(), out.lines().count()), (2, 4), "{out}{said}");
}

#[test]
fn a_number_of_threads_that_can_not_be_is_refused_with_the_bounds() {
    for number in ["0", "17", "100000", "many"] {
        let (code, out, said) = told(&["scan", "--threads", number, "/bin/true"]);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{number}: {said}");
        assert!(number == "many" || said.contains("is not in 1..=16"), "{number}: {said}");
    }
    let (code, _, said) = told(&["scan", "--threads", "3", "--max-size", "256MiB", "/bin/true"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("--threads 3 does not go with --max-size 256MiB") && said.contains("at most 2"),
        "{said}"
    );
    assert_eq!(
        told(&["scan", "--threads", "16", "--max-size", "32MiB", "--no-cache", "/bin/true"]).0,
        Some(0)
    );
}

#[test]
fn mistakes_in_hash_lists_are_not_called_errors_in_rules() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("list.txt"), format!("{}\nno digest\n", "0".repeat(64))).unwrap();
    std::fs::write(path("bad.yar"), "rule broken {").unwrap();
    let of = |more: &[&str]| {
        let arguments = [&["scan", "--no-cache", "/bin/true"], more].concat();
        let (code, _, said) = told(&arguments);
        assert_eq!(code, Some(2), "{said}");
        (said.contains("errors in rules"), said.contains("mistakes in hash lists"))
    };
    assert_eq!(of(&["--hashes", &path("list.txt")]), (false, true));
    assert_eq!(of(&["--rules", &path("bad.yar")]), (true, false));
    assert_eq!(of(&["--rules", &path("bad.yar"), "--hashes", &path("list.txt")]), (true, true));
}

#[test]
fn of_a_sparse_file_it_is_said_that_its_data_were_scanned_or_how_much_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, data: usize| {
        let path = folder.path().join(name);
        let mut file = std::fs::File::create(&path).unwrap();
        std::io::Write::write_all(&mut file, &vec![b'x'; data]).unwrap();
        file.set_len(1 << 30).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let scan = |path: &str| told(&["scan", "--no-cache", "--max-size", "1MiB", path]);
    let (code, _, said) = scan(&file("little", 4096));
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("sparse: all its data were scanned, 4096 bytes, and not its holes, 1073737728 bytes"),
        "{said}"
    );
    assert!(said.contains("1 not scanned whole, being larger than --max-size"), "{said}");
    let (code, _, said) = scan(&file("much", 2 << 20));
    assert_eq!(code, Some(2), "{said}");
    let words = "truncated: 1048576 of 1073741824 bytes were scanned, the first data of a sparse file";
    assert!(said.contains(words), "{said}");
}

#[test]
fn rules_check_names_the_rule_that_costs_its_file_and_warns_of_a_severity_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let short =
        write("short.yar", "rule good { condition: true }\nrule short { strings: $a = \"a\" condition: $a }");
    let urgent = write("urgent.yar", "rule urgent { meta: severity = \"urgent\" condition: true }");
    let (code, out, _) = told(&["rules", "check", &short, &urgent]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("short.yar:2:23: error[E018] in rule short: slow pattern"), "{out}");
    assert!(
        out.contains("short.yar: left out as a whole, with all its rules, for the error in rule short"),
        "{out}"
    );
    assert!(
        out.contains("urgent.yar:1:1: warning in rule urgent: unknown severity `urgent`: medium is used"),
        "{out}"
    );
    assert!(out.contains("urgent.yar: ok") && out.contains("2 files, 1 rules usable"), "{out}");
    let (code, out, _) = told(&["rules", "check", "--json", &urgent]);
    let object: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
    let problem = &object["problems"][0];
    assert_eq!((code, object["ok"].as_bool()), (Some(0), Some(true)), "{out}");
    assert_eq!(
        (problem["level"].as_str(), problem["rule"].as_str()),
        (Some("warning"), Some("urgent")),
        "{out}"
    );
}

/// The service, until it is dropped.
struct Running {
    agent: Child,
    state: String,
}

impl Running {
    fn start(config: &str, state: &str) -> Self {
        let mut agent = Command::new(AGENT);
        agent.args(["run", "--config", config, "--state", state]);
        let agent = agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let running = Self { agent, state: state.to_owned() };
        let begin = Instant::now();
        while running.status()["rules"].as_u64().unwrap_or(0) == 0 {
            assert!(begin.elapsed() < PATIENCE, "{}", running.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        running
    }

    /// Null while it does not answer.
    fn status(&self) -> serde_json::Value {
        let (_, out, _) = told(&["status", "--json", "--state", &self.state]);
        serde_json::from_str(&out).unwrap_or_default()
    }

    /// Exit code and words, without the end of a line.
    fn reload(&self) -> (Option<i32>, String) {
        let (code, out, said) = told(&["reload", "--state", &self.state]);
        assert_eq!(said, "", "{out}");
        (code, out.trim_end().to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

#[test]
fn a_running_agent_reads_rules_and_lists_anew_and_says_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let rule = |name: &str| format!("rule {name} {{ strings: $m = \"{name}-marker\" condition: $m }}\n");
    ["watched", "rules", "state"].iter().for_each(|name| std::fs::create_dir(path(name)).unwrap());
    std::fs::write(path("rules/one.yar"), rule("one")).unwrap();
    std::fs::write(path("list.txt"), format!("{}\n", "1".repeat(64))).unwrap();
    let config = format!(
        "[sensors]\nwatch = [{:?}]\nlevel = \"polling\"\n[detection]\nbuiltin_rules = false\nrules = [{:?}]\nhashes = [{:?}]\n[sweep]\npaths = [{:?}]\n",
        path("watched"),
        path("rules"),
        path("list.txt"),
        path("watched")
    );
    std::fs::write(path("agent.toml"), config).unwrap();
    let none = told(&["reload", "--state", &path("state")]);
    assert!(none.0 == Some(2) && none.2.contains("no agent runs"), "{none:?}");

    let agent = Running::start(&path("agent.toml"), &path("state"));
    let version = |of: &serde_json::Value| of["rules_version"].as_str().unwrap().to_owned();
    let first = version(&agent.status());
    let begin = Instant::now();
    let (code, said) = agent.reload();
    // A scanner that has them already is not waited for until it rests.
    assert!(begin.elapsed() < IDLE_TIME / 2, "{:?}", begin.elapsed());
    assert_eq!((code, said.lines().count()), (Some(0), 2), "{said}");
    assert!(said.starts_with(&format!("Rules: 1 in use, version {first}, as before")), "{said}");
    assert!(said.contains("Hash lists: 1 digests of 1 lists") && said.ends_with("as before"), "{said}");

    // More of both.
    std::fs::write(path("rules/two.yar"), rule("two")).unwrap();
    std::fs::write(path("list.txt"), format!("{}\n{}\n", "1".repeat(64), "2".repeat(64))).unwrap();
    let (code, said) = agent.reload();
    assert!(
        code == Some(0) && said.starts_with("Rules: 2 in use, version ") && said.contains(", new\n"),
        "{said}"
    );
    assert!(said.contains("Hash lists: 2 digests of 1 lists") && said.ends_with(", new"), "{said}");
    let second = version(&agent.status());
    assert_ne!(first, second);

    // A mistake in one file costs that file.
    std::fs::write(path("rules/three.yar"), "rule three {").unwrap();
    let (code, said) = agent.reload();
    assert!(code == Some(1) && said.starts_with("Rules: 2 in use"), "{said}");
    assert!(said.contains("left out: ") && said.contains("three.yar"), "{said}");

    // None that can be used: those before stay.
    for name in ["one", "two"] {
        std::fs::write(path(&format!("rules/{name}.yar")), "rule broken {").unwrap();
    }
    let (code, said) = agent.reload();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("The new rules are not in use") && said.contains("Rules: 2 in use"), "{said}");
    let (code, out, _) = told(&["reload", "--json", "--state", &path("state")]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["rules"]), (Some(2), &2.into()), "{json}");
    assert!(json["rules_refused"].as_str().unwrap().contains("could be compiled"), "{json}");
    assert!(told(&["status", "--state", &path("state")]).1.contains("rules not in use"));

    // And mended: as it was.
    std::fs::remove_file(path("rules/three.yar")).unwrap();
    ["one", "two"]
        .iter()
        .for_each(|name| std::fs::write(path(&format!("rules/{name}.yar")), rule(name)).unwrap());
    let (code, said) = agent.reload();
    assert!(code == Some(0) && said.starts_with(&format!("Rules: 2 in use, version {second}")), "{said}");
    assert!(!told(&["status", "--state", &path("state")]).1.contains("not in use"));
}
