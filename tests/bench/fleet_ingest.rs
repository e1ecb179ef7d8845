//! Durable ingest: agents send batches and wait for their acknowledgement, which comes after the commit.

use super::Sizes;
use anyhow::{Context, ensure};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use vidette_protocol::limits::BATCHES_IN_FLIGHT_MAX;
use vidette_protocol::wire;
use vidette_tests::fleet::agents::{Session, Swarm};
use vidette_tests::fleet::figures::{Table, at, cpu_s, latencies, own_cpu_s, unix_ns};
use vidette_tests::fleet::{events, identities::Identities};
use vidette_tests::programs::{Collector, memory_bytes};

/// Different batches, sent in turn.
const BATCHES: usize = 64;
/// For the last acknowledgements.
const LAST_ACKS_MAX: Duration = Duration::from_secs(20);

/// One run of all senders.
#[derive(Debug, Clone, Copy)]
struct Load {
    batch: usize,
    /// Events a second of all of them; as many as are acknowledged when it is not given.
    rate: Option<f64>,
    length: Duration,
}

/// What one agent got through.
struct Sent {
    acknowledged: u64,
    latencies_s: Vec<f64>,
}

/// Prints the table.
pub(crate) fn measure(sizes: &Sizes, identities: &Identities) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(sizes, identities))
}

async fn run(sizes: &Sizes, identities: &Identities) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("vidette-bench-").tempdir()?;
    identities.install(&folder.path().join("collector"))?;
    let collector = Collector::start(folder.path(), "")?;
    let senders = sizes.senders.min(sizes.agents);
    let swarm = Arc::new(Swarm::new(identities, collector.port, sizes.addresses)?);
    let mut sessions = Vec::new();
    for number in 0..senders {
        sessions.push(swarm.session(number).await?);
    }
    let table = Table::new(&format!("durable ingest: {senders} agents"));
    let length = Duration::from_secs(sizes.ingest_s);
    let loads = [
        (Load { batch: 10, rate: Some(20_000.0), length }, "", "at most 50"),
        (Load { batch: 10, rate: None, length }, "at least 20,000", ""),
        (Load { batch: 100, rate: None, length }, "at least 70,000", ""),
    ];
    let pid = collector.program.as_ref().context("it runs")?.pid();
    for (load, goal, goal_p95) in loads {
        let offered = load.rate.map_or("as many as go".to_owned(), |rate| format!("{rate:.0} offered"));
        eprintln!("  batches of {}, {offered}", load.batch);
        let (cpu, own, start) = (cpu_s(pid)?, own_cpu_s(), Instant::now());
        let (kept, sent) = send_all(sessions, load).await?;
        sessions = kept;
        let (wall, cpu, own) = (start.elapsed().as_secs_f64(), cpu_s(pid)? - cpu, own_cpu_s() - own);
        let events: u64 = sent.iter().map(|sent| sent.acknowledged).sum();
        let what = format!("batches of {}, {offered}", load.batch);
        table.row(
            &format!("{what}: events/s acknowledged"),
            &format!("{:.0}", events as f64 / load.length.as_secs_f64()),
            goal,
        );
        let mut all: Vec<f64> = sent.iter().flat_map(|sent| sent.latencies_s.iter().copied()).collect();
        table.row(&format!("{what}: ack p50 / p95 / p99"), &latencies(&mut all), goal_p95);
        let mut shares: Vec<f64> = sent.iter().map(|sent| sent.acknowledged as f64).collect();
        let (least, most) = (at(&mut shares, 0.0), at(&mut shares, 1.0));
        let mean = events as f64 / senders as f64;
        table.row(
            &format!("{what}: least and most of one agent, mean = 1"),
            &format!("{:.2} / {:.2}", least / mean, most / mean),
            "fair",
        );
        let cpu = format!("{:.2} / {:.2}", cpu / wall, own / wall);
        table.row(&format!("{what}: cores used by the collector / the load"), &cpu, "");
    }
    table.row(
        "memory of the collector after it, MiB",
        &format!("{:.0}", memory_bytes(pid) as f64 / f64::from(1 << 20)),
        "",
    );
    let stored = collector.lines(&["status"])?;
    table.row(
        "events stored",
        &stored.first().map_or(String::new(), |status| status["store"]["events"].to_string()),
        "",
    );
    Ok(())
}

/// Lets all of them send for a while.
async fn send_all(sessions: Vec<Session>, load: Load) -> anyhow::Result<(Vec<Session>, Vec<Sent>)> {
    let batches: Arc<Vec<wire::Batch>> = Arc::new(events::packed(load.batch, BATCHES, unix_ns())?);
    let (start, senders) = (Instant::now() + Duration::from_millis(100), sessions.len());
    let mut tasks = JoinSet::new();
    for (number, session) in sessions.into_iter().enumerate() {
        let batches = batches.clone();
        let pause = load.rate.map(|rate| Duration::from_secs_f64((load.batch * senders) as f64 / rate));
        // Agents don't beat time together.
        let first = start + pause.unwrap_or_default().mul_f64(number as f64 / senders as f64);
        tasks.spawn(send(session, batches, pause, first, start + load.length));
    }
    let (mut kept, mut all) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (session, sent) = done??;
        kept.push(session);
        all.push(sent);
    }
    Ok((kept, all))
}

async fn send(
    mut session: Session,
    batches: Arc<Vec<wire::Batch>>,
    pause: Option<Duration>,
    first: Instant,
    end: Instant,
) -> anyhow::Result<(Session, Sent)> {
    let mut sent = Sent { acknowledged: 0, latencies_s: Vec::new() };
    // The number of a batch's last event, when it should have been sent, and how many it holds.
    let mut in_flight: VecDeque<(u64, Instant, u64)> = VecDeque::new();
    let (mut due, mut number) = (first, 0);
    let mut turns = batches.iter().cycle();
    loop {
        let now = Instant::now();
        let may_send = now < end && in_flight.len() < BATCHES_IN_FLIGHT_MAX;
        if may_send && now >= due {
            let batch = turns.next().context("there are batches")?;
            let last = session.send(batch).await?;
            in_flight.push_back((last, if pause.is_some() { due } else { now }, u64::from(batch.count)));
            number += 1;
            due = pause.map_or(now, |pause| first + pause * number);
            continue;
        }
        if in_flight.is_empty() && (now >= end || due >= end) {
            return Ok((session, sent));
        }
        ensure!(now < end + LAST_ACKS_MAX, "no acknowledgement for {} s", LAST_ACKS_MAX.as_secs());
        let acknowledged = tokio::select! {
            acknowledged = session.acknowledged() => acknowledged?,
            () = tokio::time::sleep_until(due.into()), if may_send => continue,
            () = tokio::time::sleep(LAST_ACKS_MAX) => continue,
        };
        let now = Instant::now();
        while let Some((_, since, events)) = in_flight.pop_front_if(|(last, ..)| *last <= acknowledged) {
            sent.latencies_s.push(now.duration_since(since).as_secs_f64());
            sent.acknowledged += if now <= end { events } else { 0 };
        }
    }
}
