//! The `vidette` program as people meet it: what each command prints, where, and with which exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A running collector; killed when the test ends.
struct Served {
    folder: tempfile::TempDir,
    process: Child,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Served {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = serve(folder.path(), &["--listen", "127.0.0.1:0"]).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while !folder.path().join("vidette.sock").exists() {
            assert!(process.try_wait().unwrap().is_none() && Instant::now() < until, "it did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { folder, process }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let state = self.folder.path().to_str().unwrap();
        Command::new(env!("CARGO_BIN_EXE_vidette")).args(arguments).args(["--state", state]).output().unwrap()
    }

    fn out(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.out(&["status", "--json"])).unwrap()
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap().code()
    }
}

fn serve(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vidette"));
    command
        .arg("serve")
        .arg("--state")
        .arg(state)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// One sentence on standard error, nothing on standard output, exit code 2.
fn refused(mut command: Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty());
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("vidette: "), "{error}");
    for part in parts {
        assert!(last.contains(part), "{last:?} says nothing of {part:?}");
    }
}

#[test]
fn it_starts_from_nothing_answers_and_ends_in_order() {
    let mut served = Served::start();
    let status = served.status();
    assert_eq!(status["agents"], 0);
    assert_eq!(status["pin"].as_str().unwrap().len(), 64);
    assert_eq!(status["sinks"][0]["name"], "alerts");
    assert!(served.out(&["status"]).lines().count() < 24, "one screen");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(served.folder.path()).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(served.terminate(), Some(0));
    assert!(!served.folder.path().join("vidette.sock").exists());
}

#[test]
fn a_token_is_one_line_and_can_be_listed_and_revoked() {
    let served = Served::start();
    let line = served.out(&[
        "tokens",
        "create",
        "--label",
        "rack\u{1b}[2J",
        "--address",
        "collector.example.org:7441",
    ]);
    assert_eq!(line.lines().count(), 1);
    let invitation: vidette_protocol::join::Invitation = line.trim_end().parse().unwrap();
    assert_eq!(invitation.address.to_string(), "collector.example.org:7441");
    assert_eq!(data_encoding::HEXLOWER.encode(&invitation.pin), served.status()["pin"]);
    let list = served.out(&["tokens", "list"]);
    assert!(!list.contains('\u{1b}') && list.contains("rack"), "{list:?}");
    let row: Value = serde_json::from_str(&served.out(&["tokens", "list", "--json"])).unwrap();
    assert_eq!(row["state"], "open");
    let id = row["id"].as_str().unwrap();
    served.out(&["tokens", "revoke", id]);
    let row: Value = serde_json::from_str(&served.out(&["tokens", "list", "--json"])).unwrap();
    assert_eq!(row["state"], "revoked");
    assert_eq!(served.run(&["tokens", "create", "--for", "25h"]).status.code(), Some(2));
}

#[test]
fn empty_lists_say_what_to_do_on_standard_error() {
    let served = Served::start();
    for arguments in [
        &["agents", "list"][..],
        &["tokens", "list"],
        &["alerts", "list"],
        &["events", "list", "--since", "2h"],
    ] {
        let output = served.run(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in
        [&["agents", "show", "nobody"][..], &["alerts", "show", "5"], &["tokens", "revoke", "nothing"]]
    {
        let output = served.run(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
    }
}

#[test]
fn what_prevents_a_start_is_one_sentence() {
    let served = Served::start();
    let port = served.status()["listen"].as_str().unwrap().to_owned();
    refused(serve(served.folder.path(), &[]), &["another `vidette serve`", "--state"]);
    let folder = tempfile::tempdir().unwrap();
    refused(serve(folder.path(), &["--listen", &port]), &["is taken", "--listen"]);
    let file = folder.path().join("file");
    std::fs::write(&file, "listen = 5\n").unwrap();
    let path = file.to_str().unwrap();
    refused(serve(&folder.path().join("state"), &["--config", path]), &["line 1", path]);
    refused(
        serve(&folder.path().join("state"), &["--config", "/nowhere.toml"]),
        &["/nowhere.toml", "--config"],
    );
    refused(serve(&file, &[]), &["state folder", path]);
    refused(serve(Path::new("/proc/vidette"), &[]), &["state folder", "/proc/vidette"]);
    refused(serve(folder.path(), &["--log", "a=b=c"]), &["--log"]);
}

#[test]
fn without_a_collector_every_command_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let commands = [
        &["status"][..],
        &["tokens", "create"],
        &["agents", "list"],
        &["alerts", "follow"],
        &["events", "list"],
        &["sinks", "list"],
    ];
    for arguments in commands {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vidette"));
        command.args(arguments).arg("--state").arg(folder.path());
        refused(command, &["no collector answers", "vidette serve", "--state"]);
    }
}

#[test]
fn a_reader_that_has_enough_ends_a_command_quietly() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vidette"));
    let mut process =
        command.args(["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}
