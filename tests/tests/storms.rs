//! Storms on a real agent: each file has an event, or a gap covers it and a rescan found what survived; memory, disk
//! and log stay bounded; a sample planted in the middle is detected in time.

use vidette_tests::storms::{ALL, Storm, run};

fn check(storm: Storm) {
    let outcome = run(storm).unwrap_or_else(|error| panic!("{}: {error:#}", storm.name()));
    println!("{}: {outcome:#?}", storm.name());
    assert!(outcome.complaints().is_empty(), "{}: {:#?}", storm.name(), outcome.complaints());
}

macro_rules! storms {
    ($($name:ident: $pattern:pat),* $(,)?) => {
        $(#[test]
        fn $name() {
            for storm in ALL.into_iter().filter(|storm| matches!(storm, $pattern)) {
                check(storm);
            }
        })*
    };
}

storms! {
    files_that_are_unlinked_at_once: Storm::Unlinked(_),
    deletes_on_one_core: Storm::Deletes(_),
    trees_made_and_removed: Storm::Trees(_),
    short_processes: Storm::Processes(_),
    a_tree_that_is_moved_in: Storm::Moved(_),
    one_file_again_and_again: Storm::Rewrites(_),
    small_rounds_by_programs: Storm::Rounds(_),
    a_stalled_reader: Storm::Stalled(_),
}
