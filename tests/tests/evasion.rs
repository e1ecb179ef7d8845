//! The evasion table: what an attacker might do so that nobody sees his bytes being written or run, each done for real
//! by a small C program (`tests/evasions`) beside the real `vidette-agent watch`. The outcome is compared with what the
//! table expects, in both directions, and README.md must hold the same table: what is not seen is said.

mod rows;

use rows::{Outcome, ROWS, Row, Sight};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vidette_tests::programs::{PATIENCE, binary, wait_for};

/// How much longer one listens for what must not come.
const GRACE: Duration = Duration::from_secs(4);
/// How long one waits for what should come.
const COMING: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Where a row's trick takes place.
pub(crate) struct Place {
    /// A watched folder of its own.
    pub(crate) folder: PathBuf,
    /// A folder of its own on the same file system that is not watched.
    pub(crate) outside: PathBuf,
    /// A text that only this row's rule matches.
    pub(crate) marker: String,
    /// The compiled `tests/evasions`; not watched.
    pub(crate) evade: PathBuf,
}

/// The rules do not match what holds this as well: it is what a trick cuts off.
pub(crate) const TAIL: &str = "what is cut off later";

#[test]
fn every_evasion_ends_as_the_table_says() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: run it with sudo");
    let ground = Ground::new();
    let (wide, narrow): (Vec<_>, Vec<_>) = ROWS.iter().enumerate().partition(|(_, row)| row.wide);
    let mut found = ground.play(&narrow, &ground.watched.clone());
    found.extend(ground.play(&wide, Path::new("/")));
    found.sort_by_key(|found| found.number);
    let mut wrong = Vec::new();
    for Found { number, outcome, delay, failed } in found {
        let row = &ROWS[number];
        let delay = delay.map_or(String::new(), |delay| format!("{:.3} s", delay.as_secs_f64()));
        println!("{:<70} {:<9} {delay}", row.name, outcome.word());
        if outcome != row.expected && !row.by_chance {
            wrong.push(format!("{}: {} instead of {}", row.name, outcome.word(), row.expected.word()));
        }
        wrong.extend(failed.map(|status| format!("{}: the trick itself failed: {status}", row.name)));
    }
    assert!(wrong.is_empty(), "the table is not true:\n{}", wrong.join("\n"));
}

#[test]
fn the_readme_holds_the_same_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(path).expect("README.md");
    let section = readme.split("## Evasions").nth(1).expect("a section `## Evasions` in README.md");
    let section = section.split("\n## ").next().expect("its text");
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    let wanted: Vec<String> =
        ROWS.iter().map(|row| format!("| {} | {} | {} |", row.name, row.expected.word(), row.why)).collect();
    assert_eq!(rows, wanted, "README.md should hold:\n{}", wanted.join("\n"));
}

#[test]
fn every_row_has_a_name_of_its_own() {
    let names: HashMap<&str, usize> = ROWS.iter().map(|row| (row.name, 0)).collect();
    assert_eq!(names.len(), ROWS.len());
    assert!(ROWS.iter().all(|row| !row.name.contains('|') && !row.why.contains('|')), "a bar ends a cell");
}

/// Folders, the compiled tricks and one rule a row.
struct Ground {
    base: tempfile::TempDir,
    watched: PathBuf,
    evade: PathBuf,
    rules: PathBuf,
    /// In every marker, so that two runs at once do not hear each other.
    nonce: u64,
}

impl Ground {
    fn new() -> Self {
        let base = tempfile::Builder::new().prefix("vidette-evasion-").tempdir().expect("a folder");
        let real = base.path().canonicalize().expect("real");
        let (watched, evade, rules) = (real.join("watched"), real.join("evade"), real.join("rows.yar"));
        fs::create_dir(&watched).expect("made");
        compile(&evade);
        let ground = Self { base, watched, evade, rules, nonce: rand::random() };
        let text: String = (0..=ROWS.len()).map(|number| ground.rule(number)).collect();
        fs::write(&ground.rules, text).expect("written");
        ground
    }

    fn rule(&self, number: usize) -> String {
        let marker = self.marker(number);
        format!(
            "rule row_{number} {{ strings: $a = \"{marker}\" $tail = \"{TAIL}\" condition: $a and not $tail }}\n"
        )
    }

    /// Ends in a letter that no number continues.
    fn marker(&self, number: usize) -> String {
        format!("evasion-{:016x}-{number}x", self.nonce)
    }

    fn place(&self, number: usize) -> Place {
        let name = format!("row-{number}");
        let place = Place {
            folder: self.watched.join(&name),
            outside: self.base.path().canonicalize().expect("real").join(name),
            marker: self.marker(number),
            evade: self.evade.clone(),
        };
        fs::create_dir(&place.folder).expect("made");
        fs::create_dir(&place.outside).expect("made");
        place
    }

    /// Prepares, starts an agent that watches `path`, does every trick, lets go of what was held, and says what
    /// became of each: when it was first seen after it was done.
    fn play(&self, rows: &[(usize, &Row)], path: &Path) -> Vec<Found> {
        let mut tricks: Vec<Trick<'_>> = rows
            .iter()
            .map(|(number, row)| {
                let place = self.place(*number);
                (row.prepare)(&place);
                Trick {
                    number: *number,
                    row,
                    place,
                    held: None,
                    done: Instant::now(),
                    seen: None,
                    failed: None,
                }
            })
            .collect();
        let agent = Agent::start(&self.rules, path);
        let (canary, marker) = (self.watched.join("canary"), self.marker(ROWS.len()));
        wait_for("the agent's eyes", || {
            fs::write(&canary, &marker)?;
            std::thread::sleep(POLL);
            Ok(agent.events().iter().any(|(_, event)| is_alert(event, ROWS.len())).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {}", agent.said()));
        for trick in &mut tricks {
            trick.act();
        }
        listen(&agent, &mut tricks, Outcome::Seen);
        let released = Instant::now();
        for trick in &mut tricks {
            trick.release();
        }
        listen(&agent, &mut tricks, Outcome::Late);
        tricks.iter().map(|trick| trick.found(released)).collect()
    }
}

/// What became of a row.
struct Found {
    number: usize,
    outcome: Outcome,
    /// From when it was done to when it was seen.
    delay: Option<Duration>,
    failed: Option<ExitStatus>,
}

/// Until everything that is expected now has come, then for a while longer.
fn listen(agent: &Agent, tricks: &mut [Trick<'_>], expected: Outcome) {
    let start = Instant::now();
    let mut complete: Option<Instant> = None;
    while complete.is_none_or(|at| at.elapsed() < GRACE) && start.elapsed() < COMING {
        std::thread::sleep(POLL);
        let events = agent.events();
        for trick in tricks.iter_mut().filter(|trick| trick.seen.is_none()) {
            trick.look(&events);
        }
        let now = |row: &Row| row.expected == expected || row.by_look;
        let missing = |trick: &&Trick<'_>| now(trick.row) && trick.seen.is_none();
        if tricks.iter().filter(missing).count() == 0 {
            complete.get_or_insert_with(Instant::now);
        }
    }
}

struct Trick<'a> {
    number: usize,
    row: &'a Row,
    place: Place,
    held: Option<Child>,
    done: Instant,
    seen: Option<Instant>,
    /// The trick itself did not work.
    failed: Option<ExitStatus>,
}

impl Trick<'_> {
    /// Returns when the trick says "ready" or ends.
    fn act(&mut self) {
        let mut command = (self.row.act)(&self.place);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.row.name));
        let out = child.stdout.take().expect("a pipe");
        let mut ready = [PollFd::new(&out, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("fits");
        let told = rustix::event::poll(&mut ready, Some(&patience)).expect("polled");
        assert!(told > 0, "{}: the trick is neither ready nor at its end", self.row.name);
        self.done = Instant::now();
        child.stdout = Some(out); // it may say more
        self.held = Some(child);
    }

    fn found(&self, released: Instant) -> Found {
        let outcome = match self.seen {
            Some(seen) if seen < released && !self.row.by_look => Outcome::Seen,
            Some(_) => Outcome::Late,
            None => Outcome::NotSeen,
        };
        let delay = self.seen.map(|seen| seen.saturating_duration_since(self.done));
        Found { number: self.number, outcome, delay, failed: self.failed }
    }

    fn release(&mut self) {
        let Some(mut child) = self.held.take() else { return };
        drop(child.stdin.take());
        let status = child.wait().expect("waited");
        if !status.success() {
            self.failed = Some(status);
        }
    }

    fn look(&mut self, events: &[(Instant, Value)]) {
        match self.row.sight {
            Sight::Content => {
                self.seen = events.iter().find(|(_, event)| is_alert(event, self.number)).map(|(at, _)| *at);
            }
            Sight::Events(told) => {
                let all: Vec<&Value> = events.iter().map(|(_, event)| event).collect();
                self.seen = told(&self.place, &all).then(Instant::now);
            }
        }
    }
}

impl Drop for Trick<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.held.take() {
            drop(child.stdin.take()); // what it holds, it lets go of by itself
            let _ = child.wait();
        }
    }
}

fn is_alert(event: &Value, number: usize) -> bool {
    event["event.dataset"] == "vidette.detection" && event["rule.name"] == format!("row_{number}")
}

/// `vidette-agent watch --json`, and every line it printed so far.
struct Agent {
    child: Child,
    events: Arc<Mutex<Vec<(Instant, Value)>>>,
    errors: tempfile::NamedTempFile,
}

impl Agent {
    fn start(rules: &Path, path: &Path) -> Self {
        let errors = tempfile::NamedTempFile::new().expect("a file");
        let mut child = Command::new(binary("vidette-agent").expect("built"))
            .args(["watch", "--json", "--no-builtin-rules", "--rules"])
            .args([rules, path])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors.reopen().expect("opened"))
            .spawn()
            .expect("started");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let events = Arc::new(Mutex::new(Vec::new()));
        let kept = events.clone();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                kept.lock().expect("not poisoned").push((Instant::now(), event));
            }
        });
        Self { child, events, errors }
    }

    fn events(&self) -> Vec<(Instant, Value)> {
        self.events.lock().expect("not poisoned").clone()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.errors.path()).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "the agent said: {}", self.said());
        }
    }
}

/// The tricks, and an empty library beside them.
fn compile(to: &Path) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("evasions");
    let sources = ["evade.c", "places.c", "run.c", "write.c"].map(|name| folder.join(name));
    let warnings = ["-O1", "-Wall", "-Wextra", "-Werror", "-o"].map(OsStr::new);
    cc(warnings.into_iter().chain([to.as_os_str()]).chain(sources.iter().map(|path| path.as_os_str())));
    let library = to.with_extension("so");
    let empty = ["-shared", "-x", "c", "/dev/null", "-o"].map(OsStr::new);
    cc(empty.into_iter().chain([library.as_os_str()]));
}

fn cc<'a>(arguments: impl Iterator<Item = &'a OsStr>) {
    let output =
        Command::new("cc").args(arguments).output().expect("`cc` is missing: install gcc and libc6-dev");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
