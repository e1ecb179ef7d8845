//! The `vidette` program as people meet it: what each command prints, where, and with which exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod stored;

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use stored::Events;
use vidette_collector::cli::socket::{answers::Office, server, socket_path};
use vidette_collector::identity::Identity;
use vidette_collector::ingest::{Fleet, Tally};
use vidette_collector::outside::{Lookout, Sources};
use vidette_collector::sinks::Overview;
use vidette_collector::stop;

/// A running collector; killed when the test ends.
struct Served {
    state: PathBuf,
    _folder: Option<tempfile::TempDir>,
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
        Self::start_in(folder.path().to_owned(), Some(folder))
    }

    fn start_in(state: PathBuf, folder: Option<tempfile::TempDir>) -> Self {
        let mut process = serve(&state, &["--listen", "127.0.0.1:0"]).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while !state.join("vidette.sock").exists() {
            assert!(process.try_wait().unwrap().is_none() && Instant::now() < until, "it did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { state, _folder: folder, process }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let state = self.state.to_str().unwrap();
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
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&served.state).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(served.terminate(), Some(0));
    assert!(!served.state.join("vidette.sock").exists());
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
    refused(serve(&served.state, &[]), &["another `vidette serve`", "--state"]);
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

/// The admin socket over a store that the test fills itself.
struct Answering {
    folder: tempfile::TempDir,
    events: Events,
    _stopper: stop::Stopper,
    _runtime: tokio::runtime::Runtime,
}

impl Answering {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::new(&folder.path().join("store"));
        let identity = Identity::open(&folder.path().join("identity")).unwrap();
        let lookout = Lookout::new(Sources {
            identity: identity.clone(),
            store: events.handle(),
            fleet: Fleet::default(),
            tally: Tally::default(),
            sinks: Overview::default(),
            connections_max: 1,
            heartbeat_s: 60,
        });
        let office = Office {
            identity,
            store: events.handle(),
            fleet: Fleet::default(),
            notices: None,
            sinks: Overview::default(),
            lookout,
            listen: "127.0.0.1:7441".parse().unwrap(),
            advertise: "localhost:7441".parse().unwrap(),
        };
        let (stopper, stop) = stop::channel();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = {
            let _guard = runtime.enter();
            server::bind(&socket_path(folder.path())).unwrap()
        };
        runtime.spawn(server::serve(listener, office, stop));
        Self { folder, events, _stopper: stopper, _runtime: runtime }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vidette"));
        command.args(arguments).arg("--socket").arg(socket_path(self.folder.path()));
        command
    }

    fn out(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn alerts_are_listed_filtered_and_shown_without_a_control_byte() {
    let answering = Answering::start();
    answering.events.append(7);
    let table = answering.out(&["alerts", "list"]);
    assert_eq!(table.lines().count(), 8, "a heading and a line for each: {table}");
    let shown = answering.out(&["alerts", "show", "3"]);
    for text in [&table, &shown] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
    let json = answering.out(&["alerts", "list", "--json"]);
    assert_eq!(json.lines().count(), 7);
    assert!(json.is_ascii());
    let last: Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert!(last.is_object());
    let numbers: Vec<&str> =
        table.lines().skip(1).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(numbers, ["7", "6", "5", "4", "3", "2", "1"], "newest first");
    let by_id = answering.out(&["alerts", "show", &answering.events.id(3), "--json"]);
    assert_eq!(by_id, answering.out(&["alerts", "show", "#3", "--json"]));
    let counts = [
        (&["--limit", "2"][..], 2),
        (&["--rule", "EICAR"], 7),
        (&["--rule", "other"], 0),
        (&["--severity", "high"], 7),
        (&["--severity", "critical"], 0),
        (&["--kind", "gap"], 0),
        (&["--kind", "gap", "--kind", "detection"], 7),
        (&["--until", "2001-01-01"], 0),
    ];
    for (filters, expected) in counts {
        let arguments: Vec<&str> = ["alerts", "list", "--json"].iter().chain(filters).copied().collect();
        assert_eq!(answering.out(&arguments).lines().count(), expected, "{filters:?}");
    }
}

#[test]
fn the_state_folder_may_be_a_link() {
    let (folder, links) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let link = links.path().join("vidette");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let served = Served::start_in(link, Some(folder));
    served.status();
    let backup = links.path().join("backup");
    for arguments in
        [&["status"][..], &["tokens", "create"], &["store", "check"], &["backup", backup.to_str().unwrap()]]
    {
        served.out(arguments);
    }
}

#[test]
fn what_was_backed_up_beside_a_running_collector_is_one_again() {
    let mut served = Served::start();
    let folder = tempfile::tempdir().unwrap();
    let (backup, state) = (folder.path().join("backup"), folder.path().join("state"));
    served.out(&["tokens", "create", "--label", "before"]);
    let made = served.out(&["backup", backup.to_str().unwrap()]);
    assert!(made.starts_with("backed up: ") && made.lines().count() == 1, "{made}");
    served.out(&["tokens", "create", "--label", "after"]);
    let pin = served.status()["pin"].clone();
    let again = served.run(&["backup", backup.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"), "{again:?}");
    let over = served.run(&["restore", backup.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&over.stderr).contains("is not empty"), "{over:?}");
    served.terminate();
    let vidette = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vidette"));
        command.args(arguments).arg("--state").arg(&state).output().unwrap()
    };
    let restored = vidette(&["restore", backup.to_str().unwrap()]);
    assert_eq!(restored.status.code(), Some(0), "{restored:?}");
    assert_eq!(vidette(&["store", "check"]).status.code(), Some(0));
    // As a restore that was killed leaves it.
    std::fs::create_dir(state.join("restoring")).unwrap();
    refused(serve(&state, &["--listen", "127.0.0.1:0"]), &["restore", "restoring"]);
    std::fs::remove_dir(state.join("restoring")).unwrap();
    let served = Served::start_in(state, None);
    assert_eq!(served.status()["pin"], pin, "the same CA");
    let tokens = served.out(&["tokens", "list"]);
    assert!(tokens.contains("before") && !tokens.contains("after"), "{tokens}");
}

#[test]
fn a_check_of_the_store_finds_what_is_gone_and_what_was_changed() {
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().join("store");
    let check = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vidette"));
        command.args(["store", "check", "--state"]).arg(state.path()).args(arguments);
        command.output().unwrap()
    };
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no store"), "{output:?}");
    let events = Events::new(&folder);
    events.append(30);
    // Beside a store that is in use.
    let output = check(&[]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!((output.status.code(), table.lines().count()), (Some(0), 2), "{table}");
    let day = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    let day = day.into_iter().find(|path| path.extension().is_some_and(|end| end == "db")).unwrap();
    let db = rusqlite::Connection::open(&day).unwrap();
    let changes = "DELETE FROM alert WHERE id IN (7, 8); UPDATE alert SET body = x'00' WHERE id = 12";
    db.execute_batch(changes).unwrap();
    let output = check(&["--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((&found["events"], &found["missing"], &found["damaged"]), (&28.into(), &2.into(), &1.into()));
    let output = check(&[]);
    assert!(
        String::from_utf8_lossy(&output.stdout).lines().last().unwrap().ends_with("damaged"),
        "{output:?}"
    );
    assert!(output.stderr.is_empty(), "no progress for a program: {output:?}");
}

#[test]
fn following_shows_what_is_stored_from_then_on() {
    let answering = Answering::start();
    answering.events.append(2);
    let mut followers: Vec<Child> = [&["--json"][..], &[], &["--rule", "other"]]
        .iter()
        .map(|more| {
            let arguments: Vec<&str> = ["alerts", "follow"].iter().chain(*more).copied().collect();
            answering.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    // Nothing says that a follower has begun: events keep coming until each has seen one.
    let mut first = Vec::new();
    for follower in followers.iter_mut().take(2) {
        let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(lines.next().unwrap().unwrap()));
        let until = Instant::now() + Duration::from_secs(30);
        first.push(loop {
            answering.events.append(1);
            if let Ok(line) = receiver.recv_timeout(Duration::from_millis(50)) {
                break line;
            }
            assert!(Instant::now() < until, "a follower has seen nothing");
        });
    }
    assert!(serde_json::from_str::<Value>(&first[0]).unwrap().is_object());
    assert!(first[1].contains("EICAR") && !first[1].chars().any(char::is_control), "{first:?}");
    let mut other = followers.pop().unwrap();
    other.kill().unwrap();
    assert!(other.wait_with_output().unwrap().stdout.is_empty(), "the filter holds");
    for mut follower in followers {
        let _ = follower.kill();
        let _ = follower.wait();
    }
}

#[test]
fn a_collector_that_goes_away_ends_a_follower_with_an_error() {
    let answering = Answering::start();
    let follower = answering
        .command(&["alerts", "follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(answering);
    let output = follower.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!output.stderr.is_empty());
}
