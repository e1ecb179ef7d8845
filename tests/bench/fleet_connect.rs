//! Connections: how long a fleet takes to connect, what an agent costs while it is idle, and what a restart does.

use super::Sizes;
use anyhow::{Context, ensure};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use vidette_tests::fleet::agents::{Board, Swarm};
use vidette_tests::fleet::figures::{Table, at, cpu_s, own_cpu_s};
use vidette_tests::fleet::identities::Identities;
use vidette_tests::programs::{Collector, memory_bytes};

/// Until the whole fleet is there.
const CONNECT_MAX: Duration = Duration::from_secs(180);
/// Every so many agents one talks.
const TALKER_EVERY: usize = 250;
const TALK: Duration = Duration::from_millis(500);
/// What memory is looked at after.
const SETTLE: Duration = Duration::from_secs(3);

/// Prints the table.
pub(crate) fn measure(sizes: &Sizes, identities: &Identities) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(sizes, identities))
}

async fn run(sizes: &Sizes, identities: &Identities) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("vidette-bench-").tempdir()?;
    identities.install(&folder.path().join("collector"))?;
    let mut collector = Collector::start(folder.path(), "")?;
    let swarm = Arc::new(Swarm::new(identities, collector.port, sizes.addresses)?);
    let (board, mut fleet) = (Arc::new(Board::default()), JoinSet::new());
    let table =
        Table::new(&format!("connections: {} agents from {} addresses", sizes.agents, sizes.addresses));

    let pid = pid(&collector)?;
    let (memory, cpu, start) = (memory_bytes(pid), cpu_s(pid)?, Instant::now());
    for number in 0..sizes.agents {
        let talk = number.is_multiple_of(TALKER_EVERY).then_some(TALK);
        fleet.spawn(swarm.clone().live(number, board.clone(), talk));
    }
    let took = all_up(sizes, &board, start).await?;
    let spent = cpu_s(pid)? - cpu;
    table.row("all at once, first time, s", &format!("{took:.1}"), "");
    table.row(
        "handshakes per CPU-second of the collector",
        &format!("{:.0}", sizes.agents as f64 / spent),
        "",
    );
    told(&table, &board);

    tokio::time::sleep(SETTLE).await;
    let each =
        |bytes: u64| format!("{:.1}", (bytes.saturating_sub(memory)) as f64 / 1024.0 / sizes.agents as f64);
    table.row("memory of the collector an agent, KiB", &each(memory_bytes(pid)), "at most 40");
    let talking = format!("and one in {TALKER_EVERY} talking twice a second");
    for (quiet, what, goal) in [(true, "alone", "at most 5"), (false, talking.as_str(), "")] {
        board.quiet.store(quiet, Ordering::Relaxed);
        eprintln!("  idle for {} s", sizes.idle_s);
        let (cpu, own, idle) = (cpu_s(pid)?, own_cpu_s(), Instant::now());
        tokio::time::sleep(Duration::from_secs(sizes.idle_s)).await;
        let share = |spent: f64| format!("{:.1}", 100.0 * spent / idle.elapsed().as_secs_f64());
        let (cpu, own) = (share(cpu_s(pid)? - cpu), share(own_cpu_s() - own));
        table.row(&format!("CPU with keep-alives {what}, % of a core"), &cpu, goal);
        table.row("CPU of all agents meanwhile, % of a core", &own, "");
    }
    table.row("memory an agent after it, KiB", &each(memory_bytes(pid)), "at most 40");

    eprintln!("  the collector is stopped and started");
    forget(&board);
    let stopped = Instant::now();
    collector.program.as_mut().context("it runs")?.stop()?;
    collector.resume()?;
    let back = Instant::now();
    let took = all_up(sizes, &board, back).await?;
    table.row(
        "back after an orderly restart, s from the moment it answers",
        &format!("{took:.1}"),
        "at most 20",
    );
    noticed(&table, "its end was noticed", &board, stopped);
    told(&table, &board);
    tokio::time::sleep(SETTLE).await;

    eprintln!("  the collector is killed and started");
    forget(&board);
    collector.kill()?;
    collector.resume()?;
    let back = Instant::now();
    let took = all_up(sizes, &board, back).await?;
    table.row(
        "back after kill -9 and restart, s from the moment it answers",
        &format!("{took:.1}"),
        "at most 20",
    );
    noticed(&table, "the restart was noticed", &board, back);
    told(&table, &board);
    fleet.shutdown().await;
    Ok(())
}

/// Waits until everybody is connected and stays so; seconds since `start`.
async fn all_up(sizes: &Sizes, board: &Board, start: Instant) -> anyhow::Result<f64> {
    let mut told = Instant::now();
    // After a kill nobody is known to be gone before it has tried to talk: everybody has to come back, not only to be there.
    loop {
        let noticed = board.noticed.lock().unwrap_or_else(PoisonError::into_inner).len();
        let has_come_back = noticed == 0 && start.elapsed() < Duration::from_millis(100);
        let up = board.up.load(Ordering::Relaxed);
        let first = board.tries.load(Ordering::Relaxed) > 0 && noticed == 0 && up == sizes.agents;
        if !has_come_back && up == sizes.agents && (first || noticed >= sizes.agents) {
            return Ok(start.elapsed().as_secs_f64());
        }
        if told.elapsed() > Duration::from_secs(2) {
            eprintln!("  {up} of {} are connected", sizes.agents);
            told = Instant::now();
        }
        let reason = board.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(start.elapsed() < CONNECT_MAX, "{up} of {} agents are connected; {reason}", sizes.agents);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pid(collector: &Collector) -> anyhow::Result<u32> {
    Ok(collector.program.as_ref().context("the collector runs")?.pid())
}

fn forget(board: &Board) {
    board.noticed.lock().unwrap_or_else(PoisonError::into_inner).clear();
    for count in [&board.tries, &board.turned_away, &board.unanswered, &board.refused] {
        count.store(0, Ordering::Relaxed);
    }
}

fn noticed(table: &Table, what: &str, board: &Board, since: Instant) {
    let all = board.noticed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for (talks, who, goal) in [(true, "who talks", "at most 2"), (false, "who is silent", "")] {
        let of = all.iter().filter(|(talked, _)| *talked == talks);
        let mut after: Vec<f64> =
            of.map(|(_, at)| at.saturating_duration_since(since).as_secs_f64()).collect();
        let (half, last) = (at(&mut after, 0.5), at(&mut after, 1.0));
        table.row(&format!("{what} by {who}, s: half, all"), &format!("{half:.1} / {last:.1}"), goal);
    }
}

fn told(table: &Table, board: &Board) {
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    table.row(
        "handshakes begun / turned away to come back / without an answer",
        &format!("{} / {} / {}", count(&board.tries), count(&board.turned_away), count(&board.unanswered)),
        "",
    );
    let reason = board.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
    table.row("refused otherwise, and why", &format!("{} {reason}", count(&board.refused)), "0");
}
