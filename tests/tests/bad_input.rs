//! Bad input gives one clear sentence that names the thing and the next step, the right exit code, and loses
//! nothing that was committed.

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Output;
use vidette_tests::programs::{Agent, Collector, call, wait_for};
use vidette_tests::samples;

fn check(output: &Output, code: i32, expected: &[&str]) {
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in expected {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_configuration_with_a_mistake_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("x.toml");
    let state = text(&folder.path().join("state"));
    for (program, command, written, expected) in [
        ("vidette-agent", "run", "[sensors", "line 1"),
        ("vidette-agent", "run", "[sensors]\nwach = [\"/\"]", "unknown field `wach`"),
        ("vidette-agent", "run", "[sensors]\nwatch = [\"tmp\"]", "`tmp` is not an absolute path"),
        ("vidette", "serve", "[[sink]\n", "line 1"),
        ("vidette", "serve", "lissten = \"x\"", "unknown field `lissten`"),
        ("vidette", "serve", "[[sink]]\nname = \"a\"\ntype = \"jsonl\"\npath = \"alerts.jsonl\"", "absolute"),
    ] {
        fs::write(&file, written).expect("written");
        let output =
            call(program, &[command, "--config", &text(&file), "--state", &state], "").expect("called");
        check(&output, 2, &[expected, &text(&file)]);
    }
    for (program, command) in [("vidette-agent", "run"), ("vidette", "serve")] {
        let output = call(program, &[command, "--config", "/nonexistent.toml", "--state", &state], "")
            .expect("called");
        check(&output, 2, &["/nonexistent.toml"]);
    }
}

#[test]
fn a_rule_with_a_mistake_is_named_and_the_others_go_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = folder.path().join("good.yar");
    fs::write(&good, "rule good { strings: $a = \"apples\" condition: $a }").expect("written");
    let syntax = folder.path().join("syntax.yar");
    fs::write(&syntax, "rule broken {\n  condition:\n    true and\n}\n").expect("written");
    let include = folder.path().join("include.yar");
    fs::write(&include, "include \"/etc/passwd\"\nrule x { condition: true }\n").expect("written");
    check(&call("vidette-agent", &["rules", "check", &text(&good)], "").expect("called"), 0, &["good.yar"]);
    check(
        &call("vidette-agent", &["rules", "check", &text(&syntax)], "").expect("called"),
        1,
        &["syntax.yar", "4"],
    );
    let output = call("vidette-agent", &["rules", "check", &text(&include)], "").expect("called");
    check(&output, 1, &["include.yar", "include"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("root:"), "the included file leaked");

    let sample = folder.path().join("sample.txt");
    fs::write(&sample, samples::control()).expect("written");
    let rules = text(folder.path());
    let output =
        call("vidette-agent", &["scan", "--no-builtin-rules", "--rules", &rules, &text(&sample)], "")
            .expect("called");
    check(&output, 1, &["good", "syntax.yar"]);
}

#[test]
fn scan_says_clean_matched_or_error_by_its_exit_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let (clean, bad) = (folder.path().join("clean"), folder.path().join("bad"));
    fs::write(&clean, samples::control()).expect("written");
    fs::write(&bad, samples::eicar()).expect("written");
    check(&call("vidette-agent", &["scan", &text(&clean)], "").expect("called"), 0, &[]);
    check(&call("vidette-agent", &["scan", &text(&bad)], "").expect("called"), 1, &["bad"]);
    check(&call("vidette-agent", &["scan", "/nonexistent"], "").expect("called"), 2, &["/nonexistent"]);
    check(&call("vidette-agent", &["scan"], "").expect("called"), 2, &["Usage"]);
}

#[test]
fn joining_with_a_bad_invitation_says_which() {
    let folder = tempfile::tempdir().expect("a folder");
    let collector = Collector::start(folder.path(), "").expect("a collector");
    let join = |state: &str, line: &str| {
        call("vidette-agent", &["join", "--state", &text(&folder.path().join(state))], &format!("{line}\n"))
            .expect("called")
    };
    let invitation = collector.invitation().expect("an invitation");
    check(&join("a", "nonsense"), 2, &["vidette://"]);
    let pin = invitation.find("pin=").expect("a pin") + 4;
    let mut wrong = invitation.clone();
    wrong.replace_range(pin..pin + 2, if &invitation[pin..pin + 2] == "00" { "11" } else { "00" });
    check(&join("b", &wrong), 2, &["pin"]);
    check(&join("c", &invitation), 0, &[]);
    check(&join("d", &invitation), 2, &["used"]);
    check(&join("c", &collector.invitation().expect("another")), 2, &["already"]);

    let short = collector.vidette(&["tokens", "create", "--for", "1s"]).expect("called");
    check(&short, 0, &["vidette://"]);
    let line = String::from_utf8_lossy(&short.stdout).into_owned();
    let start = line.find("vidette://").expect("an invitation");
    let line: String = line[start..].chars().take_while(|c| !c.is_whitespace() && *c != '\'').collect();
    std::thread::sleep(std::time::Duration::from_millis(2100));
    check(&join("e", &line), 2, &["expired"]);

    let gone = invitation.replace(&collector.port.to_string(), "9");
    check(&join("f", &gone), 2, &["127.0.0.1:9"]);
}

#[test]
fn a_port_that_is_taken_and_a_state_that_is_in_use_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let address = socket.local_addr().expect("an address").to_string();
    let output =
        call("vidette", &["serve", "--state", &text(&folder.path().join("s")), "--listen", &address], "")
            .expect("called");
    let port = address.rsplit(':').next().expect("a port");
    check(&output, 2, &[&format!("UDP port {port} is taken")]);

    let collector = Collector::start(folder.path(), "").expect("a collector");
    let output =
        call("vidette", &["serve", "--state", &text(&collector.state), "--listen", "127.0.0.1:0"], "")
            .expect("called");
    check(&output, 2, &[&text(&collector.state)]);
}

#[test]
fn a_state_folder_that_can_not_be_made_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("written");
    let inside = text(&file.join("state"));
    for (program, command) in [("vidette-agent", "run"), ("vidette", "serve")] {
        check(&call(program, &[command, "--state", &inside], "").expect("called"), 2, &[&inside]);
    }
}

#[test]
fn commands_without_a_server_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = text(folder.path());
    check(
        &call("vidette", &["alerts", "list", "--state", &state], "").expect("called"),
        2,
        &["vidette serve"],
    );
    check(
        &call("vidette-agent", &["status", "--state", &state], "").expect("called"),
        2,
        &["vidette-agent run"],
    );
}

#[test]
fn a_damaged_outbox_is_set_aside_and_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().join("host");
    fs::create_dir(&watched).expect("made");
    let collector = Collector::start(folder.path(), "").expect("a collector");
    let mut agent = Agent::prepare(folder.path(), &watched, "", "").expect("an agent");
    agent.join(&collector.invitation().expect("an invitation")).expect("joined");
    for damage in [&b"not a database at all"[..], &b"SQLite format 3\0garbage"[..], &[0; 8192]] {
        agent.start().expect("a damaged outbox does not stop the agent");
        let name = format!("after-{}", damage.len());
        fs::write(watched.join(&name), samples::eicar()).expect("written");
        wait_for("a detection", || {
            let alerts = collector.lines(&["alerts", "list", "--kind", "detection"])?;
            Ok(alerts
                .iter()
                .any(|alert| alert["file.path"].as_str().is_some_and(|path| path.ends_with(&name)))
                .then_some(()))
        })
        .expect("the agent goes on");
        // A clean end, so that no write-ahead log is left that could mend it.
        let status = agent.program.take().expect("it runs").stop().expect("a clean end");
        assert_eq!(status.code(), Some(0), "{}", agent.said());
        fs::write(agent.state.join("outbox/outbox.db"), damage).expect("damaged");
    }
    agent.start().expect("a damaged outbox does not stop the agent");
    wait_for("a gap for each", || {
        let gaps = collector.lines(&["alerts", "list", "--kind", "gap"])?;
        Ok((gaps.iter().filter(|gap| gap["vidette.gap.reason"] == "outbox_damaged").count() == 3)
            .then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", agent.said()));
}

#[test]
fn a_damaged_store_is_set_aside_and_the_collector_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().join("host");
    fs::create_dir(&watched).expect("made");
    let mut collector = Collector::start(folder.path(), "").expect("a collector");
    let mut agent = Agent::prepare(folder.path(), &watched, "", "").expect("an agent");
    agent.join(&collector.invitation().expect("an invitation")).expect("joined");
    agent.start().expect("started");
    let arrive = |collector: &Collector, name: &str| {
        fs::write(watched.join(name), samples::eicar()).expect("written");
        wait_for("a detection", || {
            let alerts = collector.lines(&["alerts", "list", "--kind", "detection"])?;
            Ok(alerts
                .iter()
                .any(|alert| alert["file.path"].as_str().is_some_and(|path| path.ends_with(name)))
                .then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}", collector.said()));
    };
    arrive(&collector, "before");
    collector.program.take().expect("it runs").stop().expect("a clean end");
    let files: Vec<_> = fs::read_dir(collector.state.join("store"))
        .expect("listed")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let mut bytes = fs::read(&files[0]).expect("read");
    bytes[4096..8192].fill(0xa5);
    fs::write(&files[0], bytes).expect("damaged");
    collector.resume().expect("a damaged store does not stop the collector");
    arrive(&collector, "after");
    assert!(collector.said().contains("set aside"), "{}", collector.said());
}

#[test]
fn a_foreign_database_in_the_store_is_named_and_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("state/store");
    fs::create_dir_all(&store).expect("made");
    let foreign = store.join("events-00000001-20260101.db");
    let database = rusqlite::Connection::open(&foreign).expect("made");
    database.execute_batch("PRAGMA application_id = 42; CREATE TABLE theirs (x);").expect("made");
    drop(database);
    let before = fs::read(&foreign).expect("read");
    let state = text(&folder.path().join("state"));
    let output =
        call("vidette", &["serve", "--state", &state, "--listen", "127.0.0.1:0"], "").expect("called");
    check(&output, 2, &["events-00000001-20260101.db", "another program"]);
    assert_eq!(fs::read(&foreign).expect("read"), before);
}

/// A file system of its own that is nearly full, unmounted at the end.
pub(crate) struct Small(std::path::PathBuf);

impl Small {
    pub(crate) fn mount(path: std::path::PathBuf, bytes: u64) -> Self {
        fs::create_dir(&path).expect("made");
        let size = format!("size={bytes},mode=0700");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(&path)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "mounting a tmpfs needs root");
        Self(path)
    }

    /// Takes all the room there is; gives the file that holds it.
    pub(crate) fn fill(&self) -> std::path::PathBuf {
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).expect("made");
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_on_either_side_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().join("host");
    fs::create_dir(&watched).expect("made");
    let disks = ["collector", "agent"].map(|name| Small::mount(folder.path().join(name), 8 << 20));
    let collector = Collector::start(folder.path(), "").expect("a collector");
    let mut agent = Agent::prepare(folder.path(), &watched, "", "").expect("an agent");
    agent.join(&collector.invitation().expect("an invitation")).expect("joined");
    agent.start().expect("started");
    let mut written = 0;
    for disk in &disks {
        let ballast = disk.fill();
        for _ in 0..50 {
            fs::write(watched.join(format!("sample-{written}")), samples::eicar()).expect("written");
            written += 1;
        }
        std::thread::sleep(std::time::Duration::from_secs(3));
        fs::remove_file(ballast).expect("room again");
        wait_for("every detection", || {
            let alerts = collector.lines(&["alerts", "list", "--kind", "detection", "--limit", "1000"])?;
            Ok((alerts.len() >= written).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}\n{}", agent.said(), collector.said()));
    }
    let alerts =
        collector.lines(&["alerts", "list", "--kind", "detection", "--limit", "1000"]).expect("listed");
    assert_eq!(alerts.len(), written, "each once");
    for said in [agent.said(), collector.said()] {
        assert!(said.contains("full"), "a full disk is said: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_rule_that_kills_the_compiler_does_not_cost_the_rules_that_ship() {
    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().join("host");
    fs::create_dir(&watched).expect("made");
    let rule = folder.path().join("deep.yar");
    fs::write(&rule, format!("rule deep {{ condition: {} true }}", "not ".repeat(50_000))).expect("written");
    let collector = Collector::start(folder.path(), "").expect("a collector");
    let tables = format!("[detection]\nrules = [{:?}]\n", text(&rule));
    let mut agent = Agent::prepare(folder.path(), &watched, "", &tables).expect("an agent");
    agent.join(&collector.invitation().expect("an invitation")).expect("joined");
    agent.start().expect("started");
    fs::write(watched.join("sample"), samples::eicar()).expect("written");
    wait_for("a detection", || {
        let alerts = collector.lines(&["alerts", "list", "--kind", "detection"])?;
        Ok(alerts.iter().any(|alert| alert["rule.name"] == "EICAR_Test_File").then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {}", agent.said()));
    let health = collector.lines(&["alerts", "list", "--kind", "health"]).expect("listed");
    assert!(health.iter().any(|event| event["vidette.health.component"] == "rules"), "{health:?}");
}

#[test]
fn a_flood_while_the_agent_is_down_is_caught_up_with_and_hides_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let watched = folder.path().join("host");
    let real = folder.path().join("real");
    fs::create_dir(&real).expect("made");
    // The watched path is a link: it is watched where it leads.
    std::os::unix::fs::symlink(&real, &watched).expect("linked");
    let collector = Collector::start(folder.path(), "").expect("a collector");
    let mut agent = Agent::prepare(folder.path(), &watched, "", "").expect("an agent");
    agent.join(&collector.invitation().expect("an invitation")).expect("joined");
    agent.start().expect("started");
    agent.kill().expect("killed");
    for number in 0..6000 {
        fs::write(real.join(format!("flood-{number}")), format!("nothing {number}")).expect("written");
    }
    fs::write(real.join("while-down"), samples::eicar()).expect("written");
    agent.start().expect("started");
    for number in 0..50 {
        fs::write(real.join(format!("sample-{number}")), samples::eicar()).expect("written");
    }
    wait_for("every detection", || {
        let alerts = collector.lines(&["alerts", "list", "--kind", "detection", "--limit", "1000"])?;
        Ok((alerts.len() >= 51).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}\n{}", agent.status(), agent.said()));
    assert_eq!(agent.status().expect("a status")["counters"]["detection_unscanned"], 0);
}

#[test]
fn a_secret_in_the_arguments_is_refused_and_not_repeated() {
    let output = call("vidette-agent", &["join", "vidette://x:1/?pin=00&token=SECRET"], "").expect("called");
    check(&output, 2, &["standard input"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("SECRET"));
}

#[test]
fn scan_of_what_is_no_file_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status().expect("called");
    assert!(status.success());
    check(
        &call("vidette-agent", &["scan", &text(&fifo)], "").expect("called"),
        2,
        &["fifo", "no regular file"],
    );
    let output = call("vidette-agent", &["run", "--config", &text(&fifo)], "").expect("called");
    check(&output, 2, &["fifo", "not a regular file"]);
}
