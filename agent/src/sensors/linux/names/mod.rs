//! Names: files renamed or linked into place, deleted, made executable; folders that move.
//!
//! The kernel tells each with handles of the object and of its folder (`sys::fanotify::NameGroup`). Here they become
//! observations: the folder's path from a cache, the object opened by its handle, so never by its path. Assumes
//! that the reader hands over every event in the order of the queue and calls [`Names::end_turn`]. Creations are
//! no observations (the close-write comes), but folders that are made are entered into the cache at once, so that
//! `mkdir -p a/b; write; rm -r a` has paths although nothing is left of it when it is handled.

use crate::host::Moment;
use crate::sensors::outlet::{Paths, is_under};
use crate::sensors::{Observation, OpenFile};
use crate::sys::fanotify::{
    ATTRIB, CREATE, DELETE, FOLDER, Handle, MOVED_FROM, MOVED_TO, NameBatch, NameEvent, NameGroup, Place,
    RENAME,
};
use folders::Folders;
use links::Links;
use marks::Marks;
use objects::{Missing, Object, Objects};
use orphans::{Orphan, Orphans};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use vidette_protocol::limits::PATH_BYTES_MAX;
use vidette_protocol::wire::{self, FileAction, Trigger};

/// Paths of folders.
mod folders;
/// Which new names are links.
mod links;
/// Marks, and where the file systems are.
pub(crate) mod marks;
/// Deletions that wait for a path.
mod orphans;
/// Opening by handle.
mod objects;

/// Renames of which only the first half was told yet: only before 5.17.
const HALVES_MAX: usize = 1024;
/// Anybody may run it.
const EXECUTABLE: u32 = 0o111;

/// The sensor of names.
#[derive(Debug)]
pub(crate) struct Names {
    group: Arc<NameGroup>,
    objects: Objects,
    folders: Folders,
    links: Links,
    orphans: Orphans,
    halves: HashMap<u32, Vec<u8>>,
    marks: Arc<Marks>,
    marks_seen: u64,
    troubles: Vec<String>,
    buffer: Vec<u8>,
    changes: Vec<Change>,
}

/// What came of an event. Several when the kernel had merged several.
#[derive(Debug)]
pub(crate) enum Change {
    /// Nothing that is watched.
    Unwatched,
    /// Something that another event tells.
    Duplicate,
    /// A file that should have been scanned could not be opened: errno.
    Refused(i32),
    /// Worth telling; the process, whose pid this is, is still to be added. It may be of an earlier event.
    Observed(u32, Box<Observation>),
}

/// What the kernel said, as far as one decision needs it.
#[derive(Debug, Clone, Copy)]
struct Context<'a> {
    paths: &'a Paths,
    pid: u32,
    now: Moment,
    folder: bool,
}

impl Context<'_> {
    fn observed(self, observation: Observation) -> Change {
        Change::Observed(self.pid, Box::new(observation))
    }
}

impl Names {
    /// Reads what comes from the superblocks that are marked.
    #[must_use]
    pub(crate) fn new(group: Arc<NameGroup>, marks: Arc<Marks>) -> Self {
        Self {
            group,
            objects: Objects::new(marks.clone()),
            folders: Folders::default(),
            links: Links::default(),
            orphans: Orphans::default(),
            halves: HashMap::new(),
            marks,
            marks_seen: 0,
            troubles: Vec::new(),
            buffer: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// One batch of the kernel's queue.
    ///
    /// # Errors
    /// As [`NameGroup::read`].
    pub(crate) fn read(&mut self) -> std::io::Result<NameBatch> {
        let batch = self.group.read(std::mem::take(&mut self.buffer));
        if self.marks.changes() != self.marks_seen {
            self.folders.clear(); // a file system may be somewhere else now
        }
        batch
    }

    /// File systems whose names are not followed, whenever they are others than before.
    pub(crate) fn troubles(&mut self) -> Option<&[String]> {
        let changes = self.marks.changes();
        if std::mem::replace(&mut self.marks_seen, changes) == changes {
            return None;
        }
        let troubles = self.marks.troubles();
        if troubles == self.troubles {
            return None;
        }
        self.troubles = troubles;
        Some(&self.troubles)
    }

    /// Events were lost: renames may be among them.
    pub(crate) fn forget(&mut self) {
        self.folders.clear();
        self.halves.clear();
    }

    /// Lets go of what may keep a file system from being unmounted, and takes the buffer back. Gives what waited
    /// for a path in vain.
    pub(crate) fn end_turn(&mut self, batch: NameBatch, paths: &Paths) -> Vec<Change> {
        self.objects.end_turn();
        let hopeless = self.orphans.end_turn(batch.emptied);
        self.buffer = batch.into_buffer();
        hopeless.into_iter().map(|orphan| nameless(orphan, paths)).collect()
    }

    /// Whether another turn should come soon although the queue is empty.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        self.orphans.is_waiting()
    }

    /// Takes note of what the agent itself did: its folders have paths too.
    pub(crate) fn follow_own(&mut self, event: &NameEvent<'_>) {
        let nowhere = Paths { watch: vec![b"/dev/null/".to_vec()], exclude: Vec::new() };
        let noted = event.mask & (CREATE | RENAME | MOVED_FROM | MOVED_TO) != 0 && event.mask & DELETE == 0;
        if event.mask & FOLDER != 0 && noted || event.place.is_none() {
            self.follow(event, &nowhere, Moment { unix_ns: 0, uptime_ns: 0 }).clear();
        }
    }

    /// What an event means.
    pub(crate) fn follow(&mut self, event: &NameEvent<'_>, paths: &Paths, now: Moment) -> &mut Vec<Change> {
        self.changes.clear();
        let context = Context { paths, pid: event.pid, now, folder: event.mask & FOLDER != 0 };
        match event.place {
            Some(place) => self.follow_place(event, place, context),
            None => {
                // A number of links: the entry's own event says the rest.
                if let Some(object) = event.object {
                    self.links.changed(object.key());
                }
                self.changes.push(Change::Duplicate);
            }
        }
        &mut self.changes
    }

    fn follow_place(&mut self, event: &NameEvent<'_>, place: Place<'_>, context: Context<'_>) {
        let mask = event.mask;
        if mask & (RENAME | MOVED_TO) != 0 {
            let old = match event.old_place {
                Some(old) => self.path(old),
                None => self.halves.remove(&event.pid),
            };
            self.renamed(event.object, place, old, context);
        }
        // After the other: merged with it, it is of a later rename.
        if mask & MOVED_FROM != 0 {
            self.left(event.pid, place, context);
        }
        let linked = mask & CREATE != 0 && self.created(event.object, place, context);
        if mask & ATTRIB != 0 && !linked {
            self.attributes(event.object, place, mask & CREATE != 0, context);
        }
        if mask & DELETE != 0 {
            self.deleted(event.object, place, context);
        }
    }

    /// Before 5.17: the first half of a rename.
    fn left(&mut self, pid: u32, place: Place<'_>, context: Context<'_>) {
        self.changes.push(Change::Duplicate);
        let Some(path) = self.path(place) else { return };
        if context.folder {
            self.folders.moved(&path);
        }
        if self.halves.len() >= HALVES_MAX {
            self.halves.clear();
        }
        self.halves.insert(pid, path);
    }

    fn renamed(
        &mut self,
        handle: Option<Handle<'_>>,
        place: Place<'_>,
        old: Option<Vec<u8>>,
        context: Context<'_>,
    ) {
        if context.folder {
            return self.folder_renamed(handle, place, old, context);
        }
        let path = self.path(place);
        let covers = |path: &Option<Vec<u8>>| path.as_ref().is_some_and(|path| context.paths.cover(path));
        if path.is_some() && !covers(&path) && !covers(&old) {
            return self.changes.push(Change::Unwatched);
        }
        let old_path = old.unwrap_or_default();
        if path.is_none() || covers(&path) {
            let trigger = Trigger::Rename;
            if self.scan(handle, place, path.as_deref(), trigger, &old_path, context) {
                return;
            }
        }
        match path {
            Some(path) => {
                let object = self.object(handle, place).ok();
                let change = changed(FileAction::Renamed, object.as_ref(), path, old_path, context);
                self.changes.push(change);
            }
            None => self.changes.push(Change::Unwatched), // nothing is left that could be named
        }
    }

    fn folder_renamed(
        &mut self,
        handle: Option<Handle<'_>>,
        place: Place<'_>,
        old: Option<Vec<u8>>,
        context: Context<'_>,
    ) {
        match &old {
            Some(old) => self.folders.moved(old),
            None => self.folders.clear(), // what was below it can't be told from the rest
        }
        let Some(path) = self.path(place) else {
            return self.changes.push(Change::Unwatched);
        };
        if let Some(handle) = handle {
            self.folders.insert(handle.key(), &path);
        }
        let was_seen = old.as_ref().is_some_and(|old| context.paths.cover(old));
        let into_view = if was_seen { Vec::new() } else { into_view(context.paths, &path) };
        if !was_seen && into_view.is_empty() && !context.paths.cover(&path) {
            return self.changes.push(Change::Unwatched);
        }
        let object = self.object(handle, place);
        let old_path = old.unwrap_or_default();
        let change = changed(FileAction::Renamed, object.as_ref().ok(), path.clone(), old_path, context);
        self.changes.push(change);
        for below in into_view {
            self.came_into_view(object.as_ref(), &path, below, context);
        }
    }

    /// `below` is the folder's new path, or a watched one under it.
    fn came_into_view(
        &mut self,
        object: Result<&Object, &Missing>,
        path: &[u8],
        below: Vec<u8>,
        context: Context<'_>,
    ) {
        let opened = object.map_err(|missing| *missing).and_then(Object::open);
        let opened = opened.and_then(|folder| {
            let rest = below.get(path.len() + 1..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(folder);
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            rustix::fs::openat2(folder, OsStr::from_bytes(rest), flags, Mode::empty(), resolve)
                .map_err(|_| Missing::Gone) // not there, or no folder
        });
        match opened {
            Ok(folder) => self.changes.push(context.observed(Observation::CameIntoView {
                folder,
                path: below,
                since_unix_ns: 0,
                reason: "moved",
                at: context.now,
            })),
            Err(Missing::Gone) => {}
            Err(Missing::Refused(errno)) => self.changes.push(Change::Refused(errno)),
        }
    }

    /// True when it was a link, and told.
    fn created(&mut self, handle: Option<Handle<'_>>, place: Place<'_>, context: Context<'_>) -> bool {
        if context.folder {
            if let (Some(handle), Some(path)) = (handle, self.path(place)) {
                self.folders.insert(handle.key(), &path);
            }
            self.changes.push(Change::Unwatched);
            return false;
        }
        // Before 5.17 there is no handle: what has content or a second name already is taken for a link.
        let linked = match handle {
            Some(handle) => self.links.is_link(handle.key()),
            None => self
                .objects
                .named(place)
                .is_ok_and(|object| object.stat().st_nlink > 1 || object.stat().st_size > 0),
        };
        if !linked {
            self.changes.push(Change::Duplicate); // its close-write comes; what is no file has none
            return false;
        }
        let path = self.path(place);
        if path.as_ref().is_some_and(|path| !context.paths.cover(path)) {
            self.changes.push(Change::Unwatched);
            return true;
        }
        if self.scan(handle, place, path.as_deref(), Trigger::Link, &[], context) {
            return true;
        }
        match path {
            Some(path) => self.changes.push(changed(FileAction::Linked, None, path, Vec::new(), context)),
            None => self.changes.push(Change::Unwatched),
        }
        true
    }

    fn attributes(
        &mut self,
        handle: Option<Handle<'_>>,
        place: Place<'_>,
        just_made: bool,
        context: Context<'_>,
    ) {
        let path = self.path(place);
        if path.as_ref().is_some_and(|path| !context.paths.cover(path)) {
            return self.changes.push(Change::Unwatched);
        }
        let object = match self.object(handle, place) {
            Ok(object) if object.stat().st_nlink > 0 => object,
            // No longer there: its removal is told.
            Ok(_) | Err(Missing::Gone) => return self.changes.push(Change::Duplicate),
            Err(Missing::Refused(errno)) => return self.changes.push(Change::Refused(errno)),
        };
        let regular = object.kind() == FileType::RegularFile;
        if regular && object.stat().st_mode & EXECUTABLE != 0 {
            let trigger = Trigger::Attributes;
            let change = file_change(&object, path.as_deref(), trigger, &[], context);
            return self.changes.push(change);
        }
        if regular && just_made {
            return self.changes.push(Change::Duplicate); // part of making it: the close-write has it
        }
        let path = path.unwrap_or_else(|| object.path());
        if !context.paths.cover(&path) {
            return self.changes.push(Change::Unwatched);
        }
        let change = changed(FileAction::Attributes, Some(&object), path, Vec::new(), context);
        self.changes.push(change);
    }

    fn deleted(&mut self, handle: Option<Handle<'_>>, place: Place<'_>, context: Context<'_>) {
        let folder = handle.filter(|_| context.folder).map(Handle::key);
        let orphan = Orphan {
            name: place.name.into(),
            folder: folder.map(Box::from),
            is_folder: context.folder,
            pid: context.pid,
            at: context.now,
        };
        match self.path(place) {
            Some(path) => self.adopt(vec![(path, orphan)], context.paths),
            None => {
                if let Err(orphan) = self.orphans.add(place.folder.key(), orphan) {
                    self.changes.push(nameless(orphan, context.paths));
                }
            }
        }
    }

    /// Deletions whose paths are known, and those of what was in them.
    fn adopt(&mut self, mut known: Vec<(Vec<u8>, Orphan)>, paths: &Paths) {
        while let Some((path, orphan)) = known.pop() {
            if let Some(handle) = &orphan.folder {
                self.folders.insert(handle, &path);
                let inside = self.orphans.take(handle).into_iter();
                known.extend(inside.map(|inside| (join(&path, &inside.name), inside)));
            }
            self.changes.push(if paths.cover(&path) { removed(orphan, path) } else { Change::Unwatched });
        }
    }

    /// A file to scan under its new name. False when it is no regular file or not there any more.
    fn scan(
        &mut self,
        handle: Option<Handle<'_>>,
        place: Place<'_>,
        path: Option<&[u8]>,
        trigger: Trigger,
        old_path: &[u8],
        context: Context<'_>,
    ) -> bool {
        let change = match self.object(handle, place) {
            Ok(object) if object.kind() == FileType::RegularFile && object.stat().st_nlink > 0 => {
                file_change(&object, path, trigger, old_path, context)
            }
            Ok(_) | Err(Missing::Gone) => return false,
            Err(Missing::Refused(errno)) => Change::Refused(errno),
        };
        self.changes.push(change);
        true
    }

    fn object(&mut self, handle: Option<Handle<'_>>, place: Place<'_>) -> Result<Object, Missing> {
        match handle {
            Some(handle) => self.objects.get(handle),
            None => self.objects.named(place),
        }
    }

    /// None when the folder can't be found or the path is longer than any.
    fn path(&mut self, place: Place<'_>) -> Option<Vec<u8>> {
        let folder = match self.folders.get(place.folder.key()) {
            Some(folder) => folder,
            None => {
                let path = self.objects.get(place.folder).ok()?.path();
                if !path.starts_with(b"/") {
                    return None;
                }
                self.folders.insert(place.folder.key(), &path);
                path.into()
            }
        };
        if place.name == b"." {
            return Some(folder.to_vec());
        }
        let path = join(&folder, place.name);
        (path.len() <= PATH_BYTES_MAX).then_some(path)
    }
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    let mut path = Vec::with_capacity(folder.len() + 1 + name.len());
    path.extend_from_slice(folder);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

fn removed(orphan: Orphan, path: Vec<u8>) -> Change {
    let Orphan { is_folder: folder, pid, at, .. } = orphan;
    let file = wire::File { path, deleted: true, ..wire::File::default() };
    let (action, old_path) = (FileAction::Deleted, Vec::new());
    let process = None;
    Change::Observed(pid, Box::new(Observation::NameChanged { action, file, old_path, folder, process, at }))
}

/// Its folder is gone, and nobody ever heard of it: the bare name is all there is.
fn nameless(orphan: Orphan, paths: &Paths) -> Change {
    if paths.watch.is_empty() {
        let name = orphan.name.to_vec();
        removed(orphan, name)
    } else {
        Change::Unwatched
    }
}

/// What there is to scan; without a path the kernel is asked for the name that it has now.
fn file_change(
    object: &Object,
    path: Option<&[u8]>,
    trigger: Trigger,
    old_path: &[u8],
    context: Context<'_>,
) -> Change {
    let path = path.map_or_else(|| object.path(), <[u8]>::to_vec);
    if !context.paths.cover(&path) {
        return Change::Unwatched;
    }
    let descriptor = match object.open() {
        Ok(descriptor) => descriptor,
        Err(Missing::Gone) => return Change::Duplicate, // removed in between: that is told
        Err(Missing::Refused(errno)) => return Change::Refused(errno),
    };
    let deleted = object.stat().st_nlink == 0;
    context.observed(Observation::FileWritten {
        file: OpenFile { descriptor, path, deleted, container_path: Vec::new() },
        process: None,
        trigger,
        old_path: old_path.to_vec(),
        at: context.now,
    })
}

fn changed(
    action: FileAction,
    object: Option<&Object>,
    path: Vec<u8>,
    old_path: Vec<u8>,
    context: Context<'_>,
) -> Change {
    let file = match object {
        Some(object) => object.file(path),
        None => wire::File { path, deleted: true, ..wire::File::default() },
    };
    let Context { folder, now: at, .. } = context;
    context.observed(Observation::NameChanged { action, file, old_path, folder, process: None, at })
}

/// What is watched of a folder that is at `path` now: itself, or watched folders below it.
fn into_view(paths: &Paths, path: &[u8]) -> Vec<Vec<u8>> {
    if paths.cover(path) {
        return vec![path.to_vec()];
    }
    let below = paths.watch.iter().filter(|watch| is_under(watch, path) && paths.cover(watch));
    below.map(|watch| watch.strip_suffix(b"/").unwrap_or(watch).to_vec()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::mountinfo::Mount;
    use super::*;
    use std::ffi::CString;
    use std::io::Read;
    use std::os::unix::ffi::OsStringExt;
    use std::path::Path;

    /// What each step of the ladder makes of the same doings, as root on this kernel.
    fn told(step: usize, act: impl Fn(&Path)) -> Vec<String> {
        let group = Arc::new(NameGroup::at_step(step).expect("this test needs root"));
        let marks = Arc::new(Marks::new(group.clone()));
        let folder = tempfile::tempdir_in(".").unwrap();
        let base = folder.path().canonicalize().unwrap();
        // Any folder of a file system will do as a place to enter it.
        let mount = Mount {
            id: 0,
            parent: 0,
            device: (0, 0),
            root: b"/".to_vec(),
            layers: Vec::new(),
            point: base.clone().into_os_string().into_vec(),
            kind: Vec::new(),
        };
        let path = CString::new(mount.point.clone()).unwrap();
        marks.mark(std::fs::File::open(&base).unwrap(), &path, &mount);
        assert_eq!(marks.troubles(), Vec::<String>::new());
        let mut names = Names::new(group, marks);
        act(&base);
        let paths = Paths { watch: vec![mount.point.clone()], exclude: Vec::new() };
        let mut told = Vec::new();
        loop {
            let batch = names.read().unwrap();
            let now = Moment::now();
            for event in batch.events() {
                told.extend(
                    names.follow(&event, &paths, now).drain(..).filter_map(|one| show(one, &mount.point)),
                );
            }
            let emptied = batch.emptied;
            told.extend(names.end_turn(batch, &paths).into_iter().filter_map(|one| show(one, &mount.point)));
            if emptied && !names.is_waiting() {
                return told;
            }
        }
    }

    fn show(change: Change, base: &[u8]) -> Option<String> {
        let short = |path: &[u8]| {
            let path = path.strip_prefix(base).unwrap_or(path);
            String::from_utf8(path.to_vec()).unwrap()
        };
        match change {
            Change::Observed(_, observation) => Some(match *observation {
                Observation::FileWritten { file, trigger, old_path, .. } => {
                    let mut content = String::new();
                    std::fs::File::from(file.descriptor).read_to_string(&mut content).unwrap();
                    format!("{trigger:?} {} {} {content}", short(&file.path), short(&old_path))
                }
                Observation::NameChanged { action, file, old_path, folder, .. } => {
                    let kind = if folder { "folder" } else { "file" };
                    format!("{action:?} {kind} {} {}", short(&file.path), short(&old_path))
                }
                other => format!("{other:?}"),
            }),
            Change::Refused(errno) => panic!("errno {errno}"),
            Change::Unwatched | Change::Duplicate => None,
        }
    }

    #[test]
    fn every_step_of_the_ladder_tells_of_the_same_files() {
        let act = |base: &Path| {
            std::fs::create_dir(base.join("d")).unwrap();
            std::fs::write(base.join("d/a"), "1").unwrap();
            std::fs::rename(base.join("d/a"), base.join("b")).unwrap();
            std::fs::hard_link(base.join("b"), base.join("d/l")).unwrap();
            std::fs::rename(base.join("d"), base.join("e")).unwrap();
            std::fs::write(base.join("e/x"), "2").unwrap();
            std::fs::rename(base.join("e/x"), base.join("e/y")).unwrap();
            std::fs::write(base.join("e/z"), "3").unwrap();
            std::fs::remove_file(base.join("e/z")).unwrap();
        };
        let expected = [
            "Rename /b /d/a 1",
            "Link /d/l  1",
            "Renamed folder /e /d",
            "Rename /e/y /e/x 2",
            "Deleted file /e/z ",
        ];
        let best = told(0, act);
        assert_eq!(best, expected);
        // Older kernels name no object and merge the halves of renames that wait: every file is told and scanned,
        // but a folder that was not looked at in between may have only its present path.
        for step in 1..3 {
            let told = told(step, act);
            for (begin, end) in [
                ("Rename /b ", " 1"),
                ("Link ", "/l  1"),
                ("Renamed folder /e ", ""),
                ("Rename /e/y /e/x", " 2"),
                ("Deleted file /e/z", ""),
            ] {
                let is_told = told.iter().any(|one| one.starts_with(begin) && one.ends_with(end));
                assert!(is_told, "step {step}: {begin}{end} is missing in {told:#?}");
            }
        }
    }

    #[test]
    fn watched_folders_below_one_that_moved_come_into_view_with_it() {
        let watch = vec![b"/a/b/c/".to_vec(), b"/a/bc".to_vec(), b"/x".to_vec()];
        let paths = Paths { watch, exclude: Vec::new() };
        assert_eq!(into_view(&paths, b"/a/b"), [b"/a/b/c".to_vec()]);
        assert_eq!(into_view(&paths, b"/a"), [b"/a/b/c".to_vec(), b"/a/bc".to_vec()]);
        assert_eq!(into_view(&paths, b"/x/y"), [b"/x/y".to_vec()]);
        assert_eq!(into_view(&paths, b"/y"), Vec::<Vec<u8>>::new());
    }
}
