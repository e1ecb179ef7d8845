//! The life of an agent's identity, with both programs as they are installed: renewed at any step of which a kill may come, on
//! the session and without one; copied, and both copies set aside within one renewal; with clocks that are wrong by ten years;
//! and every way to be refused in a word of its own on both sides.

use crate::bad_input::Small;
use crate::joining::copy_folder;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use vidette_protocol::frame;
use vidette_protocol::wire::{self, RefuseCode, to_agent, to_collector};
use vidette_tests::faults::shim::{self, Control, Slot};
use vidette_tests::programs::{Collector, binary, call, wait_for};

const YEAR_S: i64 = 365 * 86_400;

/// The steps of a renewal at which the agent is killed: before the n-th write below its state folder (the key that is kept,
/// then the five files of the new identity), after the n-th sync of one of them, after the n-th datagram.
const STEPS: [(Slot, i64); 21] = [
    (Slot::KillAtWrite, 1), // the key is not kept yet
    (Slot::KillBeforeSync, 1),
    (Slot::KillAfterSync, 1), // kept, and not in its place yet
    (Slot::KillAfterSend, 1), // in its place, nobody asked yet
    (Slot::KillAfterSend, 2),
    (Slot::KillAfterSend, 3),
    (Slot::KillAfterSend, 4),
    (Slot::KillAfterSend, 5),
    (Slot::KillAfterSend, 6), // somewhere here it is asked
    (Slot::KillAtWrite, 2),   // answered: the new key
    (Slot::KillBeforeSync, 2),
    (Slot::KillAfterSync, 2),
    (Slot::KillAtWrite, 3), // the certificate
    (Slot::KillAfterSync, 3),
    (Slot::KillAtWrite, 4), // the roots
    (Slot::KillAfterSync, 4),
    (Slot::KillAtWrite, 5), // where the collector is
    (Slot::KillAfterSync, 5),
    (Slot::KillAtWrite, 6), // who it is
    (Slot::KillBeforeSync, 6),
    (Slot::KillAfterSync, 6), // all written, nothing in its place yet
];

/// One host: a state folder, and a program on it whose calls can be made to fail.
struct Host {
    state: PathBuf,
    config: PathBuf,
    log: PathBuf,
    control: Control,
    library: PathBuf,
    program: Option<Child>,
}

impl Host {
    fn prepare(folder: &Path, library: &Path, name: &str) -> Self {
        let place = folder.join(name);
        let watched = place.join("watched");
        fs::create_dir_all(&watched).unwrap();
        let config = place.join("agent.toml");
        let watch = watched.display().to_string();
        fs::write(
            &config,
            format!(
                "[sensors]\nlevel = \"polling\"\nwatch = [{watch:?}]\n[detection]\nbuiltin_rules = false\n"
            ),
        )
        .unwrap();
        Self {
            state: place.join("agent"),
            config,
            log: place.join("agent.log"),
            control: Control::make(&place, "agent").unwrap(),
            library: library.to_path_buf(),
            program: None,
        }
    }

    /// Runs a command of the agent on this host, with its faults.
    fn command(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self.spawn(arguments, Stdio::piped(), Stdio::piped());
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn spawn(&self, arguments: &[&str], output: Stdio, errors: Stdio) -> Child {
        Command::new(binary("vidette-agent").unwrap())
            .args(arguments)
            .args(["--state".as_ref(), self.state.as_os_str()])
            .envs(self.control.environment(&self.library, &self.state))
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap()
    }

    fn join(&self, collector: &Collector, more: &[&str]) -> String {
        let all: Vec<&str> = ["join", "--json"].into_iter().chain(more.iter().copied()).collect();
        let output = self.command(&all, &collector.invitation().unwrap());
        assert!(output.status.success(), "{output:?}");
        let joined: Value = serde_json::from_slice(&output.stdout).unwrap();
        joined["agent.id"].as_str().unwrap().to_owned()
    }

    fn start(&mut self) {
        let errors = File::options().create(true).append(true).open(&self.log).unwrap();
        let config = self.config.display().to_string();
        self.program = Some(self.spawn(&["run", "--config", &config], Stdio::null(), errors.into()));
        wait_for("the agent", || Ok((!self.status().is_null()).then_some(()))).unwrap();
    }

    /// `Null` when no agent answers.
    fn status(&self) -> Value {
        let state = self.state.display().to_string();
        let output = call("vidette-agent", &["status", "--json", "--state", &state], "").unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn says(&self, name: &str) -> String {
        self.status()[name].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the transport is in this state, and gives the rest that it says.
    fn wait(&self, transport: &str) -> String {
        wait_for(transport, || {
            let status = self.status();
            Ok((status["transport"] == transport).then(|| status["transport_detail"].to_string()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {} {}", self.status(), self.said()))
    }

    fn renew(&self) -> Output {
        let state = self.state.display().to_string();
        call("vidette-agent", &["renew", "--json", "--state", &state], "").unwrap()
    }

    fn certificate(&self) -> Vec<u8> {
        fs::read(self.state.join("identity/certificate.pem")).unwrap()
    }

    fn kill(&mut self) {
        if let Some(mut program) = self.program.take() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

fn fresh() -> (tempfile::TempDir, Collector, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let library = shim::compile(folder.path()).unwrap();
    let collector = Collector::start(folder.path(), "").unwrap();
    (folder, collector, library)
}

fn row(collector: &Collector, id: &str) -> Value {
    collector.lines(&["agents", "show", id]).unwrap().remove(0)
}

/// What the collector said itself, of one action.
fn told(collector: &Collector, action: &str) -> Vec<String> {
    let events = collector.lines(&["alerts", "list", "--limit", "1000", "--kind", "audit"]).unwrap();
    events.iter().map(Value::to_string).filter(|text| text.contains(&format!("\"{action}\""))).collect()
}

#[test]
fn a_renewal_that_is_killed_at_any_step_is_done_the_next_time_and_raises_no_alarm() {
    let (folder, mut collector, library) = fresh();
    let mut fired = 0;
    for (number, (slot, at)) in STEPS.into_iter().enumerate() {
        println!("step {number}: {slot:?} {at}");
        let host = Host::prepare(folder.path(), &library, &format!("host-{number}"));
        let id = host.join(&collector, &[]);
        let before = host.certificate();
        host.control.set(slot, at).unwrap();
        let killed = host.command(&["renew"], "");
        let has_fired = host.control.get(Slot::Fired).unwrap() > 0;
        fired += usize::from(has_fired);
        assert_eq!(killed.status.success(), !has_fired, "{killed:?}");
        host.control.lift().unwrap();
        if number % 5 == 4 {
            collector.kill().unwrap();
            collector.resume().unwrap();
        }
        let again = host.renew();
        assert!(again.status.success(), "step {number}: {again:?}");
        assert_ne!(host.certificate(), before, "step {number}");
        // And once more: what was killed has left nothing behind that is in the way.
        let more = host.renew();
        assert!(more.status.success(), "step {number}: {more:?}");
        let left: Vec<String> = fs::read_dir(&host.state)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !["identity", "lock"].contains(&name.as_str()))
            .collect();
        assert_eq!(left, Vec::<String>::new(), "step {number}");
        assert_ne!(row(&collector, &id)["state"], "cloned", "step {number}");
    }
    assert!(fired + 2 >= STEPS.len(), "only {fired} steps were there to be killed at");
    assert_eq!(told(&collector, "agent-cloned"), Vec::<String>::new());
}

#[test]
fn a_kept_key_that_is_damaged_costs_a_generation_and_raises_no_alarm() {
    let (folder, collector, library) = fresh();
    let host = Host::prepare(folder.path(), &library, "host");
    let id = host.join(&collector, &[]);
    host.control.set(Slot::KillAtWrite, 2).unwrap();
    assert!(!host.command(&["renew"], "").status.success(), "it was answered, and did not store that");
    host.control.lift().unwrap();
    fs::write(host.state.join("renewing.pem"), "certificate sha256 garbage").unwrap();
    let again = host.renew();
    assert!(again.status.success(), "{again:?}");
    assert!(host.renew().status.success());
    assert_ne!(row(&collector, &id)["state"], "cloned");
}

/// The steps at which an agent is killed that renews on its session. What else it writes meanwhile may take the place.
const STEPS_LIVE: [(Slot, i64); 7] = [
    (Slot::KillAtWrite, 1),
    (Slot::KillAfterSync, 1),
    (Slot::KillAfterSend, 1),
    (Slot::KillAfterSend, 2),
    (Slot::KillAtWrite, 2),
    (Slot::KillAtWrite, 4),
    (Slot::KillAfterSync, 6),
];

#[test]
fn an_agent_renews_on_its_session_and_a_kill_at_any_step_of_that_raises_no_alarm() {
    let (folder, collector, library) = fresh();
    let mut host = Host::prepare(folder.path(), &library, "host");
    let id = host.join(&collector, &[]);
    host.start();
    host.wait("connected");
    let mut before = host.certificate();
    for round in 1..=3 {
        let renewed = host.renew();
        assert!(renewed.status.success(), "{renewed:?} {}", host.said());
        assert_eq!(host.status()["renewals"], round);
        assert_ne!(std::mem::replace(&mut before, host.certificate()), before);
        host.wait("connected");
    }
    assert_eq!(host.said().matches("over_session=true").count(), 3, "{}", host.said());
    for (slot, at) in STEPS_LIVE {
        println!("{slot:?} {at}");
        host.control.set(slot, at).unwrap();
        let killed = host.renew();
        assert!(!killed.status.success(), "{slot:?} {at}: {killed:?}");
        assert!(host.control.get(Slot::Fired).unwrap() > 0);
        host.control.lift().unwrap();
        host.kill();
        host.start();
        host.wait("connected");
        let again = host.renew();
        assert!(again.status.success(), "{slot:?} {at}: {again:?} {}", host.said());
        assert_ne!(std::mem::replace(&mut before, host.certificate()), before, "{slot:?} {at}");
        host.wait("connected");
    }
    assert_eq!(told(&collector, "agent-cloned"), Vec::<String>::new(), "{}", collector.said());
    assert_eq!(row(&collector, &id)["state"], "connected");
}

#[test]
fn a_copied_state_folder_is_found_within_one_renewal_and_both_copies_are_set_aside() {
    let (folder, collector, library) = fresh();
    let mut first = Host::prepare(folder.path(), &library, "first");
    let mut copy = Host::prepare(folder.path(), &library, "copy");
    let id = first.join(&collector, &[]);
    first.start();
    first.wait("connected");
    first.kill();
    copy_folder(&first.state, &copy.state);
    first.start();
    first.wait("connected");
    let renewed = first.renew();
    assert!(renewed.status.success(), "{renewed:?}");
    assert_eq!(told(&collector, "agent-cloned"), Vec::<String>::new());
    copy.start();

    let alarm = wait_for("the copy is found", || Ok(told(&collector, "agent-cloned").pop())).unwrap();
    for words in [id.as_str(), "certificate 1", "certificate 2", "join --again", "127.0.0.1:"] {
        assert!(alarm.contains(words), "{words}: {alarm}");
    }
    let high = collector.lines(&["alerts", "list", "--severity", "high", "--kind", "audit"]).unwrap();
    assert!(high.iter().any(|event| event.to_string().contains("agent-cloned")), "{high:?}");
    for host in [&first, &copy] {
        let why = host.wait("refused");
        assert!(why.contains("cloned: ") && why.contains("join the right host again"), "{why}");
        let refused = host.renew();
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && error.contains("is cloned for the collector"), "{error}");
    }
    let shown = row(&collector, &id);
    assert_eq!(shown["state"], "cloned", "{shown}");
    assert!(shown["problems"][0].as_str().is_some_and(|problem| problem.starts_with("cloned: ")), "{shown}");
    let listed = collector.vidette(&["agents", "list", "--problems"]).unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("cloned"), "{listed:?}");
    let status = collector.vidette(&["status"]).unwrap();
    assert!(String::from_utf8_lossy(&status.stdout).contains("1 agent is cloned"), "{status:?}");

    copy.kill();
    first.kill();
    let anew = first.join(&collector, &["--again"]);
    assert_ne!(anew, id);
    first.start();
    first.wait("connected");
    assert_eq!(row(&collector, &anew)["state"], "connected");
    assert_eq!(row(&collector, &id)["problems"], serde_json::json!([]), "the host has joined anew");
    assert_eq!(told(&collector, "agent-cloned").len(), 1, "it is told once");
}

#[test]
fn two_copies_that_renew_at_once_are_found_by_the_second_key() {
    let (folder, collector, library) = fresh();
    let first = Host::prepare(folder.path(), &library, "first");
    let copy = Host::prepare(folder.path(), &library, "copy");
    let id = first.join(&collector, &[]);
    copy_folder(&first.state, &copy.state);
    assert!(first.renew().status.success());
    let refused = copy.renew();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && error.contains("copied") && error.contains("join --again"),
        "{error}"
    );
    assert_eq!(row(&collector, &id)["state"], "cloned");
    let left = copy.command(&["leave"], "");
    assert!(left.status.success() && String::from_utf8_lossy(&left.stdout).contains("cloned"), "{left:?}");
}

#[test]
fn a_clock_that_is_wrong_by_ten_years_locks_nobody_out_and_is_named_on_both_sides() {
    let (folder, collector, library) = fresh();
    for years in [-10, 10] {
        println!("{years} years");
        let mut host = Host::prepare(folder.path(), &library, &format!("host{years}"));
        host.control.set(Slot::ClockNs, years * YEAR_S * 1_000_000_000).unwrap();
        let id = host.join(&collector, &[]);
        host.start();
        host.wait("connected");
        let clock = wait_for("it is named", || {
            let clock = host.says("clock");
            Ok((!clock.is_empty()).then_some(clock))
        })
        .unwrap();
        let words = if years < 0 { "d behind the collector's" } else { "d ahead of the collector's" };
        assert!(clock.contains(words) && (clock.contains("3650") || clock.contains("3649")), "{clock}");
        assert!(host.said().contains("WARN") && host.said().contains("offset_s="), "{}", host.said());
        let before = host.certificate();
        let renewed = host.renew();
        assert!(renewed.status.success(), "{renewed:?} {}", host.said());
        assert_ne!(host.certificate(), before);
        host.wait("connected");
        wait_for("its events arrive", || {
            Ok((row(&collector, &id)["last"]["events"].as_u64() > Some(0)).then_some(()))
        })
        .unwrap();
        let problem = wait_for("the collector names it", || {
            let problems = row(&collector, &id)["problems"].to_string();
            Ok(problems.contains("clock: ").then_some(problems))
        });
        assert!(problem.unwrap().contains("clock is"));
        // Alone, too: nothing but the collector's word says what is due.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(host.status()["renewals"], 1, "{}", host.said());
        host.kill();
        let alone = host.command(&["renew"], "");
        assert!(alone.status.success(), "{alone:?}");
    }
    assert_eq!(told(&collector, "agent-cloned"), Vec::<String>::new());
}

#[test]
fn every_way_to_be_refused_has_a_word_of_its_own_that_no_other_uses() {
    let (folder, collector, library) = fresh();
    let hosts: Vec<Host> = ["revoked", "left", "cloned"]
        .into_iter()
        .map(|name| Host::prepare(folder.path(), &library, name))
        .collect();
    let ids: Vec<String> = hosts.iter().map(|host| host.join(&collector, &[])).collect();
    collector.vidette(&["agents", "revoke", &ids[0]]).unwrap();
    let left_copy = Host::prepare(folder.path(), &library, "left-copy");
    copy_folder(&hosts[1].state, &left_copy.state);
    assert!(hosts[1].command(&["leave"], "").status.success());
    let cloned_copy = Host::prepare(folder.path(), &library, "cloned-copy");
    copy_folder(&hosts[2].state, &cloned_copy.state);
    assert!(hosts[2].renew().status.success() && !cloned_copy.renew().status.success());

    let words = ["revoked", "left", "cloned", "expired", "unknown", "overloaded", "clock"];
    let mut running = hosts;
    running[1] = left_copy;
    for ((host, id), word) in running.iter_mut().zip(&ids).zip(words) {
        host.start();
        let detail = host.wait("refused");
        let alike: Vec<&&str> = words.iter().filter(|one| detail.contains(&format!("{one}: "))).collect();
        assert_eq!(alike, [&word], "{detail}");
        let said = host.said();
        assert!(said.contains(&format!("code=\"{word}\"")), "{word}: {said}");
        assert_eq!(row(&collector, id)["state"], word);
        let name = format!("code={}{}", word[..1].to_uppercase(), &word[1..]);
        wait_for("the collector's log", || Ok(collector.said().contains(&name).then_some(())))
            .unwrap_or_else(|error| panic!("{error:#}: {name}: {}", collector.said()));
        let renewed = String::from_utf8_lossy(&host.renew().stderr).into_owned();
        let named: Vec<&&str> = words.iter().filter(|one| renewed.contains(**one)).collect();
        assert_eq!(named, [&word], "{renewed}");
        host.kill();
    }
    let codes = [
        RefuseCode::Unspecified,
        RefuseCode::Protocol,
        RefuseCode::Revoked,
        RefuseCode::Unknown,
        RefuseCode::Expired,
        RefuseCode::Overloaded,
        RefuseCode::Misbehaved,
        RefuseCode::Cloned,
        RefuseCode::Left,
    ];
    assert!(RefuseCode::try_from(i32::try_from(codes.len()).unwrap()).is_err(), "a new one has a row here");
    let mut all: Vec<&str> = codes.into_iter().map(vidette_agent::transport::word).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), codes.len());
}

#[test]
fn a_collector_with_a_full_disk_is_overloaded_to_who_joins_and_who_is_connected_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let library = shim::compile(folder.path()).unwrap();
    let disk = Small::mount(folder.path().join("collector"), 64 << 20);
    let collector = Collector::start(folder.path(), "").unwrap();
    let mut host = Host::prepare(folder.path(), &library, "connected");
    host.join(&collector, &[]);
    host.start();
    host.wait("connected");
    let invitation = collector.invitation().unwrap();

    let ballast = disk.fill();
    let watched = folder.path().join("connected/watched");
    fs::write(watched.join("while-full"), "x").unwrap();
    let detail = host.wait("refused");
    assert!(detail.contains("overloaded: "), "{detail}");
    assert!(host.said().contains("code=\"overloaded\""), "{}", host.said());
    assert!(collector.said().contains("code=Overloaded"), "{}", collector.said());
    let newcomer = Host::prepare(folder.path(), &library, "newcomer");
    let joined = newcomer.command(&["join"], &invitation);
    let said = String::from_utf8_lossy(&joined.stderr).into_owned();
    assert!(!joined.status.success() && said.contains("is overloaded"), "{said}");
    for other in ["revoked", "left", "cloned", "expired", "unknown"] {
        assert!(!said.contains(other) && !detail.contains(other), "{said} {detail}");
    }

    fs::remove_file(ballast).unwrap();
    assert!(newcomer.command(&["join"], &invitation).status.success(), "by the same line");
    host.wait("connected");
    wait_for("the file that was written meanwhile", || {
        let events = collector.lines(&["events", "list", "--limit", "1000", "--kind", "file"])?;
        Ok(events.iter().any(|event| event.to_string().contains("while-full")).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error:#}: {} {}", host.status(), collector.said()));
}

#[test]
fn an_image_that_was_prepared_holds_nothing_of_its_host_and_joins_as_another() {
    let (folder, collector, library) = fresh();
    let mut host = Host::prepare(folder.path(), &library, "host");
    let id = host.join(&collector, &[]);
    host.start();
    host.wait("connected");
    let running = host.command(&["prepare-image", "--yes"], "");
    let error = String::from_utf8_lossy(&running.stderr).into_owned();
    assert!(running.status.code() == Some(2) && error.contains("another agent runs"), "{error}");
    host.kill();
    let unasked = host.command(&["prepare-image"], "y\n");
    assert!(unasked.status.code() == Some(2), "a pipe is nobody: {unasked:?}");
    assert!(host.state.join("identity/key.pem").is_file());
    fs::write(host.state.join("mine.txt"), "x").unwrap();
    let done = host.command(&["prepare-image", "--yes", "--json"], "");
    assert!(done.status.success(), "{done:?}");
    let done: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(done["removed"][0], "identity");
    assert_eq!(done["kept"], serde_json::json!(["mine.txt"]));
    let left: Vec<_> = fs::read_dir(&host.state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine.txt"], "what an agent leaves is known by name: {done}");
    assert!(host.config.is_file());
    let again = host.command(&["prepare-image", "--yes"], "");
    assert!(String::from_utf8_lossy(&again.stdout).contains("nothing of this host"), "{again:?}");

    let copy = Host::prepare(folder.path(), &library, "copy");
    copy_folder(&host.state, &copy.state);
    let ids = [host.join(&collector, &[]), copy.join(&collector, &[])];
    assert!(ids[0] != ids[1] && !ids.contains(&id));
}

/// What an agent may ask for on its session, and when.
#[test]
fn a_request_for_a_certificate_is_one_at_a_time_bounded_and_after_the_welcome() {
    use vidette_collector::ingest::session::{Input, Output, Session, Stream};
    let now = Instant::now();
    let renew = |bytes: usize| {
        let renew = wire::Renew { csr_der: vec![0; bytes], kept: true };
        let message = Some(to_collector::Message::Renew(renew));
        Input::Frame(Stream::Control, wire::ToCollector { message })
    };
    let open = || {
        let mut session = Session::new(vidette_protocol::id::AgentId([1; 16]), now);
        let hello = wire::Hello { protocol: 1, epoch: 7, ..Default::default() };
        let message = Some(to_collector::Message::Hello(hello));
        session.handle(Input::Frame(Stream::Control, wire::ToCollector { message }), now);
        session.handle(Input::Loaded { epoch: 7, durable: Vec::new(), time_unix_ns: 0 }, now);
        session
    };
    let is_refused =
        |outputs: &[Output]| matches!(outputs, [Output::Refuse { code: RefuseCode::Misbehaved, .. }]);
    let mut early = Session::new(vidette_protocol::id::AgentId([1; 16]), now);
    assert!(is_refused(&early.handle(renew(10), now)));
    assert!(is_refused(&open().handle(renew(vidette_protocol::limits::JOIN_BYTES_MAX + 1), now)));
    let mut session = open();
    for _ in 0..2 {
        assert!(matches!(session.handle(renew(10), now)[..], [Output::Renew(_)]));
        let answered = session.handle(Input::Renewed(Ok(wire::Joined::default())), now);
        assert!(matches!(answered[..], [Output::Send { stream: Stream::Control, .. }]));
    }
    session.handle(renew(10), now);
    assert!(is_refused(&session.handle(renew(10), now)), "a second one before the answer");
}

/// The bytes of the messages of a renewal: what a version that is out there sends and understands.
#[test]
fn the_messages_of_a_renewal_are_these_bytes() {
    let renew = wire::Renew { csr_der: vec![1, 2], kept: true };
    let asked = wire::ToCollector { message: Some(to_collector::Message::Renew(renew)) };
    assert_eq!(frame::encode(&asked), [0, 0, 0, 8, 0x22, 6, 0x0a, 2, 1, 2, 0x10, 1]);
    let joined = wire::Joined { agent_id: "a".into(), certificates_der: vec![vec![3]], ..Default::default() };
    let given = wire::ToAgent { message: Some(to_agent::Message::Renewed(joined)) };
    assert_eq!(frame::encode(&given), [0, 0, 0, 8, 0x32, 6, 0x0a, 1, b'a', 0x12, 1, 3]);
    let refused = wire::JoinRefused { code: wire::JoinRefusal::Cloned as i32, reason: "b".into() };
    let refused = wire::ToAgent { message: Some(to_agent::Message::RenewRefused(refused)) };
    assert_eq!(frame::encode(&refused), [0, 0, 0, 7, 0x3a, 5, 0x08, 10, 0x12, 1, b'b']);
}

/// A collector of version 0.1 says nothing of renewals in its Welcome: then nothing is asked on the session, which it would
/// take for an offence.
#[test]
fn a_collector_that_does_not_say_so_is_not_asked_on_the_session() {
    use vidette_agent::transport::session::{Input, Limits, Output, Session, Stream};
    for renews in [false, true] {
        let now = Instant::now();
        let mut session = Session::new(Limits::default(), now);
        let state = vidette_agent::outbox::State { epoch: 1, classes: Vec::new() };
        session.handle(Input::Connected { state, hello: wire::Hello::default() }, now);
        let welcome = wire::Welcome {
            protocol: 1,
            batch_bytes_max: 1 << 20,
            batches_in_flight_max: 4,
            renews,
            ..Default::default()
        };
        let message = wire::ToAgent { message: Some(to_agent::Message::Welcome(welcome)) };
        let outputs = session.handle(Input::Frame(Stream::Control, message), now);
        assert!(outputs.contains(&Output::Welcomed { time_unix_ns: 0, renews }), "{outputs:?}");
        let asked = session.handle(Input::Renew(wire::Renew::default()), now);
        let sends = asked.iter().filter(|output| matches!(output, Output::Send { .. })).count();
        assert_eq!(sends, usize::from(renews), "{asked:?}");
    }
}
