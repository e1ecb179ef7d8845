//! What storms cost and what is left of them: the figures behind the tests of the same name. Run it with
//! `tests/bench/storms`, as root; the method is in BENCHMARKS.md.

use clap::Parser;
use vidette_tests::storms::{ALL, Outcome, Storm, run};

/// Lets storms loose on an agent of this host.
#[derive(Parser)]
struct Args {
    /// Only storms whose name holds this text
    #[arg(long)]
    only: Option<String>,
    /// Runs of each; the one with the median time to settle is shown
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!(
        "| storm | took, s | expected | with an event | gaps | rescans | settled after, s | planted, slowest, s | memory beyond rest, MiB | deleted files held, MiB | agent CPU, s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut complaints = Vec::new();
    for storm in ALL {
        if args.only.as_ref().is_some_and(|only| !storm.name().contains(only.as_str())) {
            continue;
        }
        let mut outcomes: Vec<Outcome> =
            (0..args.runs.max(1)).map(|_| run(storm)).collect::<Result<_, _>>()?;
        for outcome in &outcomes {
            complaints
                .extend(outcome.complaints().into_iter().map(|text| format!("{}: {text}", storm.name())));
        }
        outcomes.sort_by_key(|outcome| outcome.settled);
        show(storm, &outcomes[outcomes.len() / 2]);
    }
    anyhow::ensure!(complaints.is_empty(), "not as promised:\n{}", complaints.join("\n"));
    Ok(())
}

fn show(storm: Storm, outcome: &Outcome) {
    let gaps: Vec<String> = outcome
        .gaps
        .iter()
        .map(|(reason, count)| {
            format!("{reason} {}", count.map_or("uncounted".into(), |count| count.to_string()))
        })
        .collect();
    let slowest =
        outcome.planted.iter().map(|(_, delay)| delay.map_or(f64::INFINITY, |delay| delay.as_secs_f64()));
    println!(
        "| {} | {:.1} | {} | {} | {} | {} | {:.1} | {:.2} | {:.1} | {:.1} | {:.1} |",
        storm.name(),
        outcome.storm.as_secs_f64(),
        outcome.expected,
        outcome.with_event,
        if gaps.is_empty() { "none".to_owned() } else { gaps.join(", ") },
        outcome.rescans.len(),
        outcome.settled.as_secs_f64(),
        slowest.fold(0.0, f64::max),
        outcome.memory_peak.saturating_sub(outcome.memory_before) as f64 / f64::from(1 << 20),
        outcome.pinned_peak as f64 / f64::from(1 << 20),
        outcome.cpu.as_secs_f64(),
    );
}
