//! The target `outbox`: what may be on the disk where the outbox was. An input is a list of changes to a good file, because
//! most of what is not nearly an outbox is set aside at its first byte; one of the changes replaces all of it.
//!
//! Promises: it opens, whatever is there; what is appended then is read again; a file that fails later is set aside, and
//! the next one works. A damaged file costs what was in it and nothing else (L1).

use super::inside::{Judged, ensure, error_mark, log_mark, observe, some_bytes};
use super::join::memory_folder;
use super::messages;
use super::{Observed, Target};
use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::path::{Path, PathBuf};
use vidette_agent::host::{Host, Moment};
use vidette_agent::outbox::db::{Answer, Db, Work};
use vidette_agent::outbox::file::FILE_NAME;
use vidette_protocol::id::Class;
use vidette_protocol::wire::{self, event::Kind};

/// What the outbox may hold. Bytes.
const BYTES_MAX: u64 = 1 << 20;
/// A page of the file: SQLite's default. Bytes.
const PAGE_BYTES: usize = 4096;
/// The file never grows beyond this. Bytes.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Changes that hit what SQLite looks at first.
const WORDS: &[&[u8]] = &[
    b"\x00\x00\x00\x00\x10SQLite format 3\x00",
    b"\x00\x00\x00\x10\x02\x10\x00",
    b"\x00\x00\x00\x12\x02\x01\x01",
    b"\x00\x00\x00\x1c\x04\xff\xff\xff\xff",
    b"\x00\x00\x00\x3c\x04\x00\x00\x00\x09",
    b"\x00\x00\x00\x44\x04\x56\x64\x4f\x62",
    b"\x00\x00\x10\x00\x01\x05",
    b"\x01\x00\x02\x00",
    b"\x01\x00\x10\x01",
    b"\x02\x01\x02",
    b"\x02\x03\x00",
    b"\x04\x37\x7f\x06\x82",
    b"\x03",
];

/// A good outbox, and a folder for what is made of it.
#[derive(Debug)]
pub struct Outbox {
    good: Vec<u8>,
    folder: tempfile::TempDir,
}

impl Outbox {
    /// Makes the good one.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(memory_folder())?;
        let place = folder.path().join("good");
        let mut db = Db::open(&place, BYTES_MAX, Host::read(), None)?;
        let mut random = StdRng::seed_from_u64(1);
        let events = (0..60).map(|_| messages::event(&mut random)).filter(|event| event.kind.is_some());
        let appended = Work::Append(events.collect());
        let epoch = db.epoch();
        let reason = "a reason".to_owned();
        let aside = Work::SetAside { class: Class::Alert, epoch, first: 1, last: 2, code: 1, reason };
        db.apply(&[appended, aside], Moment::now())?;
        drop(db);
        let good = std::fs::read(place.join(FILE_NAME)).context("could not read the good outbox")?;
        Ok(Self { good, folder })
    }

    fn judge(&self, input: &[u8]) -> Judged {
        let place = self.folder.path().join("changed");
        let _ = std::fs::remove_dir_all(&place); // there is none at first
        let broken = |what: &'static str| {
            move |error: anyhow::Error| format!("{what}: {}", error_mark(&format!("{error:#}")))
        };
        self.put(&place, input).map_err(broken("could not write the input"))?;
        let mut marks = Vec::new();
        let mut db =
            Db::open(&place, BYTES_MAX, Host::read(), None).map_err(broken("the outbox does not open"))?;
        if let Err(error) = append_and_read(&mut db) {
            // As its owner does (D3): what failed is not tried again.
            marks.push(format!("failed later: {}", error_mark(&format!("{error:#}"))));
            drop(db);
            db = Db::open(&place, BYTES_MAX, Host::read(), Some("it failed"))
                .map_err(broken("the outbox does not open a second time"))?;
            append_and_read(&mut db).map_err(broken("a new outbox does not work"))?;
        }
        let (events, bytes) = db.waiting();
        ensure(bytes <= 2 * BYTES_MAX, "the bound of the outbox does not hold")?;
        let files = std::fs::read_dir(&place).map_err(|error| error.to_string())?.count();
        marks.extend([log_mark("events", usize::try_from(events).unwrap_or(0)), log_mark("files", files)]);
        Ok(marks)
    }

    /// Writes what the changes make of the good one.
    fn put(&self, place: &Path, input: &[u8]) -> anyhow::Result<()> {
        let (file, log) = change(self.good.clone(), input);
        std::fs::create_dir(place)?;
        let path: PathBuf = place.join(FILE_NAME);
        std::fs::write(&path, file)?;
        if let Some(log) = log {
            std::fs::write(place.join(format!("{FILE_NAME}-wal")), log)?;
        }
        Ok(())
    }
}

/// The file after every change, and the log beside it.
fn change(mut file: Vec<u8>, mut changes: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    while let Some((kind, rest)) = changes.split_first() {
        changes = match kind % 5 {
            0 => {
                let Some(([a, b, c, length], rest)) = rest.split_first_chunk() else { break };
                let at = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                let (bytes, rest) = rest.split_at(usize::from(*length).min(rest.len()));
                let end = (at + bytes.len()).min(FILE_BYTES_MAX);
                if at < end {
                    file.resize(file.len().max(end), 0);
                    file[at..end].copy_from_slice(&bytes[..end - at]);
                }
                rest
            }
            1 => {
                let Some(([a, b, c], rest)) = rest.split_first_chunk() else { break };
                file.truncate(u32::from_be_bytes([0, *a, *b, *c]) as usize);
                rest
            }
            2 => {
                let Some(([from, to], rest)) = rest.split_first_chunk() else { break };
                let (from, to) = (usize::from(*from) * PAGE_BYTES, usize::from(*to) * PAGE_BYTES);
                if from + PAGE_BYTES <= file.len() && to + PAGE_BYTES <= file.len() {
                    file.copy_within(from..from + PAGE_BYTES, to);
                }
                rest
            }
            3 => return (rest.to_vec(), None),
            _ => return (file, Some(rest.to_vec())),
        };
    }
    (file, None)
}

/// An event goes in and comes out.
fn append_and_read(db: &mut Db) -> anyhow::Result<()> {
    let audit = wire::Audit {
        action: "after".into(),
        outcome: "success".into(),
        detail: "x".into(),
        ..Default::default()
    };
    let event = wire::Event { kind: Some(Kind::Audit(audit)), ..Default::default() };
    db.apply(&[Work::Append(vec![event.clone()])], Moment::now())?;
    let state = db.state()?;
    let last = state.classes.iter().find(|state| state.class == Class::Alert).context("no alerts")?.last;
    let read = Work::Read { class: Class::Alert, from: last, bytes_max: 1 << 16 };
    let (answers, _) = db.apply(&[read], Moment::now())?;
    let Some(Answer::Run(run)) = answers.first() else { anyhow::bail!("{answers:?} for a read") };
    let body = run.events.last().context("what was appended is not there")?;
    let found = <wire::Event as prost::Message>::decode(body.as_slice())?;
    anyhow::ensure!(found.kind == event.kind, "another event is there");
    Ok(())
}

impl Target for Outbox {
    fn name(&self) -> &'static str {
        "outbox"
    }

    fn batch(&self) -> usize {
        16
    }

    fn generate(&self, random: &mut StdRng) -> Vec<u8> {
        let mut changes = Vec::new();
        for _ in 0..random.random_range(1..5) {
            match random.random_range(0..12) {
                0 => {
                    let at = u32::try_from(random.random_range(0..=self.good.len())).unwrap_or(0);
                    changes.extend([1]);
                    changes.extend(&at.to_be_bytes()[1..]);
                }
                1 => changes.extend([2, random.random_range(0..16), random.random_range(0..16)]),
                2 => {
                    changes.push(3 + u8::from(random.random::<bool>()));
                    changes.extend(some_bytes(random, 10));
                }
                _ => {
                    // Headers of pages most of all.
                    let page = random.random_range(0..self.good.len() / PAGE_BYTES + 1) * PAGE_BYTES;
                    let within = if random.random() { 16 } else { PAGE_BYTES };
                    let at = u32::try_from(page + random.random_range(0..within)).unwrap_or(0);
                    let bytes: Vec<u8> = (0..random.random_range(1..5)).map(|_| random.random()).collect();
                    changes.push(0);
                    changes.extend(&at.to_be_bytes()[1..]);
                    changes.push(u8::try_from(bytes.len()).unwrap_or(0));
                    changes.extend(bytes);
                }
            }
        }
        changes
    }

    fn words(&self) -> &'static [&'static [u8]] {
        WORDS
    }

    fn run(&mut self, inputs: &[Vec<u8>]) -> anyhow::Result<Vec<Observed>> {
        Ok(inputs.iter().map(|input| observe(|| self.judge(input))).collect())
    }
}
