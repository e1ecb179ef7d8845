//! What twenty honest agents feel of one that misbehaves: the time to an acknowledgement, alone and beside each
//! misbehaviour in turn, and the collector's memory. Run it with `tests/bench/hostile`; the method is in BENCHMARKS.md.

use anyhow::{Context, bail};
use clap::Parser;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vidette_protocol::id::AgentId;
use vidette_tests::hostile_agent::client::Papers;
use vidette_tests::hostile_agent::honest::{Asked, Crew, quantile};
use vidette_tests::hostile_agent::{Ending, Misbehaviour};
use vidette_tests::programs::{Collector, memory_bytes};

/// How often memory is looked at. Shorter peaks can be missed.
const LOOK: Duration = Duration::from_millis(20);
/// What a deed that has ended waits for at least, from its start, before it is done again.
const AGAIN: Duration = Duration::from_millis(500);
/// After a round: what waits is done, and nobody is there.
const QUIET: Duration = Duration::from_millis(500);
/// Before the first round.
const WARM_UP: Duration = Duration::from_secs(1);

/// Measures honest agents beside hostile ones.
#[derive(Parser)]
struct Args {
    /// Honest agents
    #[arg(long, default_value_t = 20)]
    honest: usize,
    /// Between an acknowledgement and the next alert of each, in milliseconds
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    /// Rounds of each misbehaviour; each is measured alone and then beside it
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each half of a round is, in milliseconds
    #[arg(long, default_value_t = 1500)]
    round_ms: u64,
    /// Only these misbehaviours, with commas between them
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Misbehave instead, with the papers in this folder: what each round starts in a process of its own
    #[arg(long, hide = true, requires_all = ["collector", "only"])]
    papers: Option<PathBuf>,
    /// Whom to
    #[arg(long, hide = true)]
    collector: Option<SocketAddr>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let wanted = wanted(&args.only)?;
    if let (Some(folder), Some(collector)) = (&args.papers, args.collector) {
        return misbehave(wanted.first().copied().context("what to do")?, folder, collector, args.round_ms);
    }
    println!(
        "| misbehaviour | alone, p50 / p99 ms | beside it, p50 / p99 ms | p99 ratio | ratio of each round | alerts beside it, failed | honest agents refused | memory beyond rest, MiB | done | what became of it |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for misbehaviour in wanted {
        println!("{}", row(&args, misbehaviour)?);
    }
    Ok(())
}

fn wanted(names: &[String]) -> anyhow::Result<Vec<Misbehaviour>> {
    for name in names {
        if !Misbehaviour::ALL.iter().any(|misbehaviour| misbehaviour.name() == name) {
            let all: Vec<_> = Misbehaviour::ALL.iter().map(|misbehaviour| misbehaviour.name()).collect();
            bail!("no misbehaviour is called {name}; there are {}", all.join(", "));
        }
    }
    let is_wanted = |one: &Misbehaviour| names.is_empty() || names.iter().any(|name| name == one.name());
    Ok(Misbehaviour::ALL.into_iter().filter(is_wanted).collect())
}

/// From when to when.
type Window = (Instant, Instant);

/// A collector of its own for each: nobody is measured while an address is still watched for another's deeds.
fn row(args: &Args, misbehaviour: Misbehaviour) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let collector = Collector::start(folder.path(), "")?;
    let half = Duration::from_millis(args.round_ms);
    let papers = (0..args.honest).map(|index| Papers::join(&collector, &format!("honest-{index}")));
    let papers = papers.collect::<Result<_, _>>()?;
    let hostile: Vec<PathBuf> =
        (0..args.rounds).map(|round| folder.path().join(format!("round-{round}"))).collect();
    for round in &hostile {
        prepare(round, &collector, misbehaviour, half)?;
    }
    let crew = Crew::start(papers, Duration::from_millis(args.interval_ms))?;
    std::thread::sleep(WARM_UP);

    let pid = collector.program.as_ref().context("the collector runs")?.pid();
    let (rest, over, peak) = (memory_bytes(pid), AtomicBool::new(false), AtomicU64::new(0));
    let mut rounds: Vec<(Window, Window)> = Vec::new();
    let mut endings = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                peak.fetch_max(memory_bytes(pid).saturating_sub(rest), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        let done = hostile.iter().try_for_each(|folder| {
            let alone = Instant::now();
            std::thread::sleep(half);
            let child = Hostile::start(misbehaviour, folder, &collector, half)?;
            let beside = Instant::now();
            std::thread::sleep(half);
            let end = Instant::now();
            endings.extend(child.stop()?);
            rounds.push(((alone, alone + half), (beside, end)));
            std::thread::sleep(QUIET);
            anyhow::Ok(())
        });
        over.store(true, Ordering::Relaxed);
        done
    })?;
    let (ends, asked) = crew.end();
    let refused: Vec<String> =
        ends.iter().filter_map(|end| end.as_ref().err()).map(|error| format!("{error:#}")).collect();
    let figures = Figures::of(&rounds, &asked);
    Ok(format!(
        "| {} | {} | {} of {}{} | {:.1} | {} | {} |",
        misbehaviour.name(),
        figures.columns(),
        refused.len(),
        args.honest,
        refused.first().map_or_else(String::new, |why| format!(": {}", why.replace('|', "/"))),
        peak.load(Ordering::Relaxed) as f64 / f64::from(1 << 20),
        endings.len(),
        endings.last().map_or("it went on until it was stopped", String::as_str).replace('|', "/"),
    ))
}

/// Of all rounds.
struct Figures {
    /// p50 and p99 of each round, in milliseconds: alone and beside.
    alone: Vec<(f64, f64)>,
    beside: Vec<(f64, f64)>,
    /// Alerts that were sent beside it, and how many of them were not acknowledged.
    sent: usize,
    failed: usize,
}

impl Figures {
    /// An alert counts for the time in which it was sent, however long its acknowledgement took.
    fn of(rounds: &[(Window, Window)], asked: &[Asked]) -> Self {
        let within = |(from, to): Window| asked.iter().filter(move |one| from <= one.sent && one.sent < to);
        let both = |window| {
            let mut times: Vec<Duration> = within(window).filter_map(|one| one.took).collect();
            times.sort_unstable();
            let ms = |part| quantile(&times, part).as_secs_f64() * 1e3;
            (ms(0.5), ms(0.99))
        };
        let beside = |look: fn(&&Asked) -> bool| -> usize {
            rounds.iter().map(|(_, window)| within(*window).filter(look).count()).sum()
        };
        Self {
            alone: rounds.iter().map(|(alone, _)| both(*alone)).collect(),
            beside: rounds.iter().map(|(_, beside)| both(*beside)).collect(),
            sent: beside(|_| true),
            failed: beside(|one| one.took.is_none()),
        }
    }

    fn columns(&self) -> String {
        let pick = |of: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| median(of.iter().map(which).collect());
        let (alone, beside) = (pick(&self.alone, |both| both.1), pick(&self.beside, |both| both.1));
        let ratios = self.alone.iter().zip(&self.beside).map(|(alone, beside)| beside.1 / alone.1);
        format!(
            "{:.1} / {:.1} | {:.1} / {:.1} | {:.2} | {} | {}, {}",
            pick(&self.alone, |both| both.0),
            alone,
            pick(&self.beside, |both| both.0),
            beside,
            beside / alone,
            ratios.map(|ratio| format!("{ratio:.1}")).collect::<Vec<_>>().join(" "),
            self.sent,
            self.failed,
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// It comes again as long as it is measured, each time as another agent: bars do not spare the others anything.
fn prepare(
    folder: &Path,
    collector: &Collector,
    misbehaviour: Misbehaviour,
    half: Duration,
) -> anyhow::Result<()> {
    let count = half.as_millis().div_ceil(AGAIN.as_millis());
    for number in 0..count {
        let own = folder.join(number.to_string());
        std::fs::create_dir_all(&own)?;
        let agent = Papers::join_in(&own, collector, misbehaviour.name())?;
        std::fs::write(own.join("agent"), agent.to_string())?;
    }
    Ok(())
}

/// The hostile agent's process. What it does is asked, and not what its own work costs the machine that it shares with the
/// others only here: it runs when nobody else wants to.
struct Hostile(Child);

impl Hostile {
    fn start(
        misbehaviour: Misbehaviour,
        papers: &Path,
        collector: &Collector,
        half: Duration,
    ) -> anyhow::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, collector.port));
        let child = Command::new("chrt") // of util-linux: SCHED_IDLE (sched(7))
            .args(["--idle", "0"])
            .arg(std::env::current_exe()?)
            .args(["--only", misbehaviour.name(), "--collector", &address.to_string()])
            .args(["--round-ms", &half.as_millis().to_string(), "--papers"])
            .arg(papers)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("could not start chrt: install util-linux")?;
        Ok(Self(child))
    }

    /// Ends it, without a goodbye. What came of each deed that had ended.
    fn stop(mut self) -> anyhow::Result<Vec<String>> {
        self.0.kill()?;
        let said = self.0.stdout.take().context("a pipe")?;
        Ok(BufReader::new(said).lines().collect::<Result<_, _>>()?)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does it again and again, and prints what came of it, each time in one line.
fn misbehave(
    misbehaviour: Misbehaviour,
    folder: &Path,
    collector: SocketAddr,
    round_ms: u64,
) -> anyhow::Result<()> {
    for number in 0.. {
        let own = folder.join(number.to_string());
        let Ok(agent) = std::fs::read_to_string(own.join("agent")) else { break };
        let papers = Papers::read(&own, agent.parse::<AgentId>()?, misbehaviour.name(), collector)?;
        let start = Instant::now();
        // A flood ends in time to say what came of it.
        match misbehaviour.run(&papers, Duration::from_millis(round_ms / 5 * 4)) {
            Ok(Ending::CutOff { reason, .. }) => println!("cut off: {reason}"),
            Ok(Ending::Bounded(what)) => println!("{what}"),
            Err(error) => println!("failed: {error:#}"),
        }
        std::thread::sleep(AGAIN.saturating_sub(start.elapsed()));
    }
    Ok(())
}
