//! The process table: who is who, from forks, execs and exits, joined later with what ran.
//!
//! Pure: no clock, no `/proc`. Assumes that its input comes in the kernel's order, but for exits: a process may
//! be reaped, and its pid forked again, before its exit is told. Descriptions go into observations.
//!
//! Those that had a pid before are kept beside the one that has it now, until [`TOMBSTONES_MAX`] others have
//! ended: an event that is older than the pid's next use is theirs (`identity`). What a process does not do
//! itself it has from its parent, as the kernel does it: user, login, session, control group.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use vidette_protocol::limits::PATH_BYTES_MAX;
use vidette_protocol::wire::{self, Source};

/// Entity ids, and which of those that had a pid is meant.
mod identity;
/// What a process runs.
mod image;
/// Parents up to init.
mod lineage;
/// The container that a control group belongs to.
mod container;

pub(crate) use identity::{Holder, SLACK_NS, Standing, Who, Window, is_ambiguous, is_same_start};
pub(crate) use image::{Facts, cut_args};

use identity::{Tenure, entity_id};
use image::{Image, SharedImage, cut};
use lineage::Link;

/// Live and ended processes together. Beyond it new ones are not known.
pub(crate) const PROCESSES_MAX: usize = 65_536;
/// Ended processes that are still remembered, for files they closed just before.
pub(crate) const TOMBSTONES_MAX: usize = 16_384;
/// Those that had one pid before and are remembered.
const FORMER_MAX: usize = 64;
/// Whose start is lately. Nanoseconds.
const LATELY_NS: u64 = 30_000_000_000;
/// Of those so many are told.
const LATELY_MAX: usize = 3;
/// Arguments of all images together. Bytes. Beyond it new images keep none.
pub(crate) const ARGS_TABLE_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(TOMBSTONES_MAX < PROCESSES_MAX);

/// A control group, shared by everybody in it.
#[derive(Debug, PartialEq, Eq)]
struct Cgroup {
    path: Vec<u8>,
    container: String,
}

/// Where the parts of an entry come from.
#[derive(Debug, Clone, Copy)]
struct Sources {
    start: Source,
    parent: Source,
    user: Source,
    login: Source,
    cgroup: Source,
}

#[derive(Debug)]
struct Entry {
    life: u64,
    /// The connector told its fork: then, otherwise its start.
    told_ns: u64,
    told: bool,
    start_ns: Option<u64>,
    entity_id: String,
    round: u32,
    parent: Option<Rc<Link>>,
    /// Itself as its children's parent.
    link: Option<Rc<Link>>,
    uid: Option<u32>,
    gid: Option<u32>,
    /// Since when it has had them; 0: always. CLOCK_BOOTTIME, nanoseconds.
    user_since_ns: u64,
    /// What it had before, and since when.
    user_before: (Option<u32>, Option<u32>, u64),
    /// Its newest exec was told.
    exec_ns: u64,
    login_uid: Option<u32>,
    login_session: Option<u32>,
    session: Option<u32>,
    cgroup: Option<Rc<Cgroup>>,
    sources: Sources,
    image: SharedImage,
    /// Images before it whose successors nobody has put a path to yet, oldest first.
    before: VecDeque<SharedImage>,
    /// Messages were lost: it may run something else by now.
    doubtful: bool,
    ran: bool,
    /// Its exit was told.
    exiting: bool,
    /// It is among the tombstones.
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
    /// Those that had a pid before, oldest first.
    former: HashMap<u32, VecDeque<Entry>>,
    former_count: usize,
    lives: u64,
    tombstones: VecDeque<(u32, u64, u64)>,
    /// When what is told now happened. CLOCK_BOOTTIME, nanoseconds.
    now_ns: u64,
    /// Somebody who ended before this may be forgotten.
    forgotten_ns: Option<u64>,
    args_bytes: Rc<Cell<usize>>,
}

impl Entry {
    /// Everything that `facts` say, from `source`.
    fn new(facts: &Facts, parent: Option<Rc<Link>>, image: SharedImage, source: Source) -> Self {
        let mut entry = Self {
            life: 0,
            told_ns: facts.start_ns.unwrap_or(0),
            told: false,
            start_ns: facts.start_ns,
            entity_id: String::new(),
            round: 0,
            sources: Sources {
                start: known(facts.start_ns.is_some(), source),
                parent: known(parent.is_some(), source),
                user: Source::None,
                login: Source::None,
                cgroup: Source::None,
            },
            parent,
            link: None,
            uid: None,
            gid: None,
            user_since_ns: 0,
            user_before: (None, None, 0),
            exec_ns: 0,
            login_uid: None,
            login_session: None,
            session: None,
            cgroup: None,
            image,
            before: VecDeque::new(),
            doubtful: false,
            ran: false,
            exiting: false,
            ended: false,
        };
        entry.learn(facts, source, 0);
        entry
    }

    /// A child of `parent`: all that it does not change itself.
    fn child(parent: &Self, link: Rc<Link>, start_ns: Option<u64>) -> Self {
        let facts = Facts { start_ns, ..Facts::default() };
        let mut entry = Self::new(&facts, Some(link), parent.image.clone(), Source::Join);
        (entry.uid, entry.gid) = (parent.uid, parent.gid);
        (entry.login_uid, entry.login_session) = (parent.login_uid, parent.login_session);
        (entry.session, entry.cgroup) = (parent.session, parent.cgroup.clone());
        entry.doubtful = parent.doubtful;
        let from = |source: Source| known(source != Source::None, Source::Join);
        entry.sources.user = from(parent.sources.user);
        entry.sources.login = from(parent.sources.login);
        entry.sources.cgroup = from(parent.sources.cgroup);
        entry
    }

    /// Another user or group; the same again is no change.
    fn becomes(&mut self, uid: Option<u32>, gid: Option<u32>, source: Source, at_ns: u64) {
        if (uid, gid) != (self.uid, self.gid) && at_ns > 0 {
            self.user_before = (self.uid, self.gid, self.user_since_ns);
            self.user_since_ns = at_ns;
        }
        (self.uid, self.gid, self.sources.user) = (uid, gid, source);
    }

    /// User, login and control group, as far as `facts` have them.
    fn learn(&mut self, facts: &Facts, source: Source, at_ns: u64) {
        if facts.uid.is_some() {
            self.becomes(facts.uid, facts.gid, source, at_ns);
        }
        if facts.session.is_some() {
            (self.login_uid, self.login_session) = (facts.login_uid, facts.login_session);
            (self.session, self.sources.login) = (facts.session, source);
        }
        if !facts.cgroup.is_empty() {
            self.sources.cgroup = source;
            if self.cgroup.as_ref().is_none_or(|cgroup| cgroup.path != facts.cgroup) {
                let path = cut(&facts.cgroup, PATH_BYTES_MAX);
                let container = container::container_id(&path);
                self.cgroup = Some(Rc::new(Cgroup { path, container }));
            }
        }
    }
}

fn known(is: bool, source: Source) -> Source {
    if is { source } else { Source::None }
}

impl ProcessTable {
    /// Empty.
    #[must_use]
    pub(crate) fn new(boot_id: String) -> Self {
        Self {
            boot_id,
            entries: HashMap::new(),
            former: HashMap::new(),
            former_count: 0,
            lives: 0,
            tombstones: VecDeque::new(),
            now_ns: 0,
            forgotten_ns: None,
            args_bytes: Rc::default(),
        }
    }

    fn entry(&self, who: impl Into<Who>) -> Option<&Entry> {
        let who = who.into();
        let newest = self.entries.get(&who.pid)?;
        let Some(life) = who.life.filter(|life| *life != newest.life) else { return Some(newest) };
        self.former.get(&who.pid)?.iter().find(|entry| entry.life == life)
    }

    fn entry_mut(&mut self, who: impl Into<Who>) -> Option<&mut Entry> {
        let who = who.into();
        let newest = self.entries.get_mut(&who.pid)?;
        let Some(life) = who.life.filter(|life| *life != newest.life) else { return Some(newest) };
        self.former.get_mut(&who.pid)?.iter_mut().find(|entry| entry.life == life)
    }

    /// Whoever has this pid now, by the table.
    #[must_use]
    pub(crate) fn newest(&self, pid: u32) -> Who {
        Who { pid, life: self.entries.get(&pid).map(|entry| entry.life) }
    }

    /// Whose an event is that was queued within the window.
    #[must_use]
    pub(crate) fn holder(&self, pid: u32, standing: Standing, window: Window) -> Holder {
        let tenure =
            |entry: &Entry| Tenure { who: Who { pid, life: Some(entry.life) }, told_ns: entry.told_ns };
        let former = self.former.get(&pid).into_iter().flatten();
        let tenures: Vec<Tenure> = former.chain(self.entries.get(&pid)).map(tenure).collect();
        identity::pick(&tenures, standing, window, self.forgotten_ns)
    }

    /// Everybody who is remembered with this pid.
    pub(crate) fn holders(&self, pid: u32) -> impl Iterator<Item = Who> {
        let former = self.former.get(&pid).into_iter().flatten();
        former.chain(self.entries.get(&pid)).map(move |entry| Who { pid, life: Some(entry.life) })
    }

    /// Whose exit is told: of those that had the pid the first whose exit was not.
    #[must_use]
    pub(crate) fn exiting(&self, pid: u32) -> Who {
        let former = self.former.get(&pid).into_iter().flatten();
        let life = former.chain(self.entries.get(&pid)).find(|entry| !entry.exiting).map(|entry| entry.life);
        Who { pid, ..life.map_or(self.newest(pid), |life| Who { pid, life: Some(life) }) }
    }

    /// Whether this pid is somebody, alive or just ended.
    #[must_use]
    pub(crate) fn knows(&self, who: impl Into<Who>) -> bool {
        self.entry(who).is_some()
    }

    /// Whether its end was not told yet.
    #[must_use]
    pub(crate) fn lives(&self, who: impl Into<Who>) -> bool {
        self.entry(who).is_some_and(|entry| !entry.ended)
    }

    /// Whether others are remembered that had this pid before.
    #[must_use]
    pub(crate) fn has_former(&self, pid: u32) -> bool {
        self.former.contains_key(&pid)
    }

    /// Its start, when it is known.
    #[must_use]
    pub(crate) fn start_ns(&self, who: impl Into<Who>) -> Option<u64> {
        self.entry(who)?.start_ns
    }

    /// When its fork was told, or its start.
    #[must_use]
    pub(crate) fn told_ns(&self, who: impl Into<Who>) -> u64 {
        self.entry(who).map_or(0, |entry| entry.told_ns)
    }

    /// The pid of its parent; 0 when it is not known.
    #[must_use]
    pub(crate) fn parent(&self, who: impl Into<Who>) -> u32 {
        self.entry(who).and_then(|entry| entry.parent.as_ref()).map_or(0, |parent| parent.pid)
    }

    /// The pids of the living.
    #[must_use]
    pub(crate) fn living(&self) -> Vec<u32> {
        self.entries.iter().filter(|(_, entry)| !entry.ended).map(|(pid, _)| *pid).collect()
    }

    /// The newest image's path; empty when it is not known.
    #[must_use]
    pub(crate) fn executable(&self, who: impl Into<Who>) -> Vec<u8> {
        self.entry(who).map(|entry| entry.image.borrow().executable.clone()).unwrap_or_default()
    }

    /// A process was read from `/proc`. One that is known already keeps what it is; false then.
    pub(crate) fn found(&mut self, facts: &Facts, source: Source) -> bool {
        if self.entries.get(&facts.pid).is_some_and(|entry| is_same_start(entry.start_ns, facts.start_ns)) {
            return false;
        }
        let image = self.image(facts, source, source);
        let parent = self.link(facts.parent);
        self.insert(facts.pid, Entry::new(facts, parent, image, source));
        true
    }

    /// Fork: the child runs what its parent runs, and is whose and where its parent is.
    pub(crate) fn fork(&mut self, parent: u32, child: u32, start_ns: Option<u64>, told_ns: u64) {
        let link = self.link(parent);
        // The list made at start may have it already, and may have looked at it after it ran something.
        if let Some(entry) = self.entries.get_mut(&child)
            && !entry.ended
            && !entry.told
            && is_same_start(entry.start_ns, start_ns)
        {
            (entry.parent, entry.link) = (link, None);
            (entry.told, entry.told_ns) = (true, told_ns);
            entry.sources.parent = Source::Join;
            return;
        }
        let mut entry = match (self.entries.get(&parent), link) {
            (Some(entry), Some(link)) => Entry::child(entry, link, start_ns),
            (_, link) => {
                let facts = Facts { pid: child, start_ns, ..Facts::default() };
                Entry::new(&facts, link, SharedImage::default(), Source::Join)
            }
        };
        (entry.told, entry.told_ns) = (true, told_ns);
        self.insert(child, entry);
    }

    /// Exec: the old image is gone, whatever becomes known of the new one. `facts` are what `/proc` said right
    /// after, if it did; the path is not taken from them but given to [`Self::settle`].
    pub(crate) fn exec(&mut self, pid: u32, facts: Option<&Facts>) {
        let mut image = facts.cloned().unwrap_or_default();
        image.executable.clear();
        let image = self.image(&image, Source::Join, known(facts.is_some(), Source::Proc));
        if !self.knows(pid) {
            let facts = facts.cloned().unwrap_or(Facts { pid, ..Facts::default() });
            let parent = self.link(facts.parent);
            self.insert(pid, Entry::new(&facts, parent, SharedImage::default(), Source::Proc));
        }
        let Some(entry) = self.entries.get_mut(&pid) else { return };
        let old = std::mem::replace(&mut entry.image, image);
        entry.before.push_back(old);
        (entry.link, entry.doubtful) = (None, false);
        entry.exec_ns = self.now_ns;
        if let Some(facts) = facts {
            entry.learn(facts, Source::Proc, self.now_ns);
        }
    }

    /// How many execs of this process wait for [`Self::settle`].
    #[must_use]
    pub(crate) fn unsettled(&self, who: impl Into<Who>) -> usize {
        self.entry(who).map_or(0, |entry| entry.before.len())
    }

    /// The path of the oldest exec that is not settled, and where it comes from; empty when nobody knows.
    /// Without `facts_hold` the arguments that `/proc` gave were of another image, and go.
    pub(crate) fn settle(
        &mut self,
        who: impl Into<Who>,
        executable: &[u8],
        source: Source,
        facts_hold: bool,
    ) {
        let Some(entry) = self.entry_mut(who) else { return };
        if entry.before.pop_front().is_none() {
            return;
        }
        entry.ran = true;
        let mut image = entry.before.front().unwrap_or(&entry.image).borrow_mut();
        image.executable = cut(executable, PATH_BYTES_MAX);
        image.source = source;
        if !facts_hold {
            image.forget_args();
        }
    }

    /// The effective user changed.
    pub(crate) fn user(&mut self, pid: u32, uid: u32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.becomes(Some(uid), entry.gid, Source::Join, self.now_ns);
        }
    }

    /// The effective group changed.
    pub(crate) fn group(&mut self, pid: u32, gid: u32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.becomes(entry.uid, Some(gid), Source::Join, self.now_ns);
        }
    }

    /// It leads a session of its own from now on.
    pub(crate) fn session(&mut self, pid: u32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            (entry.session, entry.sources.login) = (Some(pid), Source::Join);
        }
    }

    /// Whether it ran a program of its own while somebody looked.
    #[must_use]
    pub(crate) fn has_run(&self, who: impl Into<Who>) -> bool {
        self.entry(who).is_some_and(|entry| entry.ran)
    }

    /// Its exit was told; [`Self::exit`] follows when all that waits for it is settled.
    pub(crate) fn leave(&mut self, who: Who) {
        if let Some(entry) = self.entry_mut(who) {
            entry.exiting = true;
        }
    }

    /// It ended: remembered for a while, until [`TOMBSTONES_MAX`] others have ended.
    pub(crate) fn exit(&mut self, who: impl Into<Who>, at_ns: u64) {
        let who = who.into();
        let Some(entry) = self.entry_mut(who) else { return };
        entry.exiting = true;
        if std::mem::replace(&mut entry.ended, true) {
            return;
        }
        let life = entry.life;
        self.bury(who.pid, life, at_ns);
    }

    /// Messages were lost: who had a pid before is not certain any more, nor what anybody runs who is known.
    pub(crate) fn lost(&mut self, now_ns: u64) {
        self.former.clear();
        self.former_count = 0;
        for entry in self.entries.values_mut() {
            (entry.doubtful, entry.link) = (true, None);
        }
        self.forgotten_ns = Some(now_ns);
    }

    /// `/proc` says that it still runs what is known.
    pub(crate) fn confirm(&mut self, pid: u32) {
        if let Some(entry) = self.entries.get_mut(&pid) {
            entry.doubtful = false;
        }
    }

    /// Forgets everybody: nobody tells any more who ends.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(std::mem::take(&mut self.boot_id));
    }

    /// A process for an event, without its user's name.
    #[must_use]
    pub(crate) fn describe(&self, who: impl Into<Who>, which: Which) -> Option<wire::Process> {
        let who = who.into();
        let entry = self.entry(who)?;
        let image = match which {
            Which::Settled => entry.before.front().unwrap_or(&entry.image),
            Which::Newest => &entry.image,
        };
        if entry.doubtful {
            return Some(process(who.pid, entry, &Image::default()));
        }
        Some(process(who.pid, entry, &image.borrow()))
    }

    /// Those with one of these names, or whose executable has it, that ran by then and not long before it: the newest first.
    #[must_use]
    pub(crate) fn lately(&self, names: &[&'static [u8]], at_ns: u64) -> Vec<wire::Process> {
        let since_ns = at_ns.saturating_sub(LATELY_NS);
        let is_meant = |entry: &Entry| {
            let image = entry.image.borrow();
            let file = image.executable.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            names.iter().any(|name| *name == image.name.as_slice() || *name == file)
        };
        let is_late = |entry: &Entry| entry.start_ns.is_some_and(|start| (since_ns..=at_ns).contains(&start));
        let mut found: Vec<(u64, u32)> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_late(entry) && !entry.doubtful && is_meant(entry))
            .map(|(pid, entry)| (entry.start_ns.unwrap_or(0), *pid))
            .collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        let newest = found.into_iter().take(LATELY_MAX);
        newest.filter_map(|(_, pid)| self.describe(self.newest(pid), Which::Newest)).collect()
    }

    /// What is told next happened then. CLOCK_BOOTTIME, nanoseconds.
    pub(crate) fn tell_time(&mut self, at_ns: u64) {
        self.now_ns = at_ns;
    }

    /// The same, for what it did within a window: with the user that it was then, or with none when it became
    /// another within that window. `ordered`: it is known to have done it after its newest exec, if that is settled.
    #[must_use]
    pub(crate) fn describe_at(
        &self,
        who: Who,
        which: Which,
        window: Window,
        ordered: bool,
    ) -> Option<wire::Process> {
        let mut process = self.describe(who, which)?;
        let entry = self.entry(who)?;
        let (uid, gid, before_since_ns) = entry.user_before;
        let after_exec = ordered && entry.before.is_empty() && entry.exec_ns >= entry.user_since_ns;
        if entry.user_since_ns == 0 || after_exec || entry.user_since_ns + SLACK_NS <= window.since_ns {
            return Some(process);
        }
        let was_before = entry.user_since_ns > window.until_ns + SLACK_NS
            && (before_since_ns == 0 || before_since_ns + SLACK_NS <= window.since_ns);
        if was_before {
            (process.uid, process.gid) = (uid, gid);
        } else {
            (process.uid, process.gid) = (None, None);
            if let Some(sources) = &mut process.sources {
                sources.user = Source::None.into();
            }
        }
        Some(process)
    }

    /// A process as its children's parent.
    fn link(&mut self, pid: u32) -> Option<Rc<Link>> {
        if pid == 0 {
            return None;
        }
        let Some(entry) = self.entries.get_mut(&pid) else {
            return Some(Link::new(pid, String::new(), SharedImage::default(), None));
        };
        let image = if entry.doubtful { SharedImage::default() } else { entry.image.clone() };
        let new = || Link::new(pid, entry.entity_id.clone(), image, entry.parent.clone());
        Some(entry.link.get_or_insert_with(new).clone())
    }

    fn insert(&mut self, pid: u32, mut entry: Entry) {
        if self.entries.len() + self.former_count >= PROCESSES_MAX && !self.knows(pid) {
            return;
        }
        self.lives += 1;
        entry.life = self.lives;
        let before = self.entries.get(&pid);
        let again = before.filter(|before| is_same_start(before.start_ns, entry.start_ns));
        entry.round = again.map_or(0, |before| before.round.wrapping_add(1));
        entry.entity_id = entity_id(&self.boot_id, pid, entry.start_ns, entry.round);
        let told_ns = entry.told_ns;
        if let Some(mut before) = self.entries.insert(pid, entry) {
            let (life, buried) = (before.life, std::mem::replace(&mut before.ended, true));
            let list = self.former.entry(pid).or_default();
            list.push_back(before);
            self.former_count += 1;
            let first = list.front().map(|entry| entry.life).filter(|_| list.len() > FORMER_MAX);
            if let Some(first) = first {
                self.forget(pid, first, told_ns);
            }
            if !buried {
                self.bury(pid, life, told_ns);
            }
        }
    }

    fn bury(&mut self, pid: u32, life: u64, at_ns: u64) {
        self.tombstones.push_back((pid, life, at_ns));
        while self.tombstones.len() > TOMBSTONES_MAX {
            let Some((pid, life, at_ns)) = self.tombstones.pop_front() else { return };
            self.forget(pid, life, at_ns);
        }
    }

    fn forget(&mut self, pid: u32, life: u64, at_ns: u64) {
        if self.entries.get(&pid).is_some_and(|entry| entry.ended && entry.life == life) {
            self.entries.remove(&pid);
            self.former_count -= self.former.remove(&pid).map_or(0, |list| list.len());
        } else if let Some(list) = self.former.get_mut(&pid) {
            // Whoever stands before it in the list ended before it.
            let count = list.iter().take_while(|entry| entry.life <= life).count();
            list.drain(..count);
            self.former_count -= count;
            if list.is_empty() {
                self.former.remove(&pid);
            }
        }
        self.forgotten_ns = self.forgotten_ns.max(Some(at_ns));
    }

    fn image(&self, facts: &Facts, source: Source, args_source: Source) -> SharedImage {
        let image = Image::new(facts, source, args_source, &self.args_bytes, ARGS_TABLE_BYTES_MAX);
        Rc::new(image.into())
    }
}

fn process(pid: u32, entry: &Entry, image: &Image) -> wire::Process {
    let cgroup = entry.cgroup.as_deref();
    wire::Process {
        entity_id: entry.entity_id.clone(),
        pid,
        start_ns: entry.start_ns.unwrap_or(0),
        executable: image.executable.clone(),
        args: image.args.list.clone(),
        name: image.name.clone(),
        working_directory: image.working_directory.clone(),
        uid: entry.uid,
        gid: entry.gid,
        user_name: Vec::new(),
        parent: entry.parent.as_ref().map(|parent| parent.describe()),
        source: image.source as i32,
        login_uid: entry.login_uid,
        login_session: entry.login_session,
        session: entry.session,
        cgroup: cgroup.map(|cgroup| cgroup.path.clone()).unwrap_or_default(),
        container_id: cgroup.map(|cgroup| cgroup.container.clone()).unwrap_or_default(),
        ancestors: entry.parent.as_ref().map(|parent| parent.ancestors()).unwrap_or_default(),
        sources: Some(wire::Sources {
            start: entry.sources.start as i32,
            parent: entry.sources.parent as i32,
            args: image.args_source as i32,
            user: entry.sources.user as i32,
            login: entry.sources.login as i32,
            cgroup: entry.sources.cgroup as i32,
        }),
    }
}

#[cfg(test)]
mod tests;
