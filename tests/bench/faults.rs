//! The fault campaign at length: prints the table for README.md. Run it with `tests/bench/faults`.
//!
//! What is not told to it comes from the environment, as in `tests/run`: `VIDETTE_CYCLES`, `VIDETTE_SEED`, `VIDETTE_FAULT`,
//! `VIDETTE_LANES`.

use clap::Parser;
use std::process::ExitCode;
use vidette_tests::faults::campaign::{LANES_MAX, Settings, run};

/// Half of them are every n up to 200 of the four faults at the n-th write.
const CYCLES: u64 = 1600;
/// At once: they mostly wait.
const LANES: u64 = 4;

/// Runs agents and collectors through every fault of one machine
#[derive(Debug, Parser)]
struct Args {
    /// Cycles; half of them are every n up to 200 of the four faults at the n-th write [default: 1600]
    #[arg(long)]
    cycles: Option<u64>,
    /// Of every choice; chosen and printed without
    #[arg(long)]
    seed: Option<u64>,
    /// Only faults whose name has this part
    #[arg(long)]
    fault: Option<String>,
    /// Worlds beside each other [default: 4]
    #[arg(long)]
    lanes: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let asked = Settings::from_environment(CYCLES, true, LANES);
    let settings = Settings {
        seed: args.seed.unwrap_or(asked.seed),
        cycles: args.cycles.unwrap_or(asked.cycles),
        only: args.fault.or(asked.only),
        lanes: args.lanes.unwrap_or(asked.lanes).clamp(1, LANES_MAX),
        long: true,
    };
    println!("{} cycles, seed {}", settings.cycles, settings.seed);
    let report = match run(&settings) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("faults: {error:#}");
            return ExitCode::from(2);
        }
    };
    println!("\n{}", report.table());
    for complaint in &report.complaints {
        println!("{complaint}");
    }
    if report.complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
