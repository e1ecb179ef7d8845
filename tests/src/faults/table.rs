//! Every fault: its name, how it is injected, how long it lasts, how it is lifted.
//!
//! A fault knows the world, not the plan. What counts down in the shim (`n-th write`) is over when it fired; the others last
//! for a time. After `lift` both programs are wanted and nothing is injected.

use super::daemon::{Daemon, Side};
use super::shim::Slot;
use super::world::World;
use anyhow::Context;
use rand::Rng;
use rand::rngs::StdRng;
use rusqlite::Connection;
use rustix::process::Signal;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use Fault::{
    AfterCommit, AfterSend, AtDayChange, AtWrite, BeforeCommit, ClockAhead, ClockBehind, ClockJumps, Cut,
    FirstStart, FlippedByte, Kill, Late, Loss, NewAddress, NoSpace, PowerLoss, ReadOnly, Restored, Slow,
    SmallMtu, Stopped, SyncError, TornWrite, Twice, WriteError,
};
use Side::{Agent, Collector};

/// The n of the n-th write goes up to this.
pub const WRITES_MAX: u64 = 200;
/// How long is waited for an n-th write, sync or datagram that may never come.
const FIRE_WAIT_MAX: Duration = Duration::from_secs(6);
/// A program that never ran may take so many writes until it is killed.
const FIRST_WRITES_MAX: i64 = 60;
const DAY_NS: i64 = 86_400_000_000_000;
const TEN_YEARS_NS: i64 = 3652 * DAY_NS;
const HOUR_NS: i64 = DAY_NS / 24;
/// An hour of a clock that jumps back each hour, in the campaign's fast time. Nanoseconds.
const FAST_HOUR_NS: i64 = 150_000_000;
/// QUIC needs 1,200 bytes of payload (RFC 9000 section 14): with IPv4 and UDP around them nothing gets through. Bytes.
const SMALL_MTU: u32 = 1200;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 at any moment.
    Kill(Side),
    /// kill -9 right after a datagram was sent.
    AfterSend(Side),
    /// kill -9 before a sync.
    BeforeCommit(Side),
    /// kill -9 after a sync: what is committed is not acknowledged.
    AfterCommit(Side),
    /// kill -9 before any write.
    AtWrite(Side),
    /// kill -9 while the collector begins a new day's file.
    AtDayChange,
    /// A program that never ran is killed, and loses power, while it makes its files.
    FirstStart(Side),
    /// The power goes: what was not synced is gone.
    PowerLoss(Side),
    /// The disk is full, and has room again later.
    NoSpace(Side),
    /// The n-th write fails.
    WriteError(Side),
    /// The n-th write is done by half.
    TornWrite(Side),
    /// A sync fails.
    SyncError(Side),
    /// The file system becomes read-only, as ext4 does after an error, and writable again.
    ReadOnly(Side),
    /// One byte of the database is another one.
    FlippedByte(Side),
    /// The collector does not run for a while, and nobody hears why.
    Stopped,
    /// The collector runs a little, again and again.
    Slow,
    /// No packet arrives.
    Cut,
    /// So many of a hundred packets are lost.
    Loss(u32),
    /// Packets above 1,200 bytes are refused.
    SmallMtu,
    /// The agent's host gets another address.
    NewAddress,
    /// Datagrams arrive two times.
    Twice,
    /// Datagrams arrive after later ones.
    Late,
    /// The wall clock is ten years ahead.
    ClockAhead(Side),
    /// The wall clock is ten years behind.
    ClockBehind(Side),
    /// The wall clock goes back by an hour each hour.
    ClockJumps(Side),
    /// An older copy of the collector's state is put in its place.
    Restored,
}

/// All of them.
pub const ALL: [Fault; 44] = [
    Kill(Agent),
    Kill(Collector),
    AfterSend(Agent),
    AfterSend(Collector),
    BeforeCommit(Agent),
    BeforeCommit(Collector),
    AfterCommit(Agent),
    AfterCommit(Collector),
    AtWrite(Agent),
    AtWrite(Collector),
    AtDayChange,
    FirstStart(Agent),
    FirstStart(Collector),
    PowerLoss(Agent),
    PowerLoss(Collector),
    NoSpace(Agent),
    NoSpace(Collector),
    WriteError(Agent),
    WriteError(Collector),
    TornWrite(Agent),
    TornWrite(Collector),
    SyncError(Agent),
    SyncError(Collector),
    ReadOnly(Agent),
    ReadOnly(Collector),
    FlippedByte(Agent),
    FlippedByte(Collector),
    Stopped,
    Slow,
    Cut,
    Loss(5),
    Loss(30),
    Loss(60),
    SmallMtu,
    NewAddress,
    Twice,
    Late,
    ClockAhead(Agent),
    ClockAhead(Collector),
    ClockBehind(Agent),
    ClockBehind(Collector),
    ClockJumps(Agent),
    ClockJumps(Collector),
    Restored,
];

/// Those of which every n has to be had.
pub const WRITE_FAULTS: [Fault; 4] =
    [WriteError(Agent), WriteError(Collector), TornWrite(Agent), TornWrite(Collector)];

/// How one fault of a cycle is had.
#[derive(Debug, Clone, Copy)]
pub struct Dose {
    /// Which.
    pub fault: Fault,
    /// Which write, sync or datagram it hits, from 1 on.
    pub nth: u64,
    /// As long as in the real world: a minute for a stopped collector.
    pub long: bool,
}

impl Fault {
    /// For the table.
    #[must_use]
    pub fn name(self) -> String {
        let of = |what: &str, side: Side| format!("{what}, {}", side.name());
        match self {
            Kill(side) => of("kill -9 at random", side),
            AfterSend(side) => of("kill -9 after send", side),
            BeforeCommit(side) => of("kill -9 before commit", side),
            AfterCommit(side) => of("kill -9 after commit, before ack", side),
            AtWrite(side) => of("kill -9 at the n-th write", side),
            AtDayChange => of("kill -9 during day change", Collector),
            FirstStart(side) => of("kill -9 and power loss while the database is made", side),
            PowerLoss(side) => of("power loss", side),
            NoSpace(side) => of("ENOSPC, freed later", side),
            WriteError(side) => of("EIO at the n-th write", side),
            TornWrite(side) => of("short write, then EIO, at the n-th write", side),
            SyncError(side) => of("EIO at the n-th sync", side),
            ReadOnly(side) => of("read-only file system", side),
            FlippedByte(side) => of("flipped byte in the database", side),
            Stopped => of("SIGSTOP", Collector),
            Slow => of("slow", Collector),
            Cut => "network cut".into(),
            Loss(percent) => format!("{percent} % of packets lost"),
            SmallMtu => format!("MTU {SMALL_MTU}"),
            NewAddress => "address change mid-connection".into(),
            Twice => "duplicated datagrams".into(),
            Late => "reordered datagrams".into(),
            ClockAhead(side) => of("clock +10 years", side),
            ClockBehind(side) => of("clock -10 years", side),
            ClockJumps(side) => of("clock jumps back hourly", side),
            Restored => of("restored from an older backup", Collector),
        }
    }

    /// The program that is killed by it, if any.
    #[must_use]
    pub fn kills(self) -> Option<Side> {
        match self {
            Kill(side) | AfterSend(side) | BeforeCommit(side) | AfterCommit(side) | AtWrite(side)
            | PowerLoss(side) | FlippedByte(side) => Some(side),
            AtDayChange | Restored => Some(Collector),
            FirstStart(_) | NoSpace(_) | WriteError(_) | TornWrite(_) | SyncError(_) | ReadOnly(_)
            | Stopped | Slow | Cut | Loss(_) | SmallMtu | NewAddress | Twice | Late | ClockAhead(_)
            | ClockBehind(_) | ClockJumps(_) => None,
        }
    }

    /// Whether two can be had at once. The shim moves the programs' clock and not the kernel's, which stamps files: a
    /// restart at a clock that is ahead of them would look for changes that are to come.
    #[must_use]
    pub fn goes_with(self, other: Self) -> bool {
        let none_of = |is: fn(&Self) -> bool| !is(&self) && !is(&other);
        let is_clock = |fault: &Self| matches!(fault, ClockAhead(_) | ClockBehind(_) | ClockJumps(_));
        let any_clock = is_clock(&self) || is_clock(&other);
        let any_day = self == AtDayChange || other == AtDayChange;
        let same_victim = self.kills().is_some_and(|side| other.hits(side))
            || other.kills().is_some_and(|side| self.hits(side));
        let ahead_and_killed = self == ClockAhead(Agent) && other.kills() == Some(Agent)
            || other == ClockAhead(Agent) && self.kills() == Some(Agent);
        self != other
            && none_of(|fault| matches!(fault, FirstStart(_) | FlippedByte(_)))
            && !(any_clock && any_day)
            && !same_victim
            && !ahead_and_killed
            && other != Restored // what is restored has to be settled before anything else goes wrong
    }

    /// Whether it kills this program, or counts in it.
    fn hits(self, side: Side) -> bool {
        self.kills() == Some(side) || self.counts_in().is_some_and(|(counting, _)| counting == side)
    }

    /// The program whose shim counts down to it.
    fn counts_in(self) -> Option<(Side, Slot)> {
        match self {
            AfterSend(side) => Some((side, Slot::KillAfterSend)),
            BeforeCommit(side) => Some((side, Slot::KillBeforeSync)),
            AfterCommit(side) => Some((side, Slot::KillAfterSync)),
            AtWrite(side) | PowerLoss(side) => Some((side, Slot::KillAtWrite)),
            AtDayChange => Some((Collector, Slot::KillAtWrite)),
            WriteError(side) => Some((side, Slot::EioAt)),
            TornWrite(side) => Some((side, Slot::TornAt)),
            SyncError(side) => Some((side, Slot::SyncEioAt)),
            Kill(_) | FirstStart(_) | NoSpace(_) | ReadOnly(_) | FlippedByte(_) | Stopped | Slow | Cut
            | Loss(_) | SmallMtu | NewAddress | Twice | Late | ClockAhead(_) | ClockBehind(_)
            | ClockJumps(_) | Restored => None,
        }
    }

    /// How long one that does not count lasts. Milliseconds.
    fn lasts_ms(self, long: bool) -> u64 {
        match self {
            Stopped if long => 60_000,
            Stopped | Cut | Loss(_) | SmallMtu => 2000,
            NoSpace(_) | ReadOnly(_) | ClockAhead(_) | ClockBehind(_) | ClockJumps(_) | Twice | Late => 1500,
            Slow => 0, // its pulses take the time
            Kill(_) | AfterSend(_) | BeforeCommit(_) | AfterCommit(_) | AtWrite(_) | AtDayChange
            | FirstStart(_) | PowerLoss(_) | WriteError(_) | TornWrite(_) | SyncError(_) | FlippedByte(_)
            | NewAddress | Restored => 300,
        }
    }

    /// How far the n of it goes: a write is nearer than a sync or a datagram.
    #[must_use]
    pub fn nth_max(self) -> u64 {
        match self.counts_in() {
            Some((_, Slot::EioAt | Slot::TornAt)) => WRITES_MAX,
            Some((_, Slot::KillAtWrite)) => 60,
            Some(_) => 12,
            None => 1,
        }
    }
}

impl Dose {
    /// Begins it.
    ///
    /// # Errors
    /// When the harness itself can't do it.
    pub fn inject(&self, world: &mut World, random: &mut StdRng) -> anyhow::Result<()> {
        let nth = i64::try_from(self.nth)?;
        match self.fault {
            Kill(side) => world.daemon(side).kill(),
            PowerLoss(side) => {
                let daemon = world.daemon(side);
                daemon.let_die();
                let point = if random.random_bool(0.5) { Slot::KillAtWrite } else { Slot::KillBeforeSync };
                daemon.control.set(point, nth)
            }
            AtDayChange => {
                world.furthest_ns += DAY_NS;
                world.collector.control.set(Slot::ClockNs, world.furthest_ns)?;
                world.collector.control.set(Slot::KillAtWrite, nth.min(30))
            }
            AfterSend(side) | BeforeCommit(side) | AfterCommit(side) | AtWrite(side) | WriteError(side)
            | TornWrite(side) | SyncError(side) => {
                let slot = self.fault.counts_in().context("it counts")?.1;
                world.daemon(side).control.set(slot, nth)
            }
            FirstStart(side) => first_start(world, side, random),
            NoSpace(side) => world.daemon(side).control.set(Slot::Space, random.random_range(0..1 << 16)),
            ReadOnly(side) => world.daemon(side).control.set(Slot::ReadOnly, 1),
            FlippedByte(side) => flip(world, side, random),
            Stopped => {
                world.collector.signal(Signal::STOP);
                Ok(())
            }
            Slow => pulses(world, random),
            Cut => world.link.lose(100),
            Loss(percent) => world.link.lose(percent),
            SmallMtu => world.link.shrink(SMALL_MTU),
            NewAddress => world.link.move_agent(),
            Twice => both(world, Slot::TwicePercent, 40),
            Late => both(world, Slot::LatePercent, 40),
            ClockAhead(side) => {
                world.furthest_ns = world.furthest_ns.max(TEN_YEARS_NS * i64::from(side == Collector));
                world.daemon(side).control.set(Slot::ClockNs, TEN_YEARS_NS)
            }
            ClockBehind(side) => world.daemon(side).control.set(Slot::ClockNs, -TEN_YEARS_NS),
            ClockJumps(side) => {
                let control = &world.daemon(side).control;
                control.set(Slot::ClockBackNs, HOUR_NS)?;
                control.set(Slot::ClockEachNs, FAST_HOUR_NS)
            }
            Restored => restore(world, random),
        }
    }

    /// Writes while it lasts. True when it is known to have happened.
    ///
    /// # Errors
    /// When files can't be written or a program not be started.
    pub fn last(&self, world: &mut World, random: &mut StdRng, fired_before: i64) -> anyhow::Result<bool> {
        world.write_for(random, Duration::from_millis(self.fault.lasts_ms(self.long)))?;
        let Some((side, _)) = self.fault.counts_in() else { return Ok(true) };
        let start = Instant::now();
        while world.daemon(side).fired()? == fired_before {
            if start.elapsed() > FIRE_WAIT_MAX {
                return Ok(false);
            }
            world.write_for(random, Duration::from_millis(50))?;
        }
        Ok(true)
    }

    /// The program of which [`super::shim::Slot::Fired`] tells whether it happened.
    #[must_use]
    pub fn counts_in(&self) -> Option<Side> {
        self.fault.counts_in().map(|(side, _)| side)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the harness itself can't do it.
    pub fn lift(&self, world: &mut World, random: &mut StdRng) -> anyhow::Result<()> {
        if let PowerLoss(side) = self.fault {
            let cut = world.daemon(side).cut_power(random)?;
            world.undone += cut.writes as u64;
        }
        world.agent.control.lift()?;
        world.collector.control.lift()?;
        world.link.mend()?;
        world.collector.signal(Signal::CONT);
        world.agent.start()?;
        world.collector.start()
    }
}

fn both(world: &World, slot: Slot, value: i64) -> anyhow::Result<()> {
    world.agent.control.set(slot, value)?;
    world.collector.control.set(slot, value)
}

/// The collector runs for a quarter of the time.
fn pulses(world: &mut World, random: &mut StdRng) -> anyhow::Result<()> {
    for _ in 0..10 {
        world.collector.signal(Signal::STOP);
        world.write_for(random, Duration::from_millis(150))?;
        world.collector.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// A copy is made, more is stored, the copy comes back.
fn restore(world: &mut World, random: &mut StdRng) -> anyhow::Result<()> {
    world.collector.kill()?;
    world.back_up(false)?;
    world.collector.start()?;
    world.write_for(random, Duration::from_millis(300))?;
    // Everything that is written now has to be known as stored, or its loss could not be told from another.
    world.converge()?;
    world.collector.kill()?;
    world.back_up(true)
}

fn flip(world: &mut World, side: Side, random: &mut StdRng) -> anyhow::Result<()> {
    world.daemon(side).kill()?;
    let path = match side {
        Agent => world.agent.state().join("outbox/outbox.db"),
        Collector => newest(&world.collector.state().join("store"))?,
    };
    checkpoint(&path)?;
    world.daemon(side).forget_undo()?;
    let file = File::options().read(true).write(true).open(&path)?;
    let place = random.random_range(0..file.metadata()?.len().max(1));
    let mut byte = [0];
    file.read_exact_at(&mut byte, place)?;
    byte[0] ^= 1 << random.random_range(0..8);
    file.write_all_at(&byte, place)?;
    match side {
        Agent => world.oracle.outbox_changed(),
        Collector => world.oracle.store_changed(),
    }
    Ok(())
}

/// Brings the write-ahead log into the database, so that the byte is not hidden behind it.
fn checkpoint(path: &Path) -> anyhow::Result<()> {
    let db = Connection::open(path)?;
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(())
}

fn newest(store: &Path) -> anyhow::Result<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(store)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect();
    files.sort();
    files.pop().context("the store has no file")
}

/// A newcomer is killed while it makes its files, loses power, and has to come up by itself.
fn first_start(world: &mut World, side: Side, random: &mut StdRng) -> anyhow::Result<()> {
    let mut newcomer = world.newcomer(side)?;
    let point = if random.random_bool(0.5) { Slot::KillAtWrite } else { Slot::KillBeforeSync };
    let nth = random.random_range(1..if point == Slot::KillAtWrite { FIRST_WRITES_MAX } else { 12 });
    newcomer.control.set(point, nth)?;
    newcomer.start()?;
    newcomer.let_die();
    let start = Instant::now();
    while newcomer.is_running() && start.elapsed() < FIRE_WAIT_MAX / 2 {
        newcomer.supervise()?;
        std::thread::sleep(Duration::from_millis(20));
    }
    let cut = newcomer.cut_power(random)?;
    world.undone += cut.writes as u64;
    newcomer.control.lift()?;
    newcomer.start()?;
    comes_up(&mut newcomer).with_context(|| format!("killed at {point:?} {nth}"))
}

fn comes_up(newcomer: &mut Daemon) -> anyhow::Result<()> {
    let up = crate::programs::wait_for("a program that was killed at its first start", || {
        newcomer.supervise()?;
        anyhow::ensure!(newcomer.exits == 0, "it ended by itself");
        Ok(newcomer.answers()?.then_some(()))
    });
    up.with_context(|| newcomer.said())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: BTreeSet<String> = ALL.into_iter().map(Fault::name).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn not_all_go_together() {
        assert!(Kill(Agent).goes_with(Kill(Collector)));
        assert!(NoSpace(Collector).goes_with(Loss(30)));
        assert!(!Kill(Agent).goes_with(Kill(Agent)));
        assert!(!ClockAhead(Agent).goes_with(PowerLoss(Agent)));
        assert!(!Cut.goes_with(Restored) && Restored.goes_with(Cut));
    }
}
