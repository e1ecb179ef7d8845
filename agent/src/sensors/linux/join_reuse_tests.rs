//! A small kernel with four pids that are used again and again: whatever the order in which its two queues are
//! read, a file is attributed to the process that closed it, or to nobody.

use super::*;
use std::fs::File;

const SEEDS: u64 = 400;
const STEPS: usize = 400;
const PIDS: u32 = 4;
/// Between two steps: more than the slack that times are compared with, or much less.
const STEP_NS: [u64; 2] = [3_000_000, 20_000];

struct Random(u64);

impl Random {
    /// xorshift64*.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

#[derive(Debug, Clone)]
struct Process {
    pid: u32,
    start_ns: u64,
    executable: String,
    ended: bool,
    reaped: bool,
    exit_told: bool,
}

enum Message {
    Fork { parent: u32, child: u32 },
    Exec { pid: u32 },
    Exit { pid: u32 },
}

/// One in the queue of files: by whom, and what it ran then.
struct FileEvent {
    by: usize,
    run: Option<String>,
    executable: String,
}

struct Kernel {
    random: Random,
    now_ns: u64,
    processes: Vec<Process>,
    files: VecDeque<FileEvent>,
    told: VecDeque<(u64, Message)>,
    written: usize,
}

impl Kernel {
    fn new(seed: u64) -> Self {
        let shell = Process {
            pid: 1000,
            start_ns: 1_000_000_000,
            executable: "/bin/sh".into(),
            ended: false,
            reaped: false,
            exit_told: false,
        };
        let random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let (files, told) = (VecDeque::new(), VecDeque::new());
        Self { random, now_ns: 2_000_000_000, processes: vec![shell], files, told, written: 0 }
    }

    fn pick(&mut self, is: impl Fn(&Process) -> bool) -> Option<usize> {
        let all: Vec<usize> =
            (1..self.processes.len()).filter(|&at| self.processes.get(at).is_some_and(&is)).collect();
        let at = self.random.below(all.len().max(1) as u64);
        all.get(usize::try_from(at).unwrap()).copied()
    }

    /// Something happens.
    fn step(&mut self) {
        let which = usize::try_from(self.random.below(2)).unwrap();
        self.now_ns += STEP_NS[which];
        let lives = |process: &Process| !process.ended;
        match self.random.below(10) {
            0..3 => self.fork(),
            3 => {
                let Some(at) = self.pick(lives) else { return };
                let executable = format!("/bin/{}-{}", self.processes.len(), self.now_ns);
                let run = Some(executable.clone());
                let process = &mut self.processes[at];
                self.files.push_back(FileEvent { by: at, run, executable: executable.clone() });
                process.executable = executable;
                self.told.push_back((self.now_ns, Message::Exec { pid: process.pid }));
            }
            4..7 => {
                let Some(at) = self.pick(lives) else { return };
                let executable = self.processes[at].executable.clone();
                self.files.push_back(FileEvent { by: at, run: None, executable });
            }
            7 => {
                let Some(at) = self.pick(lives) else { return };
                self.processes[at].ended = true;
                // Nearly always told at once, and else after its pid is free.
                if self.random.below(4) > 0 {
                    self.tell_exit(at);
                }
            }
            8 => {
                let Some(at) = self.pick(|process| process.ended && !process.reaped) else { return };
                self.processes[at].reaped = true;
            }
            _ => {
                let Some(at) = self.pick(|process| process.ended && !process.exit_told) else { return };
                self.tell_exit(at);
            }
        }
    }

    fn fork(&mut self) {
        let free = |pid: &u32| !self.processes.iter().any(|process| process.pid == *pid && !process.reaped);
        let Some(child) = (1..=PIDS).find(free) else { return };
        // Mostly by the shell: others have images of their own soon.
        let parent = if self.random.below(3) > 0 { None } else { self.pick(|process| !process.ended) };
        let parent = self.processes[parent.unwrap_or(0)].clone();
        self.told.push_back((self.now_ns, Message::Fork { parent: parent.pid, child }));
        let start_ns = self.now_ns;
        let (ended, reaped, exit_told) = (false, false, false);
        self.processes.push(Process { pid: child, start_ns, ended, reaped, exit_told, ..parent });
    }

    fn tell_exit(&mut self, at: usize) {
        self.processes[at].exit_told = true;
        self.told.push_back((self.now_ns, Message::Exit { pid: self.processes[at].pid }));
    }
}

fn open(path: &str) -> OpenFile {
    let descriptor = File::open("/dev/null").unwrap().into();
    OpenFile { descriptor, path: path.as_bytes().to_vec(), deleted: false, container_path: Vec::new() }
}

fn key(path: &str) -> (u64, u64) {
    (1, path.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())))
}

/// One turn of the reader, with the world going on between its parts.
fn turn(kernel: &mut Kernel, joiner: &mut Joiner, right: &mut [usize; 3]) {
    let from_ns = kernel.now_ns;
    let steps = kernel.random.below(3);
    (0..steps).for_each(|_| kernel.step());
    let count = usize::try_from(kernel.random.below(12)).unwrap().min(kernel.files.len());
    let batch: Vec<(FileEvent, bool)> = kernel
        .files
        .drain(..count)
        .collect::<Vec<_>>()
        .into_iter()
        .map(|event| {
            let reaped = kernel.processes[event.by].reaped;
            (event, reaped)
        })
        .collect();
    let emptied = kernel.files.is_empty();
    let steps = kernel.random.below(6);
    (0..steps).for_each(|_| kernel.step());
    let until_ns = kernel.now_ns;
    for (at_ns, told) in std::mem::take(&mut kernel.told) {
        let at = Moment { unix_ns: 0, uptime_ns: at_ns };
        let told = match told {
            Message::Fork { parent, child } => Told::Fork { parent, child, start_ns: Some(at_ns) },
            Message::Exec { pid } => Told::Exec { pid, facts: None, exe: None },
            Message::Exit { pid } => Told::Exit { pid, status: 0 },
        };
        joiner.tell(told, at);
    }
    let mut seen = Vec::new();
    for (event, reaped) in batch {
        let process = &kernel.processes[event.by];
        let there = kernel.processes.iter().rfind(|other| other.pid == process.pid && !other.reaped);
        let standing = match (reaped, process.ended) {
            (false, false) => Standing::Lives,
            (false, true) => Standing::Ended,
            (true, _) => {
                let known = joiner.table.start_ns(process.pid);
                let there = there.is_some_and(|there| Some(there.start_ns) == known);
                if there && joiner.table.has_former(process.pid) { Standing::Before } else { Standing::Gone }
            }
        };
        let run = event.run.map(|path| Program { file: open(&path), key: key(&path), elf: true });
        let truth = format!("{} {}", process.start_ns, event.executable);
        let written = run.is_none().then(|| open(&truth));
        kernel.written += usize::from(written.is_some());
        let at = Moment { unix_ns: 0, uptime_ns: from_ns };
        seen.push(Seen { pid: process.pid, standing, written, opened: false, run, at });
    }
    judge(joiner.see(seen, Read { from_ns, until_ns, emptied }), right);
}

/// Right, without a name of the executable, without a process.
fn judge(outcomes: Vec<Outcome>, right: &mut [usize; 3]) {
    for outcome in outcomes {
        let Outcome::Written { process, file, .. } = outcome else { continue };
        let truth = String::from_utf8(file.path).unwrap();
        let (start_ns, executable) = truth.split_once(' ').unwrap();
        let Some(process) = process else {
            right[2] += 1;
            continue;
        };
        assert_eq!(process.start_ns.to_string(), start_ns, "another process: {process:?}, not {truth}");
        let named = String::from_utf8(process.executable).unwrap();
        assert!(named.is_empty() || named == executable, "another image: {named}, not {truth}");
        right[usize::from(named.is_empty())] += 1;
    }
}

#[test]
fn a_pid_that_is_used_again_never_lends_its_name() {
    let mut total = [0; 3];
    for seed in 0..SEEDS {
        let mut kernel = Kernel::new(seed);
        let mut table = ProcessTable::new("boot".into());
        let shell = Facts {
            pid: 1000,
            start_ns: Some(1_000_000_000),
            executable: b"/bin/sh".into(),
            ..Facts::default()
        };
        table.found(&shell, Source::Inventory);
        let mut joiner = Joiner::new(table);
        let mut right = [0; 3];
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..STEPS {
                let steps = kernel.random.below(8);
                (0..steps).for_each(|_| kernel.step());
                turn(&mut kernel, &mut joiner, &mut right);
            }
            while !kernel.files.is_empty() || joiner.is_waiting() {
                turn(&mut kernel, &mut joiner, &mut right);
            }
        }));
        assert!(checked.is_ok(), "seed {seed}");
        assert_eq!(right.iter().sum::<usize>(), kernel.written, "seed {seed}: every file is told of");
        total.iter_mut().zip(right).for_each(|(total, right)| *total += right);
    }
    let [right, nameless, nobody] = total;
    println!("right {right}, image not known {nameless}, nobody named {nobody}, wrong 0");
    assert!(right > 2 * (nameless + nobody), "{total:?}");
}
