//! Cycle after cycle from a seed: write, inject one fault or two, let time pass, lift, wait until all is stored, judge.
//!
//! A world lives for a round of cycles, so that faults meet what earlier ones left behind. The same seed draws the same
//! plan; what the programs make of it also depends on the scheduler of the host.

use super::table::{ALL, Dose, Fault, WRITE_FAULTS, WRITES_MAX};
use super::world::World;
use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Cycles of one world.
const ROUND_CYCLES: u64 = 50;
/// Cycles with a second fault, of a hundred.
const TWO_PERCENT: u32 = 30;
/// Ends that nobody asked for, in a cycle with two faults: a start that meets a full disk may fail, and the next one, but
/// that may not go on when the disk has room again.
const EXITS_MAX: u64 = 12;
/// Sentences on one cycle.
const COMPLAINTS_MAX: usize = 10;
/// Worlds beside each other.
pub const LANES_MAX: u64 = 16;
/// How the row of cycles with two faults is called.
const TWO: &str = "two of them at once";

/// What to do.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the plan.
    pub seed: u64,
    /// How many.
    pub cycles: u64,
    /// Only faults whose name holds this.
    pub only: Option<String>,
    /// The bench: every n-th write, a minute where the issue says a minute.
    pub long: bool,
    /// Worlds beside each other: most of a cycle is waiting.
    pub lanes: u64,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, Default)]
pub struct Row {
    /// Cycles.
    pub cycles: u64,
    /// Cycles in which the fault is known to have happened.
    pub happened: u64,
    /// Samples written, each of which has to be stored as a detection.
    pub events: u64,
    /// Samples that are not stored.
    pub lost: u64,
    /// Detections and numbers that are stored two times.
    pub duplicated: u64,
    /// Whatever no `gap` explains.
    pub unexplained: u64,
    /// Ends by SIGKILL, each followed by a start.
    pub deaths: u64,
    /// Ends that nobody asked for.
    pub exits: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// By the fault's name.
    pub rows: BTreeMap<String, Row>,
    /// What is wrong: one sentence each, with the cycle.
    pub complaints: Vec<String>,
    /// Events in the stores at the ends of the rounds.
    pub stored: u64,
    /// Writes that cuts of power have undone, or a part of which.
    pub undone: u64,
}

impl Settings {
    /// From `VIDETTE_SEED`, `VIDETTE_CYCLES`, `VIDETTE_FAULT`, `VIDETTE_LANES`; the seed is random without.
    #[must_use]
    pub fn from_environment(cycles: u64, long: bool, lanes: u64) -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
        Self {
            seed: number("VIDETTE_SEED").unwrap_or_else(|| rand::rng().random()),
            cycles: number("VIDETTE_CYCLES").unwrap_or(cycles),
            only: std::env::var("VIDETTE_FAULT").ok(),
            long,
            lanes: number("VIDETTE_LANES").unwrap_or(lanes).clamp(1, LANES_MAX),
        }
    }
}

/// Runs it. What fails is in the report; it goes on with a new world.
///
/// # Errors
/// When no world can be made, or no fault has such a name.
pub fn run(settings: &Settings) -> anyhow::Result<Report> {
    let plan = plan(settings);
    ensure!(!plan.is_empty() || settings.cycles == 0, "no fault is called {:?}", settings.only);
    let mut report = Report::default();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..settings.lanes)
            .map(|lane| {
                scope.spawn({
                    let plan = &plan;
                    move || run_lane(settings, plan, lane)
                })
            })
            .collect();
        lanes.into_iter().try_for_each(|lane| {
            report.merge(lane.join().map_err(|_| anyhow::anyhow!("a lane panicked"))??);
            Ok(())
        })
    })
    .map(|()| report)
}

/// Each lane takes its share of the plan and has a world of its own.
fn run_lane(settings: &Settings, plan: &[Vec<Dose>], lane: u64) -> anyhow::Result<Report> {
    let mut random = StdRng::seed_from_u64(settings.seed ^ (lane + 1));
    let mut report = Report::default();
    let mut world = World::make()?;
    let mut in_world = 0;
    let share = plan.iter().enumerate().skip(lane as usize).step_by(settings.lanes as usize);
    for (number, doses) in share {
        if in_world == ROUND_CYCLES {
            world = report.next(world)?;
            in_world = 0;
        }
        in_world += 1;
        let start = Instant::now();
        let what = describe(doses);
        let done = cycle(&mut world, doses, &mut random);
        println!("{:>5}  {:>6.1} s  {what}{}", number + 1, start.elapsed().as_secs_f64(), said_of(&done));
        let (row, wrong) = done.unwrap_or_else(|error| {
            (Row { cycles: 1, unexplained: 1, ..Row::default() }, vec![format!("{error:#}")])
        });
        report.take(doses, row);
        report.undone += std::mem::take(&mut world.undone);
        if !wrong.is_empty() {
            let complaints = wrong.iter().map(|wrong| format!("cycle {}, {what}: {wrong}", number + 1));
            report.complaints.extend(complaints);
            // What is wrong once stays wrong in this world.
            let folder = std::mem::replace(&mut world, World::make()?).keep();
            report.complaints.push(format!("its files are in {}", folder.display()));
            in_world = 0;
        }
    }
    report.end(world);
    Ok(report)
}

/// Every fault as often as any other, in another order each time; in a long run every n of the n-th write too.
fn plan(settings: &Settings) -> Vec<Vec<Dose>> {
    let mut random = StdRng::seed_from_u64(settings.seed);
    let wanted =
        |fault: &Fault| settings.only.as_ref().is_none_or(|only| fault.name().contains(only.as_str()));
    let faults: Vec<Fault> = ALL.into_iter().filter(wanted).collect();
    let every_write: Vec<Dose> = (1..=WRITES_MAX)
        .flat_map(|nth| WRITE_FAULTS.into_iter().map(move |fault| Dose { fault, nth, long: true }))
        .filter(|dose| settings.long && wanted(&dose.fault))
        .collect();
    let mut every_write = every_write.into_iter();
    let (mut plan, mut deck) = (Vec::new(), Vec::new());
    while (plan.len() as u64) < settings.cycles && !faults.is_empty() {
        if plan.len() % 2 == 1
            && let Some(dose) = every_write.next()
        {
            plan.push(vec![dose]);
            continue;
        }
        if deck.is_empty() {
            deck.clone_from(&faults);
            deck.shuffle(&mut random);
        }
        let Some(fault) = deck.pop() else { break };
        let mut doses = vec![dose(fault, settings, &mut random)];
        if settings.only.is_none() && random.random_ratio(TWO_PERCENT, 100) {
            let second = faults[random.random_range(0..faults.len())];
            doses.extend(fault.goes_with(second).then(|| dose(second, settings, &mut random)));
        }
        plan.push(doses);
    }
    plan
}

fn dose(fault: Fault, settings: &Settings, random: &mut StdRng) -> Dose {
    Dose {
        fault,
        nth: random.random_range(1..=fault.nth_max()),
        long: settings.long && random.random_ratio(1, 4),
    }
}

fn cycle(world: &mut World, doses: &[Dose], random: &mut StdRng) -> anyhow::Result<(Row, Vec<String>)> {
    let before = (world.oracle.written(), world.agent.deaths + world.collector.deaths);
    let exits = world.agent.exits + world.collector.exits;
    world.until_they_answer()?;
    let before_it = Duration::from_millis(random.random_range(0..300));
    world.write_for(random, before_it)?;
    let mut fired_before = Vec::new();
    for dose in doses {
        let fired = dose.counts_in().map(|side| world.daemon(side).fired()).transpose()?.unwrap_or(0);
        fired_before.push(fired);
        dose.inject(world, random).with_context(|| format!("could not inject {:?}", dose.fault))?;
    }
    let mut happened = true;
    for (dose, fired) in doses.iter().zip(fired_before) {
        happened &= dose.last(world, random, fired)?;
    }
    for dose in doses {
        dose.lift(world, random).with_context(|| format!("could not lift {:?}", dose.fault))?;
    }
    world.write_one(random)?;
    world.until_they_answer()?;
    let verdict = world.converge()?;
    let (lost, duplicated) = std::mem::replace(&mut world.known, (verdict.lost, verdict.duplicated));
    let row = Row {
        cycles: 1,
        happened: u64::from(happened),
        events: (world.oracle.written() - before.0) as u64,
        lost: verdict.lost.saturating_sub(lost),
        duplicated: verdict.duplicated.saturating_sub(duplicated),
        unexplained: verdict.unexplained.len() as u64,
        deaths: world.agent.deaths + world.collector.deaths - before.1,
        exits: world.agent.exits + world.collector.exits - exits,
    };
    let mut wrong = verdict.unexplained;
    wrong.truncate(COMPLAINTS_MAX);
    // Alone no fault may end a program that runs.
    if row.exits > if doses.len() > 1 { EXITS_MAX } else { 0 } {
        wrong.push(format!("{} ends that nobody asked for: {}", row.exits, world.said()));
    }
    Ok((row, wrong))
}

fn describe(doses: &[Dose]) -> String {
    let names: Vec<String> =
        doses.iter().map(|dose| format!("{} (n = {})", dose.fault.name(), dose.nth)).collect();
    names.join(" + ")
}

fn said_of(done: &anyhow::Result<(Row, Vec<String>)>) -> String {
    match done {
        Ok((row, wrong)) => format!(
            "; {} events, {} lost, {} twice, {} unexplained, {} deaths, {} exits{}",
            row.events,
            row.lost,
            row.duplicated,
            row.unexplained + wrong.len() as u64,
            row.deaths,
            row.exits,
            if row.happened == 0 { "; it did not happen" } else { "" }
        ),
        Err(error) => format!("; FAILED: {error:#}"),
    }
}

impl Row {
    fn add(&mut self, other: Self) {
        self.cycles += other.cycles;
        self.happened += other.happened;
        self.events += other.events;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.unexplained += other.unexplained;
        self.deaths += other.deaths;
        self.exits += other.exits;
    }

    fn cells(&self, name: &str) -> String {
        let Self { cycles, happened, events, lost, duplicated, unexplained, deaths, exits } = self;
        format!(
            "| {name} | {cycles} | {happened} | {events} | {lost} | {duplicated} | {unexplained} | {deaths} | {exits} |\n"
        )
    }
}

impl Report {
    fn merge(&mut self, other: Self) {
        for (name, row) in other.rows {
            self.rows.entry(name).or_default().add(row);
        }
        self.complaints.extend(other.complaints);
        self.stored += other.stored;
        self.undone += other.undone;
    }

    fn take(&mut self, doses: &[Dose], row: Row) {
        let name = match doses {
            [only] => only.fault.name(),
            _ => TWO.to_owned(),
        };
        self.rows.entry(name).or_default().add(row);
    }

    fn next(&mut self, world: World) -> anyhow::Result<World> {
        self.end(world);
        World::make()
    }

    fn end(&mut self, mut world: World) {
        match world.finish() {
            Ok((verdict, events)) => {
                self.stored += events as u64;
                self.complaints.extend(verdict.unexplained.into_iter().take(COMPLAINTS_MAX));
            }
            Err(error) => self.complaints.push(format!("at the end of a round: {error:#}")),
        }
    }

    /// For the README: markdown.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| fault | cycles | happened | events | lost | duplicated | unexplained | restarts after kill | own exits |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        let mut sum = Row::default();
        for name in ALL.into_iter().map(Fault::name).chain([TWO.to_owned()]) {
            if let Some(row) = self.rows.get(&name) {
                text.push_str(&row.cells(&name));
                sum.add(*row);
            }
        }
        text.push_str(&sum.cells("**all**"));
        // Writing to a string can't fail.
        let _ =
            writeln!(text, "\n{} events of all kinds were stored at the ends of the rounds.", self.stored);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(cycles: u64, long: bool) -> Settings {
        Settings { seed: 7, cycles, only: None, long, lanes: 1 }
    }

    #[test]
    fn a_seed_draws_the_same_plan() {
        let text = |seed| format!("{:?}", plan(&Settings { seed, ..settings(50, false) }));
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }

    #[test]
    fn a_short_run_has_every_fault_and_a_long_one_every_write() {
        let first: Vec<Fault> = plan(&settings(50, false)).iter().map(|doses| doses[0].fault).collect();
        assert!(ALL.iter().all(|fault| first.contains(fault)));
        let long = plan(&settings(1600, true));
        for fault in WRITE_FAULTS {
            for nth in 1..=WRITES_MAX {
                assert!(
                    long.iter().any(|doses| doses[0].fault == fault && doses[0].nth == nth),
                    "{fault:?} {nth}"
                );
            }
        }
    }
}
