//! Who did it: storms of short processes against the real kernel, as root, with eight busy processes beside them.
//!
//! What the tests do is done by grandchildren: what this process and its children write is the agent's own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use crossbeam_channel::Receiver;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vidette_agent::sensors::{self, Config, Level, Observation, OpenFile, Sensors};
use vidette_agent::telemetry::Counters;
use vidette_protocol::wire::{Process, Source, Trigger};

const HOGS: usize = 8;
const WRITERS: usize = 10_000;
const COPIES: usize = 4_000;
const DROPPERS: usize = 1_200;
/// Here the sensors are tested and not detection's queue: the reader of it has no priority.
const QUEUE: usize = 16_384;
/// A generous end for what should take seconds. Nothing is expected to come later.
const WAIT: Duration = Duration::from_secs(120);
/// SCHED_OTHER and SCHED_RR, linux/sched.h.
const ORDINARY: u32 = 0;
const ROUND_ROBIN: u32 = 2;

struct Hogs(Vec<Child>);

impl Hogs {
    fn start() -> Self {
        let hog = |_| Command::new("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        Self((0..HOGS).map(hog).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            hog.kill().unwrap();
            hog.wait().unwrap();
        }
    }
}

struct Run {
    sensors: Sensors,
    counters: Arc<Counters>,
    observations: Receiver<Observation>,
    folder: tempfile::TempDir,
}

/// Who closed each file, by the file's name, and what was in it.
type Written = HashMap<Vec<u8>, (Process, Vec<u8>)>;

impl Run {
    fn start(realtime: bool) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root: run them with sudo");
        let folder = tempfile::tempdir().unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attribution");
        compile(&["-O2"], &sources.join("actors.c"), &folder.path().join("actors"));
        let tiny = ["-Os", "-s", "-static", "-nostdlib", "-Wl,-n,--build-id=none"];
        compile(&tiny, &sources.join("tiny.c"), &folder.path().join("tiny"));
        std::fs::copy(folder.path().join("actors"), folder.path().join("other")).unwrap();
        let config = Config {
            watch: vec![folder.path().as_os_str().as_bytes().to_vec()],
            exclude: Vec::new(),
            level_max: Level::Full,
            network_filesystems: false,
            realtime,
            self_test: None,
            canary: None,
        };
        let counters = Arc::new(Counters::default());
        let (out, observations) = crossbeam_channel::bounded(QUEUE);
        let sensors = sensors::start(config, counters.clone(), out).unwrap();
        assert_eq!(sensors.level(), Level::Full, "{}", sensors.reason());
        Self { sensors, counters, observations, folder }
    }

    fn path(&self, name: &str) -> Vec<u8> {
        self.folder.path().join(name).into_os_string().as_bytes().to_vec()
    }

    /// Starts a script as a grandchild, in the folder.
    fn shell(&self, script: &str) -> Child {
        let script = format!("({script}); true");
        Command::new("/bin/sh").args(["-c", &script]).current_dir(self.folder.path()).spawn().unwrap()
    }

    /// Runs a script and collects, until as many files were written and programs run as are expected.
    fn collect(&self, script: &str, prefix: u8, expected: usize, runs_expected: usize) -> (Written, Written) {
        let started = Instant::now();
        let mut child = self.shell(script);
        let (mut written, mut runs) = (Written::new(), Written::new());
        let mut others: BTreeMap<String, usize> = BTreeMap::new();
        let is_ours = |path: &[u8]| {
            base(path).first() == Some(&prefix)
                && base(path).len() > 1
                && base(path)[1..].iter().all(u8::is_ascii_digit)
        };
        while written.len() < expected || runs.len() < runs_expected {
            let observation = self.observations.recv_deadline(started + WAIT);
            match observation {
                Ok(Observation::FileWritten { file, process, trigger: Trigger::CloseWrite, .. })
                    if is_ours(&file.path) =>
                {
                    let process = process.unwrap_or_default();
                    let name = base(&file.path).to_vec();
                    assert!(written.insert(name, (process, content(&file))).is_none(), "told twice");
                }
                Ok(Observation::ProgramRun { process, image, .. }) => match image {
                    Some(image) if is_ours(&image.path) => {
                        runs.insert(base(&image.path).to_vec(), (process, content(&image)));
                    }
                    Some(image) => {
                        *others.entry(format!("ran: {}", base(&image.path).escape_ascii())).or_default() += 1;
                    }
                    None => *others.entry("ran: nobody knows what".into()).or_default() += 1,
                },
                Ok(Observation::Lost { gap, .. }) => {
                    *others.entry(format!("lost: {}", gap.detail)).or_default() += 1;
                }
                Ok(_) => {}
                Err(_) => panic!(
                    "{} of {expected} written, {} of {runs_expected} run; {others:?}; {:?}",
                    written.len(),
                    runs.len(),
                    self.counters.all()
                ),
            }
        }
        assert!(child.wait().unwrap().success());
        others.retain(|what, _| what.starts_with("lost"));
        println!("{script:.60}: {:.1} s, {others:?}", started.elapsed().as_secs_f64());
        (written, runs)
    }
}

fn compile(options: &[&str], source: &Path, program: &Path) {
    let status = Command::new("cc").args(options).arg("-o").arg(program).arg(source).status().unwrap();
    assert!(status.success(), "cc could not compile {}", source.display());
}

fn content(file: &OpenFile) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 16];
    let file = File::from(file.descriptor.try_clone().unwrap());
    let length = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(length);
    bytes
}

fn base(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap()
}

/// Right, wrong, none.
fn judge(what: &str, found: &Written, is_right: impl Fn(&[u8], &Process) -> bool) -> [usize; 3] {
    let mut counts = [0; 3];
    for (name, (process, _)) in found {
        let kind = match is_right(name, process) {
            true => 0,
            false if process.executable.is_empty() => 2,
            false => 1,
        };
        if kind == 1 {
            println!("wrong: {} by {process:?}", name.escape_ascii());
        }
        counts[kind] += 1;
    }
    let [right, wrong, none] = counts;
    println!("{what}: right {right} of {}, wrong {wrong}, none {none}", found.len());
    counts
}

fn number(name: &[u8]) -> usize {
    std::str::from_utf8(&name[1..]).unwrap().parse().unwrap()
}

/// The scheduling policy of the reader's thread: field 41 of its `stat` (proc_pid_stat(5)).
fn policy() -> Option<u32> {
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        if head.ends_with("(sensors") {
            return rest.split_ascii_whitespace().nth(38).unwrap().parse().ok();
        }
    }
    None // it has not called itself so yet
}

fn wait_for_policy(wanted: u32) -> Duration {
    let started = Instant::now();
    while policy() != Some(wanted) {
        assert!(started.elapsed() < WAIT, "the reader's policy stays {:?}", policy());
        std::thread::sleep(Duration::from_millis(2));
    }
    started.elapsed()
}

fn storms(realtime: bool) {
    let run = Run::start(realtime);
    wait_for_policy(if realtime { ROUND_ROBIN } else { ORDINARY });
    let hogs = Hogs::start();
    let (written, _) = run.collect(&format!("./actors fork {WRITERS}"), b'w', WRITERS, 0);
    let actors = run.path("actors");
    let counts = judge("writers without exec", &written, |_, process| process.executable == actors);
    assert_eq!(counts, [WRITERS, 0, 0]);
    for (name, (process, content)) in &written {
        assert_eq!(name, content);
        assert!(process.entity_id.len() == 32 && process.parent.is_some(), "{process:?}");
    }
    let ids: HashSet<&str> = written.values().map(|(process, _)| process.entity_id.as_str()).collect();
    assert_eq!(ids.len(), WRITERS, "two processes have one id");

    let each = COPIES / 4;
    let copy = |at| {
        format!(
            "i={0}; while [ $i -lt {1} ]; do cp tiny c$i; i=$((i+1)); done & ",
            at * each,
            (at + 1) * each
        )
    };
    let script: String = (0..4).map(copy).collect();
    let (written, _) = run.collect(&format!("{script} wait"), b'c', COPIES, 0);
    let tiny = std::fs::read(run.folder.path().join("tiny")).unwrap();
    assert!(written.values().all(|(_, content)| *content == tiny));
    assert_eq!(judge("cp", &written, |_, process| base(&process.executable) == b"cp"), [COPIES, 0, 0]);

    let (written, runs) = run.collect(&format!("./actors drop {DROPPERS}"), b'd', DROPPERS, DROPPERS);
    let counts = judge("droppers: written", &written, |_, process| process.executable == actors);
    assert_eq!(counts, [DROPPERS, 0, 0]);
    let dropped = |name: &[u8], process: &Process| base(&process.executable) == name;
    assert_eq!(judge("droppers: run", &runs, dropped), [DROPPERS, 0, 0]);
    for (name, (_, content)) in written.iter().chain(&runs) {
        assert_eq!(content, &[&tiny, &name[..]].concat(), "content of {}", name.escape_ascii());
    }
    drop(hogs);
    run.sensors.stop();
}

#[test]
fn short_processes_under_load_are_named_in_real_time() {
    storms(true);
}

#[test]
fn short_processes_under_load_are_named_at_normal_priority() {
    storms(false);
}

/// clone3(2) with `set_tid` gives one pid to a thousand processes, one after another.
#[test]
fn processes_that_had_one_pid_are_told_apart_or_not_named() {
    let run = Run::start(true);
    for (load, times) in [(false, 1000), (true, 200)] {
        let hogs = load.then(Hogs::start);
        let (written, _) = run.collect(&format!("./actors one-pid {times}; rm r*"), b'r', times, 0);
        let expected = [run.path("actors"), run.path("other")];
        let is_right = |name: &[u8], process: &Process| process.executable == expected[number(name) % 2];
        let [right, wrong, _] = judge("one pid", &written, is_right);
        assert_eq!(wrong, 0);
        assert!(right > 0, "nobody was named");
        let named = written.values().filter(|(process, _)| !process.entity_id.is_empty());
        let (mut ids, mut count) = (HashSet::new(), 0);
        named.for_each(|(process, _)| {
            count += 1;
            ids.insert(process.entity_id.clone());
        });
        assert_eq!(ids.len(), count, "two processes have one id");
        drop(hogs);
    }
    run.sensors.stop();
}

/// A version that kept the old image until a new one was known named the parent's in half of all cases.
#[test]
fn an_exec_whose_image_is_on_no_disk_never_shows_its_parents() {
    const TIMES: usize = 300;
    let run = Run::start(true);
    let (written, _) = run.collect(&format!("./actors memory {TIMES}"), b'm', TIMES, 0);
    let [_, wrong, _] =
        judge("from memory", &written, |_, process| process.executable.starts_with(b"/memfd:m"));
    assert_eq!(wrong, 0);
    run.sensors.stop();
}

/// Found by a reader of the README: the user was that of the moment when the event was handled.
#[test]
fn a_user_is_the_one_at_the_close_or_none() {
    const TIMES: usize = 400;
    let run = Run::start(true);
    let (written, _) = run.collect(&format!("./actors users {TIMES}"), b'u', TIMES, 0);
    let mut known = 0;
    for (name, (process, _)) in &written {
        let wanted = if number(name).is_multiple_of(2) { 65_534 } else { 0 };
        assert!(process.uid.is_none_or(|uid| uid == wanted), "{}: {process:?}", name.escape_ascii());
        known += usize::from(process.uid.is_some());
    }
    println!("users: right {known} of {TIMES}, none {}, wrong 0", TIMES - known);
    run.sensors.stop();
}

#[test]
fn a_reader_with_too_much_to_do_is_not_urgent_any_more_until_it_has_slept() {
    let run = Run::start(true);
    wait_for_policy(ROUND_ROBIN);
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let observations = run.observations.clone();
    let consumer = std::thread::spawn(move || {
        while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
            let _ = observations.recv_timeout(Duration::from_millis(10));
        }
    });
    let flood: Vec<Child> = (0..4).map(|_| run.shell("exec ./actors flood")).collect();
    let demoted = wait_for_policy(ORDINARY);
    // Shells that wait for floods: both go.
    for mut shell in flood {
        let children = format!("/proc/{0}/task/{0}/children", shell.id());
        for pid in std::fs::read_to_string(children).unwrap_or_default().split_ascii_whitespace() {
            let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = shell.wait();
    }
    let promoted = wait_for_policy(ROUND_ROBIN);
    println!("ordinary after {demoted:?} of flood, real time again {promoted:?} after its end");
    drop(stop);
    consumer.join().unwrap();
    run.sensors.stop();
}

#[test]
fn a_process_says_whose_it_is_and_where_it_comes_from() {
    let run = Run::start(true);
    let (written, _) = run.collect("sh -c './actors write q1; :'; sleep 0.2", b'q', 1, 0);
    let (process, _) = &written[&b"q1"[..]];
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(!process.cgroup.is_empty());
    assert!(own.contains(std::str::from_utf8(&process.cgroup).unwrap()), "{process:?}");
    let login = std::fs::read_to_string("/proc/self/loginuid").unwrap();
    assert_eq!(process.login_uid, login.trim().parse().ok().filter(|uid| *uid != u32::MAX));
    // 0 where the session's leader has no pid in this namespace, so that getsid(2) is no witness.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let session = status.lines().find_map(|line| line.strip_prefix("NSsid:")).unwrap();
    let session = session.split_ascii_whitespace().next().unwrap().parse().ok();
    assert_eq!((process.session, process.uid), (session, Some(0)));
    let sources = process.sources.unwrap();
    assert_eq!((sources.start, sources.parent), (Source::Join as i32, Source::Join as i32));
    for source in [sources.user, sources.login, sources.cgroup] {
        assert!(source == Source::Join as i32 || source == Source::Proc as i32, "{sources:?}");
    }
    // Its parents are shells; somewhere among theirs is this test, and above it what started that.
    assert!(process.parent.as_ref().unwrap().executable.ends_with(b"sh"), "{process:?}");
    let own = std::env::current_exe().unwrap().into_os_string();
    let at = process.ancestors.iter().position(|ancestor| ancestor.executable == own.as_bytes());
    let at = at.unwrap_or_else(|| panic!("this test is not among {:?}", process.ancestors));
    assert_eq!(process.ancestors[at].pid, std::process::id());
    assert!(process.ancestors.iter().all(|ancestor| ancestor.entity_id.len() == 32));
    let eldest = std::iter::successors(Some(std::process::id()), |pid| parent_of(*pid)).last();
    assert!(
        process.ancestors.len() == 16 || process.ancestors.last().map(|last| last.pid) == eldest,
        "{:?}",
        process.ancestors
    );
    run.sensors.stop();
}

/// The parent as /proc tells it; none above the first process.
fn parent_of(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    (parent != 0).then_some(parent)
}
