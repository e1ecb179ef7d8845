//! Opening the outbox whatever is there: in order, of an older version, damaged or foreign (D3, L1).
//!
//! What can be read of a damaged one goes to a draft beside it, which takes its place when it is whole: a crash on
//! the way begins again with the damaged one.

use super::bound::Floors;
use super::db::{Db, at};
use super::file::{self, Found};
use super::room::Limits;
use super::salvage;
use crate::host::{Host, Moment};
use std::path::Path;
use vidette_protocol::id::Class;
use vidette_protocol::wire;

/// The share of the bound that is filled from a damaged outbox: the rest is for what comes now. Percent.
const TAKEN_OVER_PERCENT_MAX: u64 = 75;

impl Db {
    /// Opens the outbox in `folder`, or makes it. What is damaged or foreign is set aside, what can be read of
    /// it is taken over, and a `gap` event says so. `suspect` sets it aside in any case.
    ///
    /// # Errors
    /// Only when the folder can't be used: no permission, no space.
    pub fn open(folder: &Path, bytes_max: u64, host: Host, suspect: Option<&str>) -> anyhow::Result<Self> {
        file::prepare_folder(folder)?;
        let folder = folder.canonicalize()?; // SQLite's NOFOLLOW refuses links anywhere in a path
        let path = folder.join(file::FILE_NAME);
        file::finish_draft(&path)?;
        let limits = Limits::of(bytes_max);
        let found = match suspect {
            Some(reason) if path.symlink_metadata().is_ok() => {
                Found::Unusable { reason: reason.to_owned(), ours: true }
            }
            Some(_) | None => file::look(&path)?,
        };
        let (reason, ours) = match found {
            Found::New(connection) => return Ok(Self::with(connection, &path, limits, host)?),
            Found::Ours(connection) => {
                let opened = file::compacted(connection, &path)
                    .and_then(|connection| Self::with(connection, &path, limits, host.clone()));
                match opened {
                    Ok(db) => return Ok(db),
                    Err(error) if file::is_damage(&error) => (format!("it is damaged: {error}"), true),
                    Err(error) => return Err(error.into()),
                }
            }
            Found::Unusable { reason, ours } => (reason, ours),
        };
        Self::replace(&path, limits, host, &reason, ours)
    }

    fn replace(path: &Path, limits: Limits, host: Host, reason: &str, ours: bool) -> anyhow::Result<Self> {
        let aside = file::free_name(path);
        let draft = file::draft(path);
        let Found::New(connection) = file::look(&draft)? else {
            anyhow::bail!("{} is in the way: delete it", draft.display())
        };
        let mut db = Self::with(connection, &draft, limits, host.clone())?;
        let name = aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
        db.take_over(ours.then_some(path), reason, &name)?;
        db.close()?;
        file::set_aside(path, &aside, limits.bytes_max)?;
        tracing::warn!(file = %aside.display(), reason, "the outbox was set aside: a new one takes over");
        file::finish_draft(path)?;
        match file::look(path)? {
            Found::Ours(connection) => Ok(Self::with(connection, path, limits, host)?),
            Found::New(_) => anyhow::bail!("{} went away while it was opened", path.display()),
            Found::Unusable { reason, .. } => {
                anyhow::bail!("{} can't be made anew: {reason}", path.display())
            }
        }
    }

    /// Rows go in under their old numbers, whatever order they are read in, and are numbered anew at the end.
    fn take_over(&mut self, from: Option<&Path>, reason: &str, aside: &str) -> rusqlite::Result<()> {
        let mut taken = 0;
        if let Some(from) = from {
            let limits = self.limits;
            let bytes_max = limits.pages_max * super::room::PAGE_BYTES / 100 * TAKEN_OVER_PERCENT_MAX;
            salvage::each(from, bytes_max, limits.group_bytes_max, &mut |rows| {
                taken += rows.len();
                self.transaction(|db| {
                    rows.iter().try_for_each(|row| {
                        db.insert(row.class, Some(row.seq), row.rank, row.created, &row.body).map(drop)
                    })
                })?;
                self.cut_log()
            })?;
        }
        self.renumber_ahead()?;
        let now = Moment::now();
        let detail = format!("{reason}; set aside as {aside}, {taken} events were taken over");
        let gap = wire::Gap { reason: wire::GapReason::OutboxDamaged as i32, detail, ..at(now) };
        self.transaction(|db| {
            Class::ALL.into_iter().try_for_each(|class| db.end_numbers_at_the_last(class))?;
            db.gap(gap, None, now).map(drop)
        })?;
        self.floors = Floors::default();
        Ok(())
    }
}
