//! Every fault that one machine can have, one after another on real programs: what was written is stored exactly once,
//! numbers have no hole that nothing names, and both programs come back by themselves.

use vidette_tests::faults::campaign::{Settings, run};

/// Every fault at least once. `VIDETTE_CYCLES` asks for more.
const CYCLES: u64 = 50;
/// At once: they mostly wait.
const LANES: u64 = 2;

#[test]
fn nothing_is_lost_or_doubled_whatever_fails() {
    let settings = Settings::from_environment(CYCLES, false, LANES);
    println!("seed {}; the same plan again with VIDETTE_SEED={}", settings.seed, settings.seed);
    let report = run(&settings).unwrap_or_else(|error| panic!("seed {}: {error:#}", settings.seed));
    println!("{}", report.table());
    assert!(report.complaints.is_empty(), "seed {}: {:#?}", settings.seed, report.complaints);
}
