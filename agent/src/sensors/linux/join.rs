//! Joins the two kernel queues: which process closed a file, and which file an exec ran.
//!
//! Pure, but for the descriptors it carries. One turn of the reader: a batch of fanotify was read, then the
//! connector was drained to empty; here the connector's part comes first (`Joiner::tell`), then the batch
//! (`Joiner::see`). So whoever closed a file is known by then. Outcomes go to the reader, which hands them on.
//!
//! What the kernel does in an execve(2), in this order: OPEN_EXEC for the file that was named; if it is a
//! script, OPEN_EXEC for its interpreter; for a dynamic program, OPEN_EXEC for the loader (`ld-linux…`); and
//! when all went well the exec event on the connector. An execve that fails leaves its OPEN_EXECs without an
//! exec event. So one exec is a *group*: any number of scripts, one ELF program, at most one loader. The
//! process's executable is the program, as `/proc/PID/exe` has it; what is worth scanning is the script if
//! there is one. fanotify merges equal events that still wait, so a loader may be missing from a later group.
//! An exec from a memfd, or from a file system that has no mark, has no group at all: `/proc/PID/exe` is
//! opened for it. It is known to have no group when the fanotify queue was empty after the exec was told.
//!
//! Events of fanotify carry a pid and no time. Whose they are is decided when they are read, from what their
//! pidfd says and from when they can have been queued (`Seen::window`): right or nobody, never the wrong one.
//! Everything here is kept by process, not by pid.

use crate::host::Moment;
use crate::sensors::OpenFile;
use crate::sensors::processes::{Facts, Holder, ProcessTable, Standing, Which, Who, Window};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use vidette_protocol::wire::{self, Source};

/// Turns that an exec or a closed file waits for the other queue while fanotify's never gets empty: the 16,384
/// events that it holds by default take 64 reads, and what an exec waits for may be the last of them.
const WAIT_TURNS_MAX: u64 = 96;
/// Closed files that wait. Each holds a descriptor.
const DEFERRED_MAX: usize = 256;
/// OPEN_EXECs that wait, over all processes. Each holds a descriptor.
const HELD_MAX: usize = 512;
/// How long an OPEN_EXEC waits for its exec: beyond it the execve failed.
const HELD_AGE_MAX: Duration = Duration::from_secs(5);

/// A file on its way to be run.
#[derive(Debug)]
pub(crate) struct Program {
    /// Open.
    pub(crate) file: OpenFile,
    /// Device and inode.
    pub(crate) key: (u64, u64),
    /// It begins like ELF; what does not is a script.
    pub(crate) elf: bool,
}

/// One fanotify event. The kernel may merge both kinds.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Who.
    pub(crate) pid: u32,
    /// What has become of it.
    pub(crate) standing: Standing,
    /// A regular file that was closed after writing, or a guarded one that was opened.
    pub(crate) written: Option<OpenFile>,
    /// The latter.
    pub(crate) opened: bool,
    /// A file that was opened to be run.
    pub(crate) run: Option<Program>,
    /// When it was read.
    pub(crate) at: Moment,
}

/// One event of the connector, with what `/proc` said right after.
#[derive(Debug)]
pub(crate) enum Told {
    /// A new process.
    Fork {
        /// Its parent.
        parent: u32,
        /// Itself.
        child: u32,
        /// CLOCK_BOOTTIME, nanoseconds.
        start_ns: Option<u64>,
    },
    /// A new image.
    Exec {
        /// The process.
        pid: u32,
        /// From `/proc`.
        facts: Option<Box<Facts>>,
        /// `/proc/PID/exe`, open.
        exe: Option<Program>,
    },
    /// A session of its own.
    Session {
        /// The process.
        pid: u32,
    },
    /// A new effective user.
    User {
        /// The process.
        pid: u32,
        /// The user.
        uid: u32,
    },
    /// A new effective group.
    Group {
        /// The process.
        pid: u32,
        /// The group.
        gid: u32,
    },
    /// The end.
    Exit {
        /// The process.
        pid: u32,
        /// wait(2) status.
        status: i32,
    },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A file was closed after writing, or a guarded one was opened.
    Written {
        /// Who.
        process: Option<wire::Process>,
        /// What.
        file: OpenFile,
        /// The latter.
        opened: bool,
        /// When.
        at: Moment,
    },
    /// A program was run.
    Ran {
        /// By whom.
        process: wire::Process,
        /// What.
        image: Option<Program>,
        /// When.
        at: Moment,
    },
    /// A process that ran a program ended.
    Ended {
        /// Which.
        process: wire::Process,
        /// wait(2) status.
        status: i32,
        /// When.
        at: Moment,
    },
}

#[derive(Debug)]
struct Pending {
    exe: Option<Program>,
    at: Moment,
    turn: u64,
}

/// When a batch was read. CLOCK_BOOTTIME, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Read {
    /// The read began.
    pub(crate) from_ns: u64,
    /// And ended.
    pub(crate) until_ns: u64,
    /// The queue was empty afterwards.
    pub(crate) emptied: bool,
}

#[derive(Debug)]
struct Deferred {
    seen: Seen,
    /// Whose; none when two had its pid.
    who: Option<Who>,
    /// When it can have been queued.
    window: Window,
    turn: u64,
}

/// The join.
#[derive(Debug)]
pub(crate) struct Joiner {
    /// Who is who.
    pub(crate) table: ProcessTable,
    turn: u64,
    /// What is read next was queued after this. CLOCK_BOOTTIME, nanoseconds.
    since_ns: u64,
    pending: HashMap<Who, VecDeque<Pending>>,
    held: HashMap<Who, Vec<(Program, Moment)>>,
    held_count: usize,
    deferred: Vec<Deferred>,
    ends: HashMap<Who, (i32, Moment)>,
    /// An OPEN_EXEC was theirs or another's: what they run is told only where `/proc` confirms it.
    blurred: HashSet<Who>,
    outcomes: Vec<Outcome>,
}

impl Joiner {
    /// With a table that may already know somebody.
    #[must_use]
    pub(crate) fn new(table: ProcessTable) -> Self {
        Self {
            table,
            turn: 0,
            since_ns: 0,
            pending: HashMap::new(),
            held: HashMap::new(),
            held_count: 0,
            deferred: Vec::new(),
            ends: HashMap::new(),
            blurred: HashSet::new(),
            outcomes: Vec::new(),
        }
    }

    /// Whether something waits for the next turn, which should come at once.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        !self.pending.is_empty() || !self.deferred.is_empty()
    }

    /// The connector's part of a turn, event by event.
    pub(crate) fn tell(&mut self, told: Told, at: Moment) {
        self.table.tell_time(at.uptime_ns);
        match told {
            Told::Fork { parent, child, start_ns } => {
                self.table.fork(parent, child, start_ns, at.uptime_ns);
            }
            Told::Exec { pid, facts, exe } => {
                let unknown = self.table.newest(pid);
                self.table.exec(pid, facts.as_deref());
                let who = self.table.newest(pid);
                if unknown != who
                    && let Some(list) = self.held.remove(&unknown)
                {
                    self.held.insert(who, list);
                }
                if self.table.unsettled(who) > 0 {
                    let turn = self.turn;
                    self.pending.entry(who).or_default().push_back(Pending { exe, at, turn });
                } else {
                    // The table is full: the run is told, its process is not remembered.
                    let executable = exe.as_ref().map(|exe| exe.file.path.clone()).unwrap_or_default();
                    let process = wire::Process { pid, executable, ..wire::Process::default() };
                    self.outcomes.push(Outcome::Ran { process, image: exe, at });
                }
            }
            Told::Session { pid } => self.table.session(pid),
            Told::User { pid, uid } => self.table.user(pid, uid),
            Told::Group { pid, gid } => self.table.group(pid, gid),
            Told::Exit { pid, status } => {
                let who = self.table.exiting(pid);
                self.table.leave(who);
                self.ends.insert(who, (status, at));
            }
        }
    }

    /// Messages of the connector were lost before `now`.
    pub(crate) fn lost(&mut self, now: Moment) {
        self.table.lost(now.uptime_ns);
    }

    /// fanotify's part of a turn: the batch, and when it was read.
    pub(crate) fn see(&mut self, batch: Vec<Seen>, read: Read) -> Vec<Outcome> {
        let mut queue: Vec<Deferred> = std::mem::take(&mut self.deferred);
        queue.extend(batch.into_iter().map(|seen| self.identify(seen, read)));
        let mut ahead: HashMap<Who, usize> = HashMap::new();
        for who in queue.iter().filter(|waiting| waiting.seen.run.is_some()).filter_map(|one| one.who) {
            *ahead.entry(who).or_default() += 1;
        }
        let mut later: HashSet<Who> = HashSet::new();
        for mut waiting in queue {
            let Some(who) = waiting.who else {
                self.nobodys(waiting.seen);
                continue;
            };
            let coming = ahead.get(&who).copied().unwrap_or(0);
            if later.contains(&who) || self.must_wait(&waiting, who, coming, read.emptied) {
                later.insert(who);
                self.deferred.push(waiting);
                continue;
            }
            if let Some(file) = waiting.seen.written.take() {
                self.written(who, (file, waiting.seen.opened), coming, waiting.window, waiting.seen.at);
            }
            if let Some(program) = waiting.seen.run.take() {
                ahead.insert(who, coming.saturating_sub(1));
                self.hold(who, program, waiting.seen.at);
            }
        }
        self.settle_due(read.emptied);
        self.drop_old(read.until_ns);
        self.end_due();
        if read.emptied {
            self.since_ns = self.since_ns.max(read.from_ns);
        }
        self.turn += 1;
        std::mem::take(&mut self.outcomes)
    }

    /// Whose an event is. The queue is in the order of time: what comes after an event of somebody was queued
    /// after that one's fork.
    fn identify(&mut self, seen: Seen, read: Read) -> Deferred {
        let window = Window { since_ns: self.since_ns, read_ns: read.from_ns, until_ns: read.until_ns };
        let who = match self.table.holder(seen.pid, seen.standing, window) {
            Holder::One(who) => {
                self.since_ns = self.since_ns.max(self.table.told_ns(who));
                Some(who)
            }
            Holder::Nobody => Some(Who::from(seen.pid)),
            Holder::Several => {
                if seen.run.is_some() {
                    self.blurred.extend(self.table.holders(seen.pid));
                }
                None
            }
        };
        Deferred { seen, who, window, turn: self.turn }
    }

    /// An event of one of several that had its pid: it is told, and nobody is named. A program may have been
    /// run, or its execve may have failed.
    fn nobodys(&mut self, mut seen: Seen) {
        let at = seen.at;
        if let Some(file) = seen.written.take() {
            self.outcomes.push(Outcome::Written { process: None, file, opened: seen.opened, at });
        }
        if let Some(program) = seen.run.take().filter(|program| !is_loader(program)) {
            let executable = if program.elf { program.file.path.clone() } else { Vec::new() };
            let process = wire::Process { pid: seen.pid, executable, ..wire::Process::default() };
            self.outcomes.push(Outcome::Ran { process, image: Some(program), at });
        }
    }

    /// Without the connector: every group is taken for a run, and nobody is remembered.
    pub(crate) fn see_alone(&mut self, batch: Vec<Seen>) -> Vec<Outcome> {
        for mut seen in batch {
            let who = Who::from(seen.pid);
            if let Some(file) = seen.written.take() {
                let window = Window { since_ns: 0, read_ns: 0, until_ns: 0 };
                self.written(who, (file, seen.opened), 1, window, seen.at);
            }
            if let Some(program) = seen.run.take() {
                self.hold(who, program, seen.at);
            }
        }
        for (Who { pid, .. }, list) in std::mem::take(&mut self.held) {
            let at = list.first().map(|(_, at)| *at);
            for group in split(list.into_iter().map(|(program, _)| program).collect()) {
                let (path, image) = choose(group, None);
                let unknown = || wire::Process { pid, ..wire::Process::default() };
                let mut process = self.table.describe(pid, Which::Newest).unwrap_or_else(unknown);
                if process.executable != path {
                    process.args.clear(); // of another image
                    process.executable = path;
                }
                self.outcomes.extend(at.map(|at| Outcome::Ran { process, image, at }));
            }
        }
        self.forget();
        std::mem::take(&mut self.outcomes)
    }

    /// The connector is gone, or messages of it: what waits for it will not come.
    pub(crate) fn forget(&mut self) {
        self.table.clear();
        self.pending.clear();
        self.held.clear();
        self.held_count = 0;
        self.ends.clear();
        self.blurred.clear();
    }

    /// A file closed by somebody who has just run a program, when it is not known yet which: the OPEN_EXEC may
    /// come with the next batch, or never.
    fn must_wait(&self, waiting: &Deferred, who: Who, coming: usize, emptied: bool) -> bool {
        if waiting.seen.written.is_none() || coming > 0 || self.held.contains_key(&who) {
            return false;
        }
        let age = self.turn - waiting.turn;
        let fresh = if emptied { age == 0 } else { age < WAIT_TURNS_MAX };
        self.table.unsettled(who) > 0 && fresh && self.deferred.len() < DEFERRED_MAX
    }

    fn written(
        &mut self,
        who: Who,
        (file, opened): (OpenFile, bool),
        coming: usize,
        window: Window,
        at: Moment,
    ) {
        let parent = self.table.newest(self.table.parent(who));
        if self.is_complete(parent, true) {
            self.settle_groups(parent, 1);
        }
        if self.held.contains_key(&who) && self.table.unsettled(who) > 0 {
            self.settle_groups(who, coming);
        } else if coming == 0 {
            self.settle_rest(who);
        }
        let mut process = self.table.describe_at(who, Which::Settled, window, true);
        if self.blurred.contains(&who) && self.table.unsettled(who) > 0 {
            // Before or after its exec: nobody knows.
            process = process.map(|process| wire::Process {
                executable: Vec::new(),
                args: Vec::new(),
                name: Vec::new(),
                source: Source::None as i32,
                ..process
            });
        }
        self.outcomes.push(Outcome::Written { process, file, opened, at });
    }

    fn hold(&mut self, who: Who, program: Program, at: Moment) {
        let list = self.held.entry(who).or_default();
        let stray = list.is_empty() && is_loader(&program); // of a group that is settled already
        if !stray && self.held_count < HELD_MAX {
            list.push((program, at));
            self.held_count += 1;
        } else if list.is_empty() {
            self.held.remove(&who);
        }
    }

    /// A turn is waited when the numbers of groups and execs differ: the rest of either may be on its way.
    /// Parents first, because their images are in what is told of their children.
    fn settle_due(&mut self, emptied: bool) {
        let mut all: Vec<Who> = self.pending.keys().copied().collect();
        all.sort_unstable_by_key(|who| self.table.start_ns(*who));
        for who in all {
            let newest = self.pending.get(&who).and_then(|list| list.back()).map_or(0, |exec| exec.turn);
            let age = self.turn - newest;
            let parent_waits = self.table.unsettled(self.table.parent(who)) > 0;
            if age > WAIT_TURNS_MAX || (emptied && age > 0 && !parent_waits) {
                self.settle_rest(who);
            } else if !parent_waits && self.is_complete(who, emptied) {
                self.settle_groups(who, 0);
            }
        }
    }

    /// As many groups as execs, and nothing missing from the last one.
    fn is_complete(&self, who: Who, emptied: bool) -> bool {
        let held = self.held.get(&who).map_or(&[][..], Vec::as_slice);
        let complete = held.last().is_some_and(|(last, _)| is_loader(last)) || emptied && has_program(held);
        complete && groups_of(held) == self.table.unsettled(who)
    }

    /// Every exec that waits, with or without a group.
    fn settle_rest(&mut self, who: Who) {
        self.settle_groups(who, 0);
        while self.table.unsettled(who) > 0 {
            self.settle_one(who, None);
        }
    }

    /// Pairs groups and execs in order. With more groups than execs, and no program of this process still to
    /// come in the batch (`coming`), the first ones are of execs that failed; where `/proc/PID/exe` names one of
    /// them, those after it are of an exec that was not told yet.
    fn settle_groups(&mut self, who: Who, coming: usize) {
        let list = self.held.remove(&who).unwrap_or_default();
        let Some(since) = list.first().map(|(_, at)| *at) else { return };
        self.held_count = self.held_count.saturating_sub(list.len());
        let mut groups = VecDeque::from(split(list.into_iter().map(|(program, _)| program).collect()));
        let waiting = self.table.unsettled(who);
        if coming == 0 && groups.len() > waiting {
            let exe = self.next_exec(who).and_then(|exec| exec.exe.as_ref()).map(|exe| exe.key);
            let named = groups.iter().position(|group| group.iter().any(|one| Some(one.key) == exe));
            groups.drain(..named.unwrap_or(groups.len() - waiting));
        }
        while self.table.unsettled(who) > 0 && !groups.is_empty() {
            // What ran from memory had no OPEN_EXEC. As the last one, a group beside it is of an exec that failed.
            let memory = self.next_exec(who).and_then(|exec| exec.exe.as_ref()).is_some_and(is_memory);
            let left = self.table.unsettled(who);
            let group = if memory && (left == 1 || groups.len() < left) { None } else { groups.pop_front() };
            self.settle_one(who, group);
        }
        for program in groups.into_iter().flatten() {
            self.hold(who, program, since);
        }
    }

    fn next_exec(&self, who: Who) -> Option<&Pending> {
        self.pending.get(&who)?.front()
    }

    fn settle_one(&mut self, who: Who, group: Option<Vec<Program>>) {
        let list = self.pending.get_mut(&who);
        let exec = list.and_then(VecDeque::pop_front);
        if self.pending.get(&who).is_some_and(VecDeque::is_empty) {
            self.pending.remove(&who);
        }
        let (exe, at) = exec.map_or((None, None), |exec| (exec.exe, Some(exec.at)));
        let (path, image, source, facts_hold) = match group {
            Some(group) => {
                let key = exe.as_ref().map(|exe| exe.key);
                let facts_hold = key.is_none_or(|key| group.iter().any(|program| program.key == key));
                let confirmed = key.is_some_and(|key| group.iter().any(|program| program.key == key));
                let (mut path, image) = choose(group, key);
                if !confirmed && self.blurred.contains(&who) {
                    path.clear();
                }
                (path, image, Source::Join, facts_hold)
            }
            None => match exe {
                Some(exe) => (exe.file.path.clone(), Some(exe), Source::Proc, true),
                None => (Vec::new(), None, Source::Join, true),
            },
        };
        self.table.settle(who, &path, source, facts_hold);
        if let (Some(process), Some(at)) = (self.table.describe(who, Which::Settled), at) {
            self.outcomes.push(Outcome::Ran { process, image, at });
        }
    }

    fn drop_old(&mut self, now_ns: u64) {
        let age_max = u64::try_from(HELD_AGE_MAX.as_nanos()).unwrap_or(u64::MAX);
        self.held.retain(|_, list| {
            list.retain(|(_, at)| now_ns.saturating_sub(at.uptime_ns) < age_max);
            !list.is_empty()
        });
        self.held_count = self.held.values().map(Vec::len).sum();
        self.blurred.retain(|who| self.table.knows(*who));
    }

    fn end_due(&mut self) {
        let due: Vec<Who> = self.ends.keys().copied().filter(|who| self.table.unsettled(*who) == 0).collect();
        for who in due {
            self.end(who);
        }
    }

    fn end(&mut self, who: Who) {
        let Some((status, at)) = self.ends.remove(&who) else { return };
        if self.table.has_run(who)
            && let Some(process) = self.table.describe(who, Which::Newest)
        {
            self.outcomes.push(Outcome::Ended { process, status, at });
        }
        self.held.remove(&who);
        self.table.exit(who, at.uptime_ns);
    }
}

fn has_program(list: &[(Program, Moment)]) -> bool {
    list.iter().any(|(program, _)| program.elf)
}

fn is_memory(program: &Program) -> bool {
    program.file.path.starts_with(b"/memfd:")
}

/// By its name: `ld-linux-x86-64.so.2`, `ld-musl-x86_64.so.1`, `ld64.so.2`. A program that is called so only
/// makes its own run look like the one before it.
fn is_loader(program: &Program) -> bool {
    let name = program.file.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    program.elf && (name.starts_with(b"ld-") || name.starts_with(b"ld.so") || name.starts_with(b"ld64.so"))
}

/// Scripts, one program, at most one loader; again.
fn split(list: Vec<Program>) -> Vec<Vec<Program>> {
    let mut groups: Vec<Vec<Program>> = Vec::new();
    for program in list {
        match groups.last_mut() {
            Some(group) if continues(group.iter(), &program) => group.push(program),
            Some(_) | None => groups.push(vec![program]),
        }
    }
    groups
}

/// How many [`split`] would make.
fn groups_of(list: &[(Program, Moment)]) -> usize {
    let (mut count, mut start) = (0, 0);
    for (at, (program, _)) in list.iter().enumerate() {
        let group = list.get(start..at).unwrap_or_default();
        if group.is_empty() || !continues(group.iter().map(|(one, _)| one), program) {
            (count, start) = (count + 1, at);
        }
    }
    count
}

fn continues<'a>(mut group: impl DoubleEndedIterator<Item = &'a Program> + Clone, next: &Program) -> bool {
    let last = group.clone().next_back();
    let has_program = group.any(|one| one.elf);
    !has_program || is_loader(next) && last.is_some_and(|last| last.elf && !is_loader(last))
}

/// The path of the process's executable, and what is worth scanning.
fn choose(mut group: Vec<Program>, exe: Option<(u64, u64)>) -> (Vec<u8>, Option<Program>) {
    let confirmed = group.iter().position(|program| Some(program.key) == exe);
    let program = confirmed.or_else(|| group.iter().position(|program| program.elf)).unwrap_or(0);
    let path = group.get(program).map(|program| program.file.path.clone()).unwrap_or_default();
    let image = if group.first().is_some_and(|first| !first.elf) { 0 } else { program };
    let image = (image < group.len()).then(|| group.swap_remove(image));
    (path, image)
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "join_reuse_tests.rs"]
mod reuse_tests;
