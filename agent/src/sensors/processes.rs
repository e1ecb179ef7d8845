//! The process table: who is who, from forks, execs and exits, joined later with what ran.
//!
//! Pure: no clock, no `/proc`. Assumes that its input comes in the kernel's order. Descriptions go into
//! observations.
//!
//! A process is (boot id, pid, start), never a pid alone. The connector says when the fork was told
//! (nanoseconds, some microseconds after the fact), `/proc/PID/stat` when it was (ticks of 10 ms). Both give
//! the same entity id because only the tenth of a second is hashed; a fork told just after a tenth began is
//! looked up in `/proc` (`is_ambiguous`). No host can use up its pids within a tenth of a second.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use vidette_protocol::limits::{ARGS_BYTES_MAX, ARGS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use vidette_protocol::wire;

/// Live and ended processes together. Beyond it new ones are not known.
pub(crate) const PROCESSES_MAX: usize = 65_536;
/// Ended processes that are still remembered, for files they closed just before.
pub(crate) const TOMBSTONES_MAX: usize = 4096;
/// Arguments of all images together. Bytes. Beyond it new images keep none.
pub(crate) const ARGS_TABLE_BYTES_MAX: usize = 16 << 20;
/// What an entity id tells apart. Nanoseconds.
const GRANULE_NS: u64 = 100_000_000;
/// A fork is told at most this long after it happened, nearly always. Nanoseconds.
const TOLD_LATE_NS: u64 = 20_000_000;

/// What somebody could say of a process. Only `pid` is certain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Thread group id.
    pub(crate) pid: u32,
    /// CLOCK_BOOTTIME of its start, nanoseconds.
    pub(crate) start_ns: Option<u64>,
    /// Its parent's pid.
    pub(crate) parent: u32,
    /// `comm`.
    pub(crate) name: Vec<u8>,
    /// Path of its image.
    pub(crate) executable: Vec<u8>,
    /// Arguments.
    pub(crate) args: Vec<Vec<u8>>,
    /// Working directory.
    pub(crate) working_directory: Vec<u8>,
    /// Effective user.
    pub(crate) uid: Option<u32>,
    /// Effective group.
    pub(crate) gid: Option<u32>,
}

/// What a process runs. Shared by a process and what it forked.
#[derive(Debug, Default)]
struct Image {
    executable: Vec<u8>,
    args: Args,
    name: Vec<u8>,
    working_directory: Vec<u8>,
    source: wire::Source,
}

type SharedImage = Rc<RefCell<Image>>;

/// Arguments, and the sum over all images that they are part of.
#[derive(Debug, Default)]
struct Args {
    list: Vec<Vec<u8>>,
    sum: Rc<Cell<usize>>,
}

impl Args {
    fn bytes(&self) -> usize {
        self.list.iter().map(Vec::len).sum()
    }
}

impl Drop for Args {
    fn drop(&mut self) {
        self.sum.set(self.sum.get().saturating_sub(self.bytes()));
    }
}

#[derive(Debug, Clone)]
struct Parent {
    pid: u32,
    start_ns: Option<u64>,
    image: SharedImage,
}

#[derive(Debug)]
struct Entry {
    start_ns: Option<u64>,
    parent: Option<Parent>,
    uid: Option<u32>,
    gid: Option<u32>,
    image: SharedImage,
    /// Images before it whose successors nobody has put a path to yet, oldest first.
    before: VecDeque<SharedImage>,
    ran: bool,
    ended: bool,
}

/// Which of the images that a process had since its last settled one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The one before every exec that is not settled.
    Settled,
    /// The newest.
    Newest,
}

/// The table.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    boot_id: String,
    entries: HashMap<u32, Entry>,
    tombstones: VecDeque<(u32, Option<u64>)>,
    args_bytes: Rc<Cell<usize>>,
}

/// Hex of the first 16 bytes of BLAKE3 over boot id, pid and the tenth of a second of its start; empty when
/// the start is not known.
#[must_use]
pub(crate) fn entity_id(boot_id: &str, pid: u32, start_ns: Option<u64>) -> String {
    let Some(start_ns) = start_ns else { return String::new() };
    let mut hasher = blake3::Hasher::new();
    hasher.update(boot_id.as_bytes());
    hasher.update(&[0]);
    hasher.update(&pid.to_le_bytes());
    hasher.update(&granule(start_ns).to_le_bytes());
    let digest = hasher.finalize();
    data_encoding::HEXLOWER.encode(digest.as_bytes().get(..16).unwrap_or_default())
}

fn granule(start_ns: u64) -> u64 {
    start_ns - start_ns % GRANULE_NS
}

/// Whether a start may belong to the tenth of a second before: ask `/proc`.
#[must_use]
pub(crate) fn is_ambiguous(told_ns: u64) -> bool {
    told_ns % GRANULE_NS < TOLD_LATE_NS
}

/// Whether two starts of one pid are of one process.
#[must_use]
pub(crate) fn is_same_start(one: Option<u64>, other: Option<u64>) -> bool {
    one.map(granule) == other.map(granule)
}

/// Cuts to the limits of the contract.
pub(crate) fn cut_args(args: &mut Vec<Vec<u8>>) {
    let mut room = ARGS_BYTES_MAX;
    args.truncate(ARGS_MAX);
    for argument in args {
        argument.truncate(room);
        room -= argument.len();
    }
}

impl Entry {
    fn new(facts: &Facts, parent: Option<Parent>, image: SharedImage) -> Self {
        Self {
            start_ns: facts.start_ns,
            parent,
            uid: facts.uid,
            gid: facts.gid,
            image,
            before: VecDeque::new(),
            ran: false,
            ended: false,
        }
    }
}

impl ProcessTable {
    /// Empty.
    #[must_use]
    pub(crate) fn new(boot_id: String) -> Self {
        Self { boot_id, entries: HashMap::new(), tombstones: VecDeque::new(), args_bytes: Rc::default() }
    }

    /// Whether this pid is somebody, alive or just ended.
    #[must_use]
    pub(crate) fn knows(&self, pid: u32) -> bool {
        self.entries.contains_key(&pid)
    }

    /// Its start, when it is known.
    #[must_use]
    pub(crate) fn start_ns(&self, pid: u32) -> Option<u64> {
        self.entries.get(&pid)?.start_ns
    }

    /// The pid of its parent; 0 when it is not known.
    #[must_use]
    pub(crate) fn parent(&self, pid: u32) -> u32 {
        self.entries.get(&pid).and_then(|entry| entry.parent.as_ref()).map_or(0, |parent| parent.pid)
    }

    /// The pids of the living.
    #[must_use]
    pub(crate) fn living(&self) -> Vec<u32> {
        self.entries.iter().filter(|(_, entry)| !entry.ended).map(|(pid, _)| *pid).collect()
    }

    /// The newest image's path; empty when it is not known.
    #[must_use]
    pub(crate) fn executable(&self, pid: u32) -> Vec<u8> {
        self.entries.get(&pid).map(|entry| entry.image.borrow().executable.clone()).unwrap_or_default()
    }

    /// A process was read from `/proc`. One that is known already keeps what it is; false then.
    pub(crate) fn found(&mut self, facts: &Facts, source: wire::Source) -> bool {
        if self.entries.get(&facts.pid).is_some_and(|entry| is_same_start(entry.start_ns, facts.start_ns)) {
            return false;
        }
        let image = self.image(facts, source);
        let parent = self.parent_of(facts.parent);
        self.insert(facts.pid, Entry::new(facts, parent, image));
        true
    }

    /// Fork: the child runs what its parent runs.
    pub(crate) fn fork(&mut self, parent: u32, child: u32, start_ns: Option<u64>) {
        let made_by = self.parent_of(parent);
        // The list made at start may have it already, and may have looked at it after it ran something.
        if let Some(entry) = self.entries.get_mut(&child)
            && !entry.ended
            && is_same_start(entry.start_ns, start_ns)
        {
            entry.parent = made_by;
            return;
        }
        let (image, uid, gid) = match self.entries.get(&parent) {
            Some(entry) => (entry.image.clone(), entry.uid, entry.gid),
            None => (SharedImage::default(), None, None),
        };
        let facts = Facts { pid: child, start_ns, uid, gid, ..Facts::default() };
        self.insert(child, Entry::new(&facts, made_by, image));
    }

    /// Exec: the old image is gone, whatever becomes known of the new one. `facts` are what `/proc` said right
    /// after, if it did; the path is not taken from them but given to [`Self::settle`].
    pub(crate) fn exec(&mut self, pid: u32, facts: Option<&Facts>) {
        let mut image = facts.cloned().unwrap_or_default();
        image.executable.clear();
        let image = self.image(&image, wire::Source::Join);
        if !self.knows(pid) {
            let facts = facts.cloned().unwrap_or(Facts { pid, ..Facts::default() });
            let parent = self.parent_of(facts.parent);
            self.insert(pid, Entry::new(&facts, parent, SharedImage::default()));
        }
        let Some(entry) = self.entries.get_mut(&pid) else { return };
        let old = std::mem::replace(&mut entry.image, image);
        entry.before.push_back(old);
        if let Some(facts) = facts {
            entry.uid = facts.uid.or(entry.uid);
            entry.gid = facts.gid.or(entry.gid);
        }
    }

    /// How many execs of this process wait for [`Self::settle`].
    #[must_use]
    pub(crate) fn unsettled(&self, pid: u32) -> usize {
        self.entries.get(&pid).map_or(0, |entry| entry.before.len())
    }

    /// The path of the oldest exec that is not settled, and where it comes from; empty when nobody knows.
    /// Without `facts_hold` the arguments that `/proc` gave were of another image, and go.
    pub(crate) fn settle(&mut self, pid: u32, executable: &[u8], source: wire::Source, facts_hold: bool) {
        let Some(entry) = self.entries.get_mut(&pid) else { return };
        if entry.before.pop_front().is_none() {
            return;
        }
        entry.ran = true;
        let mut image = entry.before.front().unwrap_or(&entry.image).borrow_mut();
        image.executable = cut(executable, PATH_BYTES_MAX);
        image.source = source;
        if !facts_hold {
            image.args = Args::default();
            image.name.clear();
        }
    }

    /// The effective user changed.
    pub(crate) fn user(&mut self, pid: u32, uid: u32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.uid = Some(uid);
        }
    }

    /// The effective group changed.
    pub(crate) fn group(&mut self, pid: u32, gid: u32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.gid = Some(gid);
        }
    }

    /// Whether it ran a program of its own while somebody looked.
    #[must_use]
    pub(crate) fn has_run(&self, pid: u32) -> bool {
        self.entries.get(&pid).is_some_and(|entry| entry.ran)
    }

    /// It ended: remembered for a while, until [`TOMBSTONES_MAX`] others have ended.
    pub(crate) fn exit(&mut self, pid: u32) {
        let Some(entry) = self.entries.get_mut(&pid) else { return };
        if std::mem::replace(&mut entry.ended, true) {
            return;
        }
        self.tombstones.push_back((pid, entry.start_ns));
        while self.tombstones.len() > TOMBSTONES_MAX {
            let Some((pid, start_ns)) = self.tombstones.pop_front() else { return };
            if self.entries.get(&pid).is_some_and(|entry| entry.ended && entry.start_ns == start_ns) {
                self.entries.remove(&pid);
            }
        }
    }

    /// Forgets everybody: nobody tells any more who ends.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(std::mem::take(&mut self.boot_id));
    }

    /// A process for an event, without its user's name.
    #[must_use]
    pub(crate) fn describe(&self, pid: u32, which: Which) -> Option<wire::Process> {
        let entry = self.entries.get(&pid)?;
        let image = match which {
            Which::Settled => entry.before.front().unwrap_or(&entry.image),
            Which::Newest => &entry.image,
        };
        Some(self.process(pid, entry, image))
    }

    fn process(&self, pid: u32, entry: &Entry, image: &SharedImage) -> wire::Process {
        let image = image.borrow();
        wire::Process {
            entity_id: entity_id(&self.boot_id, pid, entry.start_ns),
            pid,
            start_ns: entry.start_ns.unwrap_or(0),
            executable: image.executable.clone(),
            args: image.args.list.clone(),
            name: image.name.clone(),
            working_directory: image.working_directory.clone(),
            uid: entry.uid,
            gid: entry.gid,
            user_name: Vec::new(),
            parent: entry.parent.as_ref().map(|parent| self.parent_process(parent)),
            source: image.source as i32,
            ..wire::Process::default()
        }
    }

    fn parent_process(&self, parent: &Parent) -> wire::ParentProcess {
        let image = parent.image.borrow();
        wire::ParentProcess {
            entity_id: entity_id(&self.boot_id, parent.pid, parent.start_ns),
            pid: parent.pid,
            executable: image.executable.clone(),
            args: image.args.list.clone(),
            name: image.name.clone(),
        }
    }

    fn parent_of(&self, pid: u32) -> Option<Parent> {
        if pid == 0 {
            return None;
        }
        let (start_ns, image) = match self.entries.get(&pid) {
            Some(entry) => (entry.start_ns, entry.image.clone()),
            None => (None, SharedImage::default()),
        };
        Some(Parent { pid, start_ns, image })
    }

    fn insert(&mut self, pid: u32, entry: Entry) {
        if self.entries.len() < PROCESSES_MAX || self.knows(pid) {
            self.entries.insert(pid, entry);
        }
    }

    fn image(&self, facts: &Facts, source: wire::Source) -> SharedImage {
        let mut args = facts.args.clone();
        cut_args(&mut args);
        let bytes: usize = args.iter().map(Vec::len).sum();
        if self.args_bytes.get().saturating_add(bytes) > ARGS_TABLE_BYTES_MAX {
            args.clear();
        }
        let args = Args { list: args, sum: self.args_bytes.clone() };
        args.sum.set(args.sum.get().saturating_add(args.bytes()));
        Rc::new(RefCell::new(Image {
            executable: cut(&facts.executable, PATH_BYTES_MAX),
            args,
            name: cut(&facts.name, NAME_BYTES_MAX),
            working_directory: cut(&facts.working_directory, PATH_BYTES_MAX),
            source,
        }))
    }
}

fn cut(bytes: &[u8], max: usize) -> Vec<u8> {
    bytes.get(..max).unwrap_or(bytes).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pid: u32, start_ns: u64, executable: &[u8]) -> Facts {
        Facts {
            pid,
            start_ns: Some(start_ns),
            parent: 1,
            executable: executable.to_vec(),
            args: vec![executable.to_vec(), b"-x".to_vec()],
            ..Facts::default()
        }
    }

    fn table() -> ProcessTable {
        let mut table = ProcessTable::new("boot".into());
        table.found(&facts(10, 1_000_000_000, b"/bin/sh"), wire::Source::Inventory);
        table
    }

    fn executable(table: &ProcessTable, pid: u32, which: Which) -> Vec<u8> {
        table.describe(pid, which).map(|process| process.executable).unwrap_or_default()
    }

    #[test]
    fn a_fork_runs_what_its_parent_runs() {
        let mut table = table();
        table.fork(10, 20, Some(2_000_000_000));
        let child = table.describe(20, Which::Newest).unwrap_or_default();
        assert_eq!(child.executable, b"/bin/sh");
        assert_eq!(child.source, wire::Source::Inventory as i32);
        let parent = child.parent.unwrap_or_default();
        assert_eq!((parent.pid, parent.executable), (10, b"/bin/sh".to_vec()));
        assert_eq!(parent.entity_id, entity_id("boot", 10, Some(1_000_000_000)));
    }

    /// A version that kept the old image until a new one was known named the parent's in half of all cases.
    #[test]
    fn an_exec_whose_image_nobody_could_read_never_shows_its_parents() {
        let mut table = table();
        table.fork(10, 20, Some(2_000_000_000));
        table.exec(20, None);
        assert_eq!(executable(&table, 20, Which::Newest), b"");
        assert_eq!(table.describe(20, Which::Newest).map(|process| process.args), Some(vec![]));
        table.settle(20, b"", wire::Source::None, false);
        for which in [Which::Newest, Which::Settled] {
            assert_eq!(executable(&table, 20, which), b"");
        }
        // Nor does what it forks.
        table.fork(20, 30, Some(3_000_000_000));
        assert_eq!(executable(&table, 30, Which::Newest), b"");
    }

    #[test]
    fn what_was_forked_before_an_image_was_known_learns_it_too() {
        let mut table = table();
        table.exec(10, None);
        table.fork(10, 20, Some(2_000_000_000));
        table.settle(10, b"/bin/new", wire::Source::Join, true);
        assert_eq!(executable(&table, 20, Which::Newest), b"/bin/new");
    }

    #[test]
    fn execs_are_settled_oldest_first() {
        let mut table = table();
        table.exec(10, None);
        table.exec(10, None);
        assert_eq!(executable(&table, 10, Which::Settled), b"/bin/sh");
        table.settle(10, b"/usr/bin/env", wire::Source::Join, true);
        assert_eq!(executable(&table, 10, Which::Settled), b"/usr/bin/env");
        assert_eq!(executable(&table, 10, Which::Newest), b"");
        table.settle(10, b"/usr/bin/python3", wire::Source::Join, true);
        assert_eq!(executable(&table, 10, Which::Settled), b"/usr/bin/python3");
        assert_eq!(table.unsettled(10), 0);
    }

    #[test]
    fn a_pid_that_is_used_again_is_somebody_else() {
        let mut table = table();
        table.fork(10, 20, Some(2_000_000_000));
        let first = table.describe(20, Which::Newest).map(|process| process.entity_id);
        table.exit(20);
        assert_eq!(first, table.describe(20, Which::Newest).map(|process| process.entity_id));
        table.fork(10, 20, Some(9_000_000_000));
        assert_ne!(first, table.describe(20, Which::Newest).map(|process| process.entity_id));
        assert!(table.living().contains(&20));
    }

    #[test]
    fn both_clocks_give_one_id() {
        // Told 30 µs after the fact, read back in ticks of 10 ms.
        let told = 5_163_000_030;
        let stat = 5_160_000_000;
        assert!(!is_ambiguous(told));
        assert_eq!(entity_id("b", 1, Some(told)), entity_id("b", 1, Some(stat)));
        // Right after a tenth began, the fact may lie before: that must be looked up.
        assert!(is_ambiguous(5_200_000_030));
        assert_ne!(entity_id("b", 1, Some(told)), entity_id("c", 1, Some(told)));
        assert_ne!(entity_id("b", 1, Some(told)), entity_id("b", 2, Some(told)));
    }

    #[test]
    fn tombstones_and_processes_are_bounded() {
        let mut table = table();
        for pid in 100..100 + u32::try_from(TOMBSTONES_MAX).unwrap_or(0) + 50 {
            table.fork(10, pid, Some(2_000_000_000));
            table.exit(pid);
        }
        assert!(!table.knows(149) && table.knows(150));
        for pid in 100_000..100_000 + u32::try_from(PROCESSES_MAX).unwrap_or(0) + 50 {
            table.fork(10, pid, Some(3_000_000_000));
        }
        assert_eq!(table.entries.len(), PROCESSES_MAX);
    }

    #[test]
    fn arguments_are_bounded_and_given_back() {
        let mut table = table();
        let before = table.args_bytes.get();
        let mut large = facts(0, 2_000_000_000, b"/bin/x");
        large.args = vec![vec![b'a'; ARGS_BYTES_MAX + 10]; 3];
        for pid in 100..3000 {
            table.found(&Facts { pid, ..large.clone() }, wire::Source::Proc);
            assert!(table.args_bytes.get() <= ARGS_TABLE_BYTES_MAX);
        }
        for pid in 100..3000 {
            table.fork(10, pid, Some(9_000_000_000));
        }
        assert_eq!(table.args_bytes.get(), before);
    }
}
