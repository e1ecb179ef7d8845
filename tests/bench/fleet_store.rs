//! The store at a day's size: how fast rows go in at the beginning and at the end, what a filter of `vidette alerts list`
//! takes through the real command and socket, how big it all is, and how long dropping the day takes.

use super::Sizes;
use anyhow::ensure;
use prost::Message;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use vidette_collector::ingest::session::{Arrival, Received};
use vidette_collector::store::Reader;
use vidette_collector::store::db::{Db, Memory};
use vidette_protocol::id::{AgentId, Class};
use vidette_tests::fleet::events;
use vidette_tests::fleet::figures::{Table, at, own_cpu_s, unix_ns};
use vidette_tests::fleet::identities::{Identities, host_name};
use vidette_tests::programs::Collector;

/// Events of one run of an agent.
const RUN_EVENTS: u64 = 50;
/// Runs of one commit.
const RUNS: u64 = 40;
/// Of so many runs one is of alerts.
const ALERTS_EVERY: u64 = 5;
/// How often a command is run.
const REPEATS: usize = 20;
const DAY_NS: i64 = 86_400_000_000_000;

/// Prints the tables.
pub(crate) fn measure(sizes: &Sizes, identities: &Identities) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("vidette-bench-").tempdir()?;
    let state = folder.path().join("collector");
    identities.install(&state)?;
    let store = state.join("store");
    let table = Table::new(&format!("store: {} events of {} agents in a day", sizes.events, sizes.agents));
    let now = unix_ns();
    let agents: Vec<AgentId> = identities.agents.iter().map(|member| member.id).collect();
    fill(sizes, &agents, &store, now, &table)?;
    let bytes = bytes_below(&store)?;
    table.row("on disk, GB", &format!("{:.2}", bytes as f64 / 1e9), "");
    table.row("on disk, bytes an event", &format!("{:.0}", bytes as f64 / sizes.events as f64), "");
    lists(folder.path(), now)?;
    retain(&store, now)
}

fn fill(sizes: &Sizes, agents: &[AgentId], store: &Path, now: i64, table: &Table) -> anyhow::Result<()> {
    let mut db = Db::open(store, None, Memory::default(), now)?;
    let mut day = Day { agents, next: vec![[1, 1]; agents.len()], events: sizes.events, begun: 0, now };
    let tenth = (sizes.events / 10).max(1);
    let (mut tenths, mut wall, mut cpu, mut commits) = (Vec::new(), 0.0, 0.0, Vec::new());
    let (mut stored, mut next, mut body_bytes) = (0, tenth, 0);
    while stored < sizes.events {
        let group: Vec<Arrival> = (0..RUNS).map(|_| day.run()).collect();
        body_bytes +=
            group.iter().flat_map(|run| &run.events).map(|event| event.body.len() as u64).sum::<u64>();
        let (start, before) = (Instant::now(), own_cpu_s());
        db.commit(&group, now)?;
        wall += start.elapsed().as_secs_f64();
        cpu += own_cpu_s() - before;
        commits.push(start.elapsed().as_secs_f64());
        stored += RUNS * RUN_EVENTS;
        if stored >= next {
            eprintln!("  {stored} events, {:.0} a second", tenth as f64 / wall);
            tenths.push((tenth as f64 / wall, tenth as f64 / cpu));
            (wall, cpu, next) = (0.0, 0.0, next + tenth);
        }
    }
    let (Some(first), Some(last)) = (tenths.first(), tenths.last()) else { return Ok(()) };
    table.row("events/s, first tenth / last tenth", &format!("{:.0} / {:.0}", first.0, last.0), "");
    table.row("last tenth, first = 1", &format!("{:.2}", last.0 / first.0), "at least 0.5");
    table.row("events per CPU-second, first / last tenth", &format!("{:.0} / {:.0}", first.1, last.1), "");
    let (p95, most) = (1e3 * at(&mut commits, 0.95), 1e3 * at(&mut commits, 1.0));
    table.row(
        &format!("commit of {} events, p95 / longest, ms", RUNS * RUN_EVENTS),
        &format!("{p95:.0} / {most:.0}"),
        "",
    );
    table.row("encoded event, bytes", &format!("{:.0}", body_bytes as f64 / stored as f64), "");
    Ok(())
}

/// The events of a day, as they come.
struct Day<'a> {
    agents: &'a [AgentId],
    /// By agent: the next number of alerts and of telemetry.
    next: Vec<[u64; 2]>,
    events: u64,
    begun: u64,
    now: i64,
}

impl Day<'_> {
    fn run(&mut self) -> Arrival {
        let turn = self.begun / RUN_EVENTS;
        // Spread over the fleet, never in order.
        let spread = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let number = usize::try_from(spread % self.agents.len() as u64).unwrap_or(0);
        let is_alert = turn.is_multiple_of(ALERTS_EVERY);
        let class = if is_alert { Class::Alert } else { Class::Telemetry };
        let host = host_name(number);
        let events = (0..RUN_EVENTS).map(|index| {
            let event_number = self.begun + index;
            // It ends now, and began a day before.
            let age = (self.events.saturating_sub(event_number)) as f64 / self.events as f64;
            let time = self.now - (age * DAY_NS as f64) as i64;
            let make = if is_alert { events::alert } else { events::telemetry };
            let event = make(event_number, &host, time);
            Received { body: event.encode_to_vec(), event }
        });
        let events = events.collect();
        self.begun += RUN_EVENTS;
        let next = &mut self.next[number][usize::from(!is_alert)];
        let first_seq = *next;
        *next += RUN_EVENTS;
        Arrival { agent: self.agents[number], epoch: 1, class, first_seq, skipped: 0, events }
    }
}

fn lists(folder: &Path, now: i64) -> anyhow::Result<()> {
    // The default sink would write two million lines meanwhile: one that reaches nobody stays out of the way.
    let nobody = "[[sink]]\nname = \"nobody\"\ntype = \"syslog\"\naddress = \"127.0.0.1:1\"\n";
    let collector = Collector::start(folder, nobody)?;
    let moment =
        |age_ns: i64| jiff::Timestamp::from_nanosecond(i128::from(now - age_ns)).map(|at| at.to_string());
    let (noon, later) = (moment(DAY_NS / 2)?, moment(DAY_NS / 2 - 1_000_000_000)?);
    let (host, common, rare) = (host_name(17), events::rule_name(3), events::rule_name(990));
    let filters: Vec<(&str, Vec<&str>)> = vec![
        ("nothing", vec![]),
        ("--host", vec!["--host", &host]),
        ("--severity high", vec!["--severity", "high"]),
        ("--severity critical --host", vec!["--severity", "critical", "--host", &host]),
        ("--rule, a common one", vec!["--rule", &common]),
        ("--rule, a rare one", vec!["--rule", &rare]),
        ("--rule that never matched", vec!["--rule", "No_Such_Rule"]),
        ("--rule, a rare one, --host", vec!["--rule", &rare, "--host", &host]),
        ("--rule, a common one, --severity critical", vec!["--rule", &common, "--severity", "critical"]),
        ("--kind gap", vec!["--kind", "gap"]),
        ("--kind gap --kind health --host", vec!["--kind", "gap", "--kind", "health", "--host", &host]),
        ("--kind file, of which no alert is", vec!["--kind", "file"]),
        ("--since 2h", vec!["--since", "2h"]),
        ("one second at noon", vec!["--since", &noon, "--until", &later]),
        (
            "one second at noon, --rule, a rare one",
            vec!["--since", &noon, "--until", &later, "--rule", &rare],
        ),
        ("--until 2020", vec!["--until", "2020-01-01"]),
        ("--since in the future", vec!["--since", "2099-01-01"]),
    ];
    println!("\n| vidette alerts list | rows | p50, ms | p95, ms | goal |\n|---|---|---|---|---|");
    for (name, filter) in filters {
        let arguments: Vec<&str> = ["alerts", "list"].into_iter().chain(filter).collect();
        let (mut took, mut rows) = (Vec::new(), 0);
        for _ in 0..REPEATS {
            let start = Instant::now();
            rows = collector.lines(&arguments)?.len();
            took.push(1e3 * start.elapsed().as_secs_f64());
        }
        println!("| {name} | {rows} | {:.0} | {:.0} | under 100 |", at(&mut took, 0.5), at(&mut took, 0.95));
    }
    Ok(())
}

/// The next day begins while somebody reads the last one.
fn retain(store: &Path, now: i64) -> anyhow::Result<()> {
    let mut reader = Reader::new(store)?;
    ensure!(!reader.after(0, &[], 1)?.is_empty(), "the day can be read");
    let mut db = Db::open(store, Some(1), Memory::default(), now)?;
    let event = events::alert(1, "host-00001", now);
    let events = vec![Received { body: event.encode_to_vec(), event }];
    let arrival =
        Arrival { agent: AgentId([7; 16]), epoch: 1, class: Class::Alert, first_seq: 1, skipped: 0, events };
    let start = Instant::now();
    db.commit(&[arrival], now + DAY_NS)?;
    let took = start.elapsed();
    let left = fs::read_dir(store)?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "db"));
    ensure!(left.count() == 1, "the old day is still there");
    let start = Instant::now();
    drop(reader);
    let closed = start.elapsed();
    let table = Table::new("retention");
    table.row(
        "the commit that begins a day and drops one, while that is being read, ms",
        &millis(took),
        "under 1000",
    );
    table.row(
        "until the last reader has let go of it, and its blocks are free, ms",
        &millis(closed),
        "under 1000",
    );
    Ok(())
}

fn millis(time: Duration) -> String {
    format!("{:.0}", 1e3 * time.as_secs_f64())
}

fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let sizes = fs::read_dir(folder)?.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum::<std::io::Result<u64>>().map_err(Into::into)
}
