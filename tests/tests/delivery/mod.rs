//! What was appended is what is stored, once, in order, whatever the link and the crashes do.
//!
//! `world` runs one seed, `oracle` judges it. A failing seed is replayed with `VIDETTE_SEED=n`. The same worlds
//! run with a bug planted around the product's code; a bug that no seed notices would mean that the oracle is
//! blind. `week` drains a long time without a link over a steady `line`.

mod events;
mod line;
mod oracle;
mod week;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use world::{Bug, Seen, World};

const SEEDS: u64 = 1000;
/// A planted bug has to be found within so many.
const SEEDS_FOR_BUGS: u64 = 300;
const THREADS: usize = 2;

#[test]
fn what_was_appended_is_what_is_stored() {
    let (first, last) = match std::env::var("VIDETTE_SEED").ok().and_then(|seed| seed.parse::<u64>().ok()) {
        Some(seed) => (seed, seed + 1),
        None => (0, SEEDS),
    };
    let next = AtomicU64::new(first);
    let total = Mutex::new(Seen::default());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= last {
                        return;
                    }
                    match run(seed, Bug::None) {
                        Ok(seen) => total.lock().unwrap().add(&seen),
                        Err(reason) => {
                            println!("seed {seed}: {reason}\n  replay: VIDETTE_SEED={seed} cargo nextest run --workspace -E 'test(what_was_appended)' --no-capture");
                            failures.lock().unwrap().push(seed);
                        }
                    }
                }
            });
        }
    });
    let seen = total.into_inner().unwrap();
    println!("seeds {first} to {}: {seen:?}", last - 1);
    assert_eq!(failures.into_inner().unwrap(), Vec::<u64>::new(), "these seeds failed");
    if last - first == SEEDS {
        assert!(seen.nothing_was_left_out(), "a kind of trouble never happened: {seen:?}");
    }
}

#[test]
fn number_reuse_is_caught() {
    is_caught(Bug::NumberReuse);
}

#[test]
fn an_insert_that_is_not_idempotent_is_caught() {
    is_caught(Bug::NotIdempotent);
}

#[test]
fn forgetting_on_send_is_caught() {
    is_caught(Bug::ForgetOnSend);
}

#[test]
fn a_stuck_state_is_caught() {
    is_caught(Bug::Stuck);
}

fn run(seed: u64, bug: Bug) -> Result<Seen, String> {
    let mut world = World::new(seed, bug);
    world.run()?;
    oracle::judge(&mut world)?;
    Ok(world.seen)
}

fn is_caught(bug: Bug) {
    for seed in 0..SEEDS_FOR_BUGS {
        if let Err(reason) = run(seed, bug) {
            println!("{bug:?} caught by seed {seed}: {reason}");
            return;
        }
    }
    panic!("{bug:?} was not caught by seeds 0 to {}", SEEDS_FOR_BUGS - 1);
}
