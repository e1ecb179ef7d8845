//! A fleet against one collector, measured: `tests/bench/fleet`. Each part can be run alone; what it prints are tables with
//! the goal beside each figure. The method is in BENCHMARKS.md.

mod fleet_connect;
mod fleet_ingest;
mod fleet_rsyslog;
mod fleet_store;

use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vidette_tests::fleet::identities::Identities;

/// Measures the collector under a fleet.
#[derive(Parser)]
struct Args {
    /// What to measure
    #[arg(value_enum, default_value_t = Part::All)]
    part: Part,
    /// Small numbers: everything is exercised, in two minutes
    #[arg(long)]
    quick: bool,
    /// Agents
    #[arg(long)]
    agents: Option<usize>,
    /// Addresses that agents come from
    #[arg(long, default_value_t = 200)]
    addresses: u8,
    /// How long to watch idle agents, in seconds
    #[arg(long)]
    idle_s: Option<u64>,
    /// How long to send batches of one size, in seconds
    #[arg(long)]
    ingest_s: Option<u64>,
    /// Agents that send
    #[arg(long, default_value_t = 200)]
    senders: usize,
    /// Events of the day that is stored
    #[arg(long)]
    events: Option<u64>,
    /// Messages through rsyslog
    #[arg(long)]
    messages: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    All,
    Connect,
    Ingest,
    Store,
    Rsyslog,
}

/// Sizes of everything.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    agents: usize,
    addresses: u8,
    idle_s: u64,
    ingest_s: u64,
    senders: usize,
    events: u64,
    messages: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    raise_open_files()?;
    let size =
        |given: Option<u64>, quick: u64, whole: u64| given.unwrap_or(if args.quick { quick } else { whole });
    let sizes = Sizes {
        agents: args.agents.unwrap_or(if args.quick { 500 } else { 10_000 }),
        addresses: args.addresses,
        idle_s: size(args.idle_s, 5, 45),
        ingest_s: size(args.ingest_s, 3, 15),
        senders: args.senders,
        events: size(args.events, 200_000, 10_000_000),
        messages: args.messages.unwrap_or(if args.quick { 20_000 } else { 200_000 }),
    };
    let is_wanted = |part| args.part == Part::All || args.part == part;
    println!("{} cores, {}", std::thread::available_parallelism()?, kernel());
    if args.part != Part::Rsyslog {
        eprintln!("{} agents join", sizes.agents);
        let identities = Identities::make(sizes.agents)?;
        if is_wanted(Part::Connect) {
            fleet_connect::measure(&sizes, &identities)?;
        }
        if is_wanted(Part::Ingest) {
            fleet_ingest::measure(&sizes, &identities)?;
        }
        if is_wanted(Part::Store) {
            fleet_store::measure(&sizes, &identities)?;
        }
    }
    if is_wanted(Part::Rsyslog) {
        fleet_rsyslog::measure(&sizes)?;
    }
    Ok(())
}

fn raise_open_files() -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
