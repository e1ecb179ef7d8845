//! The thread that owns the file that is written: it takes what waits, commits it together, then answers.
//!
//! A failed commit is answered as failed and the file is opened anew (a page cache lies after a failed fsync); the
//! agents keep what was not acknowledged. A damaged file is set aside and the next one begun.

use super::file::DayFile;
use super::{
    Arrival, COMMIT_REQUESTS_MAX, Committed, Config, Counters, Figures, Handle, REQUESTS_MAX, Request,
    StoreError,
};
use anyhow::Context;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// After a clock that went back, a file is closed all the same when it was written for so long.
const FILE_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Between two tries to open the file again.
const REOPEN_WAIT: Duration = Duration::from_secs(1);

/// Which files there are. The writer changes it, readers look.
#[derive(Debug, Default)]
pub struct Shelf {
    books: RwLock<Vec<Book>>,
    highest_id: AtomicU64,
    events: AtomicU64,
}

/// One day file, by its place in the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Book {
    pub(super) number: u32,
    pub(super) path: PathBuf,
}

/// The store. Dropping every handle ends its thread after the last commit.
#[derive(Debug)]
pub struct Store {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// Opens the store, or makes it, and starts its thread.
///
/// # Errors
/// When the folder can't be used or holds files that are not ours.
pub fn open(config: Config) -> anyhow::Result<Store> {
    let mut writer = Writer::open(config)?;
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    let handle = Handle {
        requests: sender,
        shelf: writer.shelf.clone(),
        changed: writer.changed.subscribe(),
        counters: writer.counters.clone(),
    };
    let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run(requests))?;
    Ok(Store { handle, thread })
}

impl Store {
    /// Asks it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until every other handle is gone and the last commit is done.
    pub fn join(self) {
        drop(self.handle);
        if self.thread.join().is_err() {
            tracing::error!("the store's thread panicked");
        }
    }
}

impl Shelf {
    /// Oldest first.
    pub(super) fn books(&self) -> Vec<Book> {
        self.books.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, books: Vec<Book>) {
        *self.books.write().unwrap_or_else(PoisonError::into_inner) = books;
    }

    /// Sizes on disk.
    pub(super) fn figures(&self) -> Figures {
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |data| data.len());
        let books = self.books();
        let wal_bytes: u64 = books.iter().map(|book| size(&beside(&book.path, "-wal"))).sum();
        let bytes = wal_bytes + books.iter().map(|book| size(&book.path)).sum::<u64>();
        let events = self.events.load(Ordering::Relaxed);
        Figures { events, bytes, wal_bytes, days: books.len() as u64, ..Figures::default() }
    }
}

/// The same path with something at its end: SQLite's companions.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

struct Writer {
    config: Config,
    shelf: Arc<Shelf>,
    file: DayFile,
    opened: Instant,
    changed: watch::Sender<u64>,
    counters: Arc<Counters>,
}

impl Writer {
    fn open(config: Config) -> anyhow::Result<Self> {
        let shown = config.folder.display().to_string();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&config.folder)
            .with_context(|| format!("could not make the store's folder {shown}"))?;
        let (books, file) = open_newest(&config.folder)?;
        let shelf = Arc::new(Shelf::default());
        let highest = file.next_id().saturating_sub(1);
        shelf.highest_id.store(highest, Ordering::Relaxed);
        shelf.put(books);
        shelf.events.store(count_events(&shelf), Ordering::Relaxed);
        let (changed, _) = watch::channel(highest);
        let writer = Self { config, shelf, file, opened: Instant::now(), changed, counters: Arc::default() };
        writer.retire();
        Ok(writer)
    }

    fn run(&mut self, mut requests: mpsc::Receiver<Request>) {
        let mut waiting = Vec::with_capacity(COMMIT_REQUESTS_MAX);
        while requests.blocking_recv_many(&mut waiting, COMMIT_REQUESTS_MAX) > 0 {
            self.serve(waiting.drain(..).collect());
        }
    }

    fn serve(&mut self, requests: Vec<Request>) {
        let mut arrivals = Vec::new();
        let mut replies = Vec::new();
        let mut questions = Vec::new();
        for request in requests {
            match request {
                Request::Commit { arrival, reply } => {
                    arrivals.push(arrival);
                    replies.push(reply);
                }
                Request::Durable { agent, epoch, reply } => questions.push((agent, epoch, reply)),
            }
        }
        if !arrivals.is_empty() {
            self.commit(&arrivals, replies);
        }
        for (agent, epoch, reply) in questions {
            let answer =
                self.file.durable(agent, epoch).map_err(|error| StoreError::Failed(error.to_string()));
            // Whoever asked may be gone; the answer is then of no use.
            let _ = reply.send(answer);
        }
    }

    fn commit(&mut self, arrivals: &[Arrival], replies: Vec<oneshot::Sender<Result<Committed, StoreError>>>) {
        self.turn_the_page();
        let (start, before) = (Instant::now(), self.file.next_id());
        match self.file.commit(arrivals, now_unix_ns()) {
            Ok(answers) => {
                let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                let highest = self.file.next_id().saturating_sub(1);
                self.counters.commit_us.store(took, Ordering::Relaxed);
                self.counters.committed.fetch_add(self.file.next_id() - before, Ordering::Relaxed);
                self.shelf.events.fetch_add(self.file.next_id() - before, Ordering::Relaxed);
                self.shelf.highest_id.store(highest, Ordering::Relaxed);
                for (reply, answer) in replies.into_iter().zip(answers) {
                    let _ = reply.send(Ok(answer));
                }
                if before <= highest {
                    self.changed.send_replace(highest);
                }
            }
            Err(error) => {
                let text = error.to_string();
                tracing::error!(
                    error = text,
                    "could not commit; the agents keep their events and send them again"
                );
                for reply in replies {
                    let _ = reply.send(Err(StoreError::Failed(text.clone())));
                }
                self.reopen();
            }
        }
    }

    /// After a failure nothing that the connection remembers can be trusted.
    fn reopen(&mut self) {
        std::thread::sleep(REOPEN_WAIT);
        match open_newest(&self.config.folder) {
            Ok((books, file)) => {
                self.shelf.put(books);
                self.file = file;
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "could not open the store again"),
        }
    }

    /// Begins a new file on a new day. Only forward: after a clock that went back the old label stays for a day.
    fn turn_the_page(&mut self) {
        let today = today();
        let back = today.as_str() < self.file.label() && self.opened.elapsed() > FILE_AGE_MAX;
        if today.as_str() <= self.file.label() && !back {
            return;
        }
        let mut books = self.shelf.books();
        let number = books.last().map_or(1, |book| book.number.saturating_add(1));
        let path = path_of(&self.config.folder, number, &today);
        match DayFile::create(&path, &today, self.file.next_id(), Some(&self.file)) {
            Ok(file) => {
                self.file = file;
                self.opened = Instant::now();
                books.push(Book { number, path });
                self.shelf.put(books);
                self.retire();
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "could not begin a new day's file; writing on in the old one"
                );
            }
        }
    }

    /// Unlinks what is older than the retention, by the number of files and not by a clock that may be wrong.
    fn retire(&self) {
        let Some(keep) = self.config.retention_days else { return };
        let mut books = self.shelf.books();
        let surplus = books.len().saturating_sub((keep as usize).max(1));
        for book in books.drain(..surplus) {
            tracing::info!(file = %book.path.display(), "retention: a day is removed");
            for path in [book.path.clone(), beside(&book.path, "-wal"), beside(&book.path, "-shm")] {
                let _ = std::fs::remove_file(path);
            }
        }
        if surplus > 0 {
            self.shelf.put(books);
            self.shelf.events.store(count_events(&self.shelf), Ordering::Relaxed);
        }
    }
}

/// All files in order, and the newest one open. A damaged one is set aside; its marks are then those of the file
/// before it, and what its agents had been promised since is asked of them again: they say what they no longer have.
fn open_newest(folder: &Path) -> anyhow::Result<(Vec<Book>, DayFile)> {
    loop {
        let mut books = list(folder)?;
        let Some(newest) = books.last().cloned() else {
            let today = today();
            let path = path_of(folder, 1, &today);
            let file = DayFile::create(&path, &today, 1, None)
                .with_context(|| format!("could not make a store in {}", folder.display()))?;
            books.push(Book { number: 1, path });
            return Ok((books, file));
        };
        match DayFile::open(&newest.path) {
            Ok(file) => return Ok((books, file)),
            Err(error) if is_damage(&error) => set_aside(&newest.path, &error)?,
            Err(error) => return Err(error),
        }
        // Ids never run backwards: the file that takes its place starts far behind the lost one.
        let (number, today) = (newest.number.saturating_add(1), today());
        let before = books.iter().rev().skip(1).find_map(|book| DayFile::open(&book.path).ok());
        let first_id = before.as_ref().map_or(1, DayFile::next_id).saturating_add(LOST_IDS);
        DayFile::create(&path_of(folder, number, &today), &today, first_id, before.as_ref())?;
    }
}

/// Ids left free for a file that was lost, so that no cursor of a sink stands before what comes next. A day at
/// 10,000 events a second.
const LOST_IDS: u64 = 1 << 30;

/// SQLite's words for a file that can't be trusted; everything else (locked, read-only, full) may pass.
fn is_damage(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<rusqlite::Error>()).any(|cause| {
        matches!(
            cause.sqlite_error_code(),
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
        ) || matches!(cause, rusqlite::Error::QueryReturnedNoRows | rusqlite::Error::InvalidColumnType(..))
            || cause.to_string().contains("no such table")
    })
}

fn set_aside(path: &Path, error: &anyhow::Error) -> anyhow::Result<()> {
    let aside =
        (1..1000).map(|number| beside(path, &format!(".damaged-{number}"))).find(|aside| !aside.exists());
    let aside = aside.context("too many damaged files; move them away")?;
    std::fs::rename(path, &aside).with_context(|| format!("could not set {} aside", path.display()))?;
    for end in ["-wal", "-shm"] {
        let _ = std::fs::rename(beside(path, end), beside(&aside, end));
    }
    tracing::error!(error = format!("{error:#}"), set_aside = %aside.display(), "a file of the store is damaged; a new one is begun");
    Ok(())
}

fn list(folder: &Path) -> anyhow::Result<Vec<Book>> {
    let mut books = Vec::new();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = name
            .strip_prefix("events-")
            .and_then(|rest| rest.strip_suffix(".db"))
            .and_then(|rest| rest.get(..6));
        if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
            books.push(Book { number, path });
        }
    }
    books.sort_by_key(|book| book.number);
    Ok(books)
}

fn path_of(folder: &Path, number: u32, label: &str) -> PathBuf {
    folder.join(format!("events-{number:06}-{label}.db"))
}

fn count_events(shelf: &Arc<Shelf>) -> u64 {
    super::Reader::new(shelf.clone()).count().unwrap_or(0)
}

fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

fn now_unix_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{Arrived, Filter, Stored};
    use vidette_protocol::id::{AgentId, Class};
    use vidette_protocol::wire::{self, event::Kind};

    const AGENT: AgentId = AgentId([7; 16]);

    fn event(text: &str) -> Arrived {
        use prost::Message;
        let health = wire::Health { message: text.into(), ..Default::default() };
        let event = wire::Event { severity: 3, kind: Some(Kind::Health(health)), ..Default::default() };
        Arrived::new(event.encode_to_vec(), &event)
    }

    fn arrival(first_seq: u64, count: u64, skipped: u64) -> Arrival {
        let events = (first_seq..first_seq + count).map(|seq| event(&seq.to_string())).collect();
        Arrival { agent: AGENT, epoch: u64::MAX, class: Class::Alert, first_seq, skipped, events }
    }

    fn writer(folder: &Path) -> Writer {
        Writer::open(Config { folder: folder.to_path_buf(), retention_days: None }).unwrap()
    }

    fn seqs(shelf: &Arc<Shelf>) -> Vec<u64> {
        let all: Vec<Stored> = crate::store::Reader::new(shelf.clone()).after(0, &Class::ALL, 1000).unwrap();
        all.iter().map(|stored| stored.event.seq).collect()
    }

    #[test]
    fn what_comes_twice_is_stored_once_and_a_hole_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path());
        let mut commit = |arrival: Arrival| writer.file.commit([&arrival], 1).unwrap()[0];
        assert_eq!(commit(arrival(1, 3, 0)), Committed::Durable(3));
        assert_eq!(commit(arrival(1, 3, 0)), Committed::Durable(3));
        assert_eq!(commit(arrival(2, 4, 0)), Committed::Durable(5));
        assert_eq!(commit(arrival(9, 1, 0)), Committed::Hole { expected: 6 });
        assert_eq!(commit(arrival(9, 1, 2)), Committed::Hole { expected: 6 });
        assert_eq!(commit(arrival(9, 1, 3)), Committed::Durable(9));
        assert_eq!(commit(arrival(12, 1, 8)), Committed::Durable(12));
        assert_eq!(seqs(&writer.shelf), [1, 2, 3, 4, 5, 9, 12]);
        assert_eq!(writer.file.durable(AGENT, u64::MAX).unwrap(), [(Class::Alert, 12)]);
        assert_eq!(writer.file.durable(AGENT, 1).unwrap(), []);
    }

    #[test]
    fn a_new_day_keeps_the_marks_and_the_ids() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = writer(folder.path());
        writer.file.commit([&arrival(1, 3, 0)], 1).unwrap();
        let path = path_of(folder.path(), 2, "9999-01-01");
        let next = DayFile::create(&path, "9999-01-01", writer.file.next_id(), Some(&writer.file)).unwrap();
        drop((writer, next));
        let mut again = self::writer(folder.path());
        assert_eq!(again.file.label(), "9999-01-01");
        assert_eq!(again.file.commit([&arrival(1, 4, 0)], 1).unwrap(), [Committed::Durable(4)]);
        assert_eq!(seqs(&again.shelf), [1, 2, 3, 4]);
        let mut reader = crate::store::Reader::new(again.shelf.clone());
        let page =
            reader.page(&Filter { classes: Class::ALL.to_vec(), ..Filter::default() }, None, 2).unwrap();
        assert_eq!(page.iter().map(|stored| stored.id).collect::<Vec<_>>(), [4, 3]);
        let rest =
            reader.page(&Filter { classes: Class::ALL.to_vec(), ..Filter::default() }, Some(3), 9).unwrap();
        assert_eq!(rest.iter().map(|stored| stored.id).collect::<Vec<_>>(), [2, 1]);
        // Today is before the label: nothing is begun, whatever the clock does.
        again.turn_the_page();
        assert_eq!(again.shelf.books().len(), 2);
    }

    #[test]
    fn retention_removes_the_oldest_files() {
        let folder = tempfile::tempdir().unwrap();
        drop(writer(folder.path()));
        for (number, label) in [(2, "9998-01-01"), (3, "9999-01-01")] {
            DayFile::create(&path_of(folder.path(), number, label), label, 1, None).unwrap();
        }
        let config = Config { folder: folder.path().to_path_buf(), retention_days: Some(2) };
        let writer = Writer::open(config).unwrap();
        let numbers: Vec<u32> = writer.shelf.books().iter().map(|book| book.number).collect();
        assert_eq!(numbers, [2, 3]);
        assert_eq!(list(folder.path()).unwrap().len(), 2);
    }

    #[test]
    fn damage_anywhere_never_stops_the_store_from_opening() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = writer(folder.path());
        first.file.commit([&arrival(1, 200, 0)], 1).unwrap();
        let path = first.file.path().to_path_buf();
        drop(first);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(whole.len() / 24) {
            let folder = tempfile::tempdir().unwrap();
            let damaged = folder.path().join(path.file_name().unwrap());
            std::fs::write(&damaged, &whole[..cut]).unwrap();
            match Writer::open(Config { folder: folder.path().to_path_buf(), retention_days: None }) {
                Ok(mut writer) => {
                    let answer = writer.file.commit([&arrival(1, 1, 0)], 1);
                    assert!(answer.is_ok() || cut > 0, "cut at {cut}: {answer:?}");
                }
                // An empty file is a valid SQLite database of nobody: it is named, not destroyed.
                Err(error) => {
                    assert!(format!("{error:#}").contains("is not a store"), "cut at {cut}: {error:#}")
                }
            }
        }
    }

    #[test]
    fn a_foreign_database_is_named_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_of(folder.path(), 1, "2026-01-01");
        let foreign = rusqlite::Connection::open(&path).unwrap();
        foreign.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").unwrap();
        drop(foreign);
        let before = std::fs::read(&path).unwrap();
        let error = Writer::open(Config { folder: folder.path().to_path_buf(), retention_days: None })
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains("is not a store of Vidette"), "{error:#}");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
