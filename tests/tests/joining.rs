//! Hosts join, leave, join again and are shut out, with both programs as they are installed: nobody gets in who may not,
//! nobody is there twice unsaid, and what cut a join short costs no token.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use vidette_collector::identity::{Identity, TOKEN_TTL_DEFAULT, unix_s_now};
use vidette_protocol::join::Invitation;
use vidette_protocol::wire;
use vidette_tests::programs::{Agent, Collector, binary, call, wait_for};

/// A revocation has to be felt within this.
const CUT_MAX: Duration = Duration::from_secs(1);

fn fresh() -> (tempfile::TempDir, Collector) {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(folder.path(), "").unwrap();
    (folder, collector)
}

/// The line of a token with these further options.
fn line(collector: &Collector, options: &[&str]) -> String {
    let all: Vec<&str> = ["tokens", "create"].into_iter().chain(options.iter().copied()).collect();
    let output = collector.vidette(&all).unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn state(folder: &Path, name: &str) -> PathBuf {
    folder.join(name)
}

fn command(verb: &str, state: &Path, more: &[&str], input: &str) -> Output {
    let state = state.display().to_string();
    let all: Vec<&str> = [verb, "--state", &state].into_iter().chain(more.iter().copied()).collect();
    call("vidette-agent", &all, input).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

fn joined(state: &Path, more: &[&str], line: &str) -> Value {
    let all: Vec<&str> = ["--json"].into_iter().chain(more.iter().copied()).collect();
    let output = command("join", state, &all, line);
    assert!(output.status.success(), "{output:?}");
    json(&output)
}

/// An agent that watches nothing but a folder of its own.
fn agent(folder: &Path, name: &str) -> Agent {
    let place = folder.join(name);
    let watched = place.join("watched");
    fs::create_dir_all(&watched).unwrap();
    Agent::prepare(&place, &watched, "level = \"polling\"", "").unwrap()
}

/// The agents, by id.
fn agents(collector: &Collector, options: &[&str]) -> Vec<Value> {
    let all: Vec<&str> = ["agents", "list"].into_iter().chain(options.iter().copied()).collect();
    collector.lines(&all).unwrap()
}

fn row(collector: &Collector, id: &str) -> Value {
    collector.lines(&["agents", "show", id]).unwrap().remove(0)
}

fn id_of(answer: &Value) -> String {
    answer["agent.id"].as_str().unwrap().to_owned()
}

/// What the collector said itself, of one action: the details, the oldest first.
fn said(collector: &Collector, action: &str) -> Vec<String> {
    let events = collector.lines(&["alerts", "list", "--limit", "1000", "--kind", "audit"]).unwrap();
    let mut details: Vec<String> =
        events.iter().map(Value::to_string).filter(|text| text.contains(&format!("\"{action}\""))).collect();
    details.reverse();
    details
}

fn transport_of(agent: &Agent) -> (String, String) {
    let status = agent.status().unwrap_or_default();
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    (text("transport"), text("transport_detail"))
}

fn wait_connected(collector: &Collector, id: &str) {
    wait_for("the agent connects", || Ok((row(collector, id)["state"] == "connected").then_some(())))
        .unwrap();
}

#[test]
fn a_token_of_many_uses_lets_in_so_many_that_come_at_once_and_binds_their_group() {
    let (folder, collector) = fresh();
    let line = line(&collector, &["--uses", "3", "--group", "web", "--label", "rack 7"]);
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let (folder, line) = (folder.path(), line.as_str());
        let all: Vec<_> = (0..6)
            .map(|n| {
                scope.spawn(move || command("join", &state(folder, &format!("host-{n}")), &["--json"], line))
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let (good, bad): (Vec<&Output>, Vec<&Output>) =
        outputs.iter().partition(|output| output.status.success());
    assert_eq!(good.len(), 3, "{outputs:?}");
    for output in bad {
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && error.contains("used before"), "{error}");
    }
    let token = collector.lines(&["tokens", "list"]).unwrap().remove(0);
    assert_eq!(
        (&token["state"], &token["uses"], &token["uses_left"]),
        (&"used".into(), &3.into(), &0.into())
    );
    let web = agents(&collector, &["--group", "web"]);
    assert!(web.len() == 3 && web.iter().all(|row| row["label"] == "rack 7"), "{web:?}");
    assert!(agents(&collector, &["--group", "db"]).is_empty());
    assert_eq!(said(&collector, "agent-joined").len(), 3);
    let table = collector.vidette(&["tokens", "list"]).unwrap();
    assert!(String::from_utf8_lossy(&table.stdout).contains("0 of 3"), "{table:?}");
    assert_eq!(collector.vidette(&["tokens", "create", "--uses", "10001"]).unwrap().status.code(), Some(2));
}

/// Starts a join and kills it after so long, wherever it is then.
fn killed_join(state: &Path, line: &str, after: Duration) {
    let mut child = Command::new(binary("vidette-agent").unwrap())
        .args(["join", "--state"])
        .arg(state)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), line.as_bytes());
    std::thread::sleep(after);
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn a_join_that_is_killed_anywhere_costs_one_use_and_makes_one_agent() {
    let (folder, mut collector) = fresh();
    let mut uses = 0;
    for seed in 0..12_u32 {
        println!("seed {seed}");
        let line = line(&collector, &[]);
        let place = state(folder.path(), &format!("host-{seed}"));
        for part in 0..3 {
            killed_join(&place, &line, Duration::from_millis(u64::from(5 + 11 * seed + 3 * part)));
        }
        if seed % 4 == 3 {
            collector.kill().unwrap();
            collector.resume().unwrap();
        }
        let last = command("join", &place, &["--json"], &line);
        // A join may have come to its end before it was killed.
        let is_done = String::from_utf8_lossy(&last.stderr).contains("has joined");
        assert!(last.status.success() || is_done, "seed {seed}: {last:?}");
        uses += 1;
        assert_eq!(agents(&collector, &[]).len(), uses, "seed {seed}: one agent a host");
        assert!(fs::metadata(place.join("identity/key.pem")).is_ok());
        let again = command("join", &place, &["--again", "--json"], &line);
        let error = String::from_utf8_lossy(&again.stderr).into_owned();
        // Killed after the identity was stored and before its first key was taken away: then it is asked for once more.
        let is_same = again.status.success() && json(&again)["repeated"] == true;
        assert!(is_same || error.contains("used before"), "seed {seed}: {again:?}");
        assert_eq!(agents(&collector, &[]).len(), uses, "seed {seed}: and no more");
    }
    let used = collector.lines(&["tokens", "list"]).unwrap();
    assert!(used.iter().all(|token| token["state"] == "used"), "{used:?}");
}

#[test]
fn a_host_that_joins_again_is_told_of_its_older_self_and_so_is_everybody() {
    let (folder, collector) = fresh();
    let place = state(folder.path(), "host");
    let first = joined(&place, &[], &line(&collector, &[]));
    assert_eq!(first["replaces"], serde_json::json!([]));
    let second = joined(&place, &["--again"], &line(&collector, &[]));
    assert_eq!(second["replaces"], serde_json::json!([id_of(&first)]));
    let older = row(&collector, &id_of(&first));
    assert_eq!(
        (older["state"].as_str(), older["replaced_by"].as_str()),
        (Some("replaced"), Some(id_of(&second).as_str()))
    );
    let table = String::from_utf8(collector.vidette(&["agents", "list"]).unwrap().stdout).unwrap();
    assert!(table.contains(&format!("replaced by {}", id_of(&second))), "{table}");
    let audit = said(&collector, "agent-joined");
    assert!(audit.len() == 2 && audit[1].contains(&id_of(&first)), "{audit:?}");
    let status = collector.lines(&["status"]).unwrap().remove(0);
    assert_eq!((&status["agents"], &status["fleet"]["replaced"]), (&1.into(), &1.into()));

    let third = joined(&place, &["--again"], &line(&collector, &[]));
    assert_eq!(third["replaces"], serde_json::json!([id_of(&second)]), "only who was not replaced before");
    collector.vidette(&["agents", "revoke", &id_of(&third)]).unwrap();
    let fourth = joined(&place, &["--again"], &line(&collector, &[]));
    assert_eq!(fourth["replaces"], serde_json::json!([]), "a revoked one stays what it is");
    assert_eq!(row(&collector, &id_of(&third))["state"], "revoked");
}

#[test]
fn leaving_says_what_it_did_and_what_it_could_not() {
    let (folder, mut collector) = fresh();
    let mut agent = agent(folder.path(), "host");
    let nothing = command("leave", &agent.state, &[], "");
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("not joined"), "{nothing:?}");
    let first = id_of(&joined(&agent.state, &[], &line(&collector, &[])));
    agent.start().unwrap();
    wait_connected(&collector, &first);

    let left = command("leave", &agent.state, &["--json"], "");
    assert_eq!((left.status.code(), &json(&left)["collector_knows"]), (Some(0), &true.into()), "{left:?}");
    assert!(agent.state.join("identity.left/key.pem").is_file() && !agent.state.join("identity").exists());
    assert_eq!(row(&collector, &first)["state"], "left");
    wait_for("it is told", || Ok((said(&collector, "agent-left").len() == 1).then_some(()))).unwrap();
    wait_for("the running agent notices", || Ok((transport_of(&agent).0 == "not joined").then_some(())))
        .unwrap();

    let second = joined(&agent.state, &[], &line(&collector, &[]));
    assert_eq!(second["replaces"], serde_json::json!([]), "one that left is none that is replaced");
    wait_connected(&collector, &id_of(&second));
    // What its older self had sent and the collector has is not lost: numbers begin anew.
    let of_second = |kind: &str| {
        let list = ["events", "list", "--limit", "1000", "--kind", kind, "--agent", &id_of(&second)];
        collector.lines(&list).unwrap()
    };
    wait_for("its first word", || {
        Ok(of_second("health").iter().any(|event| event.to_string().contains("another agent")).then_some(()))
    })
    .unwrap();
    assert_eq!(of_second("gap"), Vec::<Value>::new());
    agent.kill().unwrap();
    collector.kill().unwrap();
    let refused = command("leave", &agent.state, &[], "");
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && error.contains("nothing was changed"), "{error}");
    assert!(
        error.contains("--anyway") && error.contains(&format!("agents revoke {}", id_of(&second))),
        "{error}"
    );
    assert!(agent.state.join("identity/key.pem").is_file());
    let anyway = command("leave", &agent.state, &["--anyway"], "");
    let text = String::from_utf8_lossy(&anyway.stdout).into_owned();
    assert!(anyway.status.code() == Some(1) && text.contains("agents revoke"), "{anyway:?}");
    assert!(!agent.state.join("identity").exists());
    collector.resume().unwrap();
    assert_ne!(row(&collector, &id_of(&second))["state"], "left", "nobody has told the collector");
}

#[test]
fn a_revocation_is_felt_within_a_second_and_for_good() {
    let (folder, collector) = fresh();
    let mut agent = agent(folder.path(), "host");
    let id = id_of(&joined(&agent.state, &[], &line(&collector, &[])));
    agent.start().unwrap();
    wait_connected(&collector, &id);
    let revoked = collector.lines(&["agents", "revoke", &id[..8]]).unwrap().remove(0);
    let start = Instant::now();
    assert_eq!((&revoked["id"], &revoked["was_connected"]), (&id.as_str().into(), &true.into()));
    let refused = loop {
        let last = transport_of(&agent);
        if last.0 == "refused" || start.elapsed() > CUT_MAX {
            break last;
        }
    };
    assert!(refused.0 == "refused" && refused.1.starts_with("revoked: "), "{refused:?}");
    assert_eq!(row(&collector, &id)["state"], "revoked");
    agent.kill().unwrap();
    agent.start().unwrap();
    wait_for("the next connection is refused", || Ok((transport_of(&agent).0 == "refused").then_some(())))
        .unwrap();
    assert!(agent.said().contains("revoked"), "{}", agent.said());
    let again = collector.lines(&["agents", "revoke", &id]).unwrap().remove(0);
    assert_eq!((&again["was_revoked_before"], &again["was_connected"]), (&true.into(), &false.into()));
    wait_for("it is told once", || Ok((said(&collector, "agent-revoked").len() == 1).then_some(()))).unwrap();
    let left = command("leave", &agent.state, &[], "");
    let text = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(left.status.success() && text.contains("was revoked"), "{left:?}");
    assert_eq!(collector.vidette(&["agents", "revoke", "nobody"]).unwrap().status.code(), Some(1));
}

/// An identity on disk whose certificate was issued so long ago, by the collector's own hand while it is down.
fn backdated(collector: &Collector, state: &Path, ago_s: i64) {
    let identity = Identity::open(&collector.state.join("identity")).unwrap();
    let then = unix_s_now() - ago_s;
    let (token, _) = identity.create_token_at(TOKEN_TTL_DEFAULT, None, then).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    let join =
        wire::Join { token: token.bytes().to_vec(), csr_der: csr.der().to_vec(), ..Default::default() };
    let joined = identity.join(&join, then).unwrap();
    let folder = state.join("identity");
    fs::create_dir_all(&folder).unwrap();
    let pem = |der: &[u8]| {
        format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            data_encoding::BASE64.encode(der)
        )
    };
    let files = [
        ("key.pem", key.serialize_pem()),
        ("certificate.pem", pem(&joined.certificates_der[0])),
        ("roots.pem", pem(&joined.roots_der[0])),
        ("collector", format!("127.0.0.1:{}\n", collector.port)),
        ("agent-id", format!("{}\n", joined.agent_id)),
    ];
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn expired_and_unknown_are_other_words_than_revoked_on_both_sides() {
    let (folder, mut collector) = fresh();
    let mut unknown = agent(folder.path(), "unknown");
    let mut expired = agent(folder.path(), "expired");
    let mut late = agent(folder.path(), "late");
    let stranger = id_of(&joined(&unknown.state, &[], &line(&collector, &[])));
    collector.kill().unwrap();
    for file in ["identity.db", "identity.db-wal", "identity.db-shm"] {
        let _ = fs::remove_file(collector.state.join("identity").join(file));
    }
    backdated(&collector, &expired.state, 40 * 86_400);
    backdated(&collector, &late.state, 2 * 86_400);
    collector.resume().unwrap();

    unknown.start().unwrap();
    let words = wait_for("it is unknown", || {
        let (state, detail) = transport_of(&unknown);
        Ok((state == "refused").then_some(detail))
    })
    .unwrap();
    assert!(
        words.starts_with("unknown: ") && !words.contains("revoked") && !words.contains("expired"),
        "{words}"
    );
    assert!(collector.said().contains("not registered here"), "{stranger}: {}", collector.said());
    let left = command("leave", &unknown.state, &[], "");
    assert!(
        left.status.success() && String::from_utf8_lossy(&left.stdout).contains("is unknown to"),
        "{left:?}"
    );

    expired.start().unwrap();
    let words = wait_for("it has expired", || {
        let (state, detail) = transport_of(&expired);
        Ok((state == "refused" && detail.starts_with("expired: ")).then_some(detail))
    })
    .unwrap();
    assert!(words.contains("--again") && !words.contains("revoked") && !words.contains("unknown"), "{words}");
    wait_for("the collector says so too", || {
        Ok(collector.said().contains("expired too long ago").then_some(()))
    })
    .unwrap();

    late.start().unwrap();
    wait_for(
        "who is late renews and comes back",
        || Ok((transport_of(&late).0 == "connected").then_some(())),
    )
    .unwrap();
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn two_agents_with_one_identity_are_told_at_once_and_one_that_was_killed_is_not_taken_for_two() {
    let (folder, collector) = fresh();
    let mut first = agent(folder.path(), "host");
    let id = id_of(&joined(&first.state, &[], &line(&collector, &[])));
    first.start().unwrap();
    wait_connected(&collector, &id);
    for _ in 0..2 {
        let before = row(&collector, &id)["last"]["replaced"].as_u64().unwrap();
        first.kill().unwrap();
        first.start().unwrap();
        wait_for("the agent takes the place of the killed one", || {
            Ok((row(&collector, &id)["last"]["replaced"].as_u64() > Some(before)).then_some(()))
        })
        .unwrap();
    }
    // Longer than the killed one had time to show that it is alive.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(said(&collector, "agent-connected-twice"), Vec::<String>::new());
    assert_eq!(row(&collector, &id)["last"]["twice"], 0);

    let mut copy = agent(folder.path(), "copy");
    let older = row(&collector, &id)["last"]["address"].as_str().unwrap().to_owned();
    copy_folder(&first.state, &copy.state);
    copy.start().unwrap();
    let told = wait_for("it is told", || Ok(said(&collector, "agent-connected-twice").pop())).unwrap();
    assert!(told.contains(&format!("from {older} and from 127.0.0.1:")) && told.contains(&id), "{told}");
    let high = collector.lines(&["alerts", "list", "--severity", "high", "--kind", "audit"]).unwrap();
    assert!(!high.is_empty());
    let shown = row(&collector, &id);
    assert!(shown["last"]["twice"].as_u64() > Some(0), "{shown}");
    assert!(shown["problems"].to_string().contains("copied"), "{shown}");
}

/// What a file of `packaging/join` runs of ours: the words of each command line up to what a shell reads itself.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for line in text.lines() {
        let is_comment = line.trim_start().starts_with('#');
        let code = if is_comment { String::new() } else { line.replace(['"', '[', ']', ','], " ") };
        // In a shell or as a list of words; a name in another place is followed by nothing that is a command of ours.
        for (at, _) in code.match_indices("vidette") {
            let words: Vec<String> = code[at..]
                .split_whitespace()
                .take_while(|word| !["<", "|", ";", "&&", "||", ">"].contains(word))
                .map(str::to_owned)
                .collect();
            let is_start = at == 0 || code[..at].ends_with(' ');
            if is_start && ["vidette", "vidette-agent"].contains(&words[0].as_str()) && words.len() > 1 {
                found.push(words);
            }
        }
    }
    // What a comment tells people to run, between `: ` or backquotes and the end.
    for line in text.lines().filter(|line| line.trim_start().starts_with('#')) {
        if let Some((_, command)) = line.split_once("On the collector: ") {
            found.push(command.split_whitespace().map(str::to_owned).collect());
        }
        for part in line.split('`').skip(1).step_by(2).filter(|part| part.starts_with("vidette ")) {
            found.push(part.split_whitespace().map(str::to_owned).collect());
        }
    }
    found
}

#[test]
fn the_examples_of_joining_hold_commands_that_exist_and_no_line_as_an_argument() {
    use clap::Parser as _;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/join");
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let lines = command_lines(&text);
        let joins = lines.iter().filter(|words| words[..2] == ["vidette-agent", "join"]).count();
        assert!(joins == 1 && lines.len() >= 2, "{}: {lines:?}", path.display());
        for words in &lines {
            let result = if words[0] == "vidette" {
                vidette_collector::cli::Arguments::try_parse_from(words).map(drop)
            } else {
                vidette_agent::cli::Cli::try_parse_from(words).map(drop)
            };
            assert!(result.is_ok(), "{}: {words:?}: {}", path.display(), result.unwrap_err());
            assert!(!words.iter().any(|word| word.contains("://") || word.contains("{{")), "{words:?}");
        }
        assert!(text.contains("vidette-agent join < ") || text.contains("stdin: "), "{}", path.display());
        assert!(!text.contains('\t'), "{}: YAML knows no tabs", path.display());
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["Dockerfile", "ansible.yml", "cloud-init.yaml"]);
    let bad =
        command_lines("  - [vidette-agent, jion]\n# On the collector: vidette tokens create --usess 3\n");
    assert!(bad.len() == 2, "{bad:?}");
    assert!(vidette_agent::cli::Cli::try_parse_from(&bad[0]).is_err(), "what does not exist is found");
    assert!(vidette_collector::cli::Arguments::try_parse_from(&bad[1]).is_err());
    let line = "vidette://collector.example.org:7441/?pin=PIN&token=TOKEN".parse::<Invitation>();
    assert!(line.is_err(), "the line of the examples is none that works");
}
