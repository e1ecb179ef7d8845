//! Tests of the process table.

use super::identity::entity_id;
use super::*;
use vidette_protocol::limits::{ANCESTORS_MAX, ARGS_BYTES_MAX};

fn facts(pid: u32, start_ns: u64, executable: &[u8]) -> Facts {
    Facts {
        pid,
        start_ns: Some(start_ns),
        parent: 1,
        executable: executable.to_vec(),
        args: vec![executable.to_vec(), b"-x".to_vec()],
        ..Facts::default()
    }
}

fn table() -> ProcessTable {
    let mut table = ProcessTable::new("boot".into());
    table.found(&facts(10, 1_000_000_000, b"/bin/sh"), wire::Source::Inventory);
    table
}

fn executable(table: &ProcessTable, pid: u32, which: Which) -> Vec<u8> {
    table.describe(pid, which).map(|process| process.executable).unwrap_or_default()
}

#[test]
fn a_fork_runs_what_its_parent_runs() {
    let mut table = table();
    table.fork(10, 20, Some(2_000_000_000), 2_000_000_000);
    let child = table.describe(20, Which::Newest).unwrap_or_default();
    assert_eq!(child.executable, b"/bin/sh");
    assert_eq!(child.source, wire::Source::Inventory as i32);
    let parent = child.parent.unwrap_or_default();
    assert_eq!((parent.pid, parent.executable), (10, b"/bin/sh".to_vec()));
    assert_eq!(parent.entity_id, entity_id("boot", 10, Some(1_000_000_000), 0));
}

/// A version that kept the old image until a new one was known named the parent's in half of all cases.
#[test]
fn an_exec_whose_image_nobody_could_read_never_shows_its_parents() {
    let mut table = table();
    table.fork(10, 20, Some(2_000_000_000), 2_000_000_000);
    table.exec(20, None);
    assert_eq!(executable(&table, 20, Which::Newest), b"");
    assert_eq!(table.describe(20, Which::Newest).map(|process| process.args), Some(vec![]));
    table.settle(20, b"", wire::Source::None, false);
    for which in [Which::Newest, Which::Settled] {
        assert_eq!(executable(&table, 20, which), b"");
    }
    // Nor does what it forks.
    table.fork(20, 30, Some(3_000_000_000), 3_000_000_000);
    assert_eq!(executable(&table, 30, Which::Newest), b"");
}

#[test]
fn what_was_forked_before_an_image_was_known_learns_it_too() {
    let mut table = table();
    table.exec(10, None);
    table.fork(10, 20, Some(2_000_000_000), 2_000_000_000);
    table.settle(10, b"/bin/new", wire::Source::Join, true);
    assert_eq!(executable(&table, 20, Which::Newest), b"/bin/new");
}

#[test]
fn execs_are_settled_oldest_first() {
    let mut table = table();
    table.exec(10, None);
    table.exec(10, None);
    assert_eq!(executable(&table, 10, Which::Settled), b"/bin/sh");
    table.settle(10, b"/usr/bin/env", wire::Source::Join, true);
    assert_eq!(executable(&table, 10, Which::Settled), b"/usr/bin/env");
    assert_eq!(executable(&table, 10, Which::Newest), b"");
    table.settle(10, b"/usr/bin/python3", wire::Source::Join, true);
    assert_eq!(executable(&table, 10, Which::Settled), b"/usr/bin/python3");
    assert_eq!(table.unsettled(10), 0);
}

#[test]
fn a_pid_that_is_used_again_is_somebody_else() {
    let mut table = table();
    table.fork(10, 20, Some(2_000_000_000), 2_000_000_000);
    let first = table.describe(20, Which::Newest).map(|process| process.entity_id);
    table.exit(20, 5_000_000_000);
    assert_eq!(first, table.describe(20, Which::Newest).map(|process| process.entity_id));
    table.fork(10, 20, Some(9_000_000_000), 9_000_000_000);
    assert_ne!(first, table.describe(20, Which::Newest).map(|process| process.entity_id));
    assert!(table.living().contains(&20));
}

#[test]
fn tombstones_and_processes_are_bounded() {
    let mut table = table();
    for pid in 100..100 + u32::try_from(TOMBSTONES_MAX).unwrap_or(0) + 50 {
        table.fork(10, pid, Some(2_000_000_000), 2_000_000_000);
        table.exit(pid, 5_000_000_000);
    }
    assert!(!table.knows(149) && table.knows(150));
    for pid in 100_000..100_000 + u32::try_from(PROCESSES_MAX).unwrap_or(0) + 50 {
        table.fork(10, pid, Some(3_000_000_000), 3_000_000_000);
    }
    assert_eq!(table.entries.len(), PROCESSES_MAX);
}

#[test]
fn arguments_are_bounded_and_given_back() {
    let mut table = table();
    let before = table.args_bytes.get();
    let mut large = facts(0, 2_000_000_000, b"/bin/x");
    large.args = vec![vec![b'a'; ARGS_BYTES_MAX + 10]; 3];
    for pid in 100..3000 {
        table.found(&Facts { pid, ..large.clone() }, wire::Source::Proc);
        assert!(table.args_bytes.get() <= ARGS_TABLE_BYTES_MAX);
    }
    for pid in 100..3000 {
        table.fork(10, pid, Some(9_000_000_000), 9_000_000_000);
    }
    table.lost(9_000_000_001); // those before them are kept until then, or until others have ended
    assert_eq!(table.args_bytes.get(), before);
}

fn entity(table: &ProcessTable, who: impl Into<Who>) -> String {
    table.describe(who, Which::Newest).unwrap_or_default().entity_id
}

fn sources(table: &ProcessTable, pid: u32) -> wire::Sources {
    table.describe(pid, Which::Newest).and_then(|process| process.sources).unwrap_or_default()
}

#[test]
fn a_child_has_its_login_session_and_group_from_its_parent() {
    let mut table = table();
    let id = "4fa6e0f0c6786287e131c3852c58a2e01cc697a68231826813597e4994f1d6e2";
    let shell = Facts {
        uid: Some(0),
        gid: Some(0),
        login_uid: Some(1000),
        login_session: Some(3),
        session: Some(11),
        cgroup: format!("/system.slice/docker-{id}.scope").into_bytes(),
        ..facts(11, 1_500_000_000, b"/bin/sh")
    };
    table.found(&shell, wire::Source::Inventory);
    table.fork(11, 20, Some(2_000_000_000), 2_000_000_000);
    let child = table.describe(20, Which::Newest).unwrap_or_default();
    assert_eq!((child.uid, child.login_uid, child.login_session), (Some(0), Some(1000), Some(3)));
    assert_eq!((child.session, child.cgroup.as_slice()), (Some(11), shell.cgroup.as_slice()));
    assert_eq!(child.container_id, id);
    let join = wire::Source::Join as i32;
    let inventory = wire::Source::Inventory as i32;
    let expected =
        wire::Sources { start: join, parent: join, args: inventory, user: join, login: join, cgroup: join };
    assert_eq!(child.sources, Some(expected));
    table.user(20, 33);
    table.session(20);
    let daemon = table.describe(20, Which::Newest).unwrap_or_default();
    assert_eq!((daemon.uid, daemon.session, daemon.login_uid), (Some(33), Some(20), Some(1000)));
    // What is not known of the parent is not known of the child, and says so.
    table.fork(10, 30, Some(2_000_000_000), 2_000_000_000);
    assert_eq!((sources(&table, 30).login, sources(&table, 30).cgroup), (0, 0));
    // An exec asks again.
    table.exec(
        30,
        Some(&Facts { cgroup: b"/x".to_vec(), session: Some(10), ..facts(30, 2_000_000_000, b"") }),
    );
    let proc = wire::Source::Proc as i32;
    assert_eq!(
        (sources(&table, 30).login, sources(&table, 30).cgroup, sources(&table, 30).args),
        (proc, proc, proc)
    );
}

#[test]
fn ancestors_outlive_their_processes_as_they_were_at_the_fork() {
    let mut table = table();
    for pid in 11..40 {
        table.fork(pid - 1, pid, Some(2_000_000_000), 2_000_000_000);
        table.exec(pid, None);
        table.settle(pid, format!("/bin/{pid}").as_bytes(), wire::Source::Join, true);
    }
    for pid in 10..39 {
        table.exec(pid, None);
        table.exit(pid, 5_000_000_000);
        table.fork(39, pid, Some(6_000_000_000), 6_000_000_000);
    }
    let last = table.describe(39, Which::Newest).unwrap_or_default();
    assert_eq!(last.parent.map(|parent| parent.executable), Some(b"/bin/38".to_vec()));
    let names: Vec<String> = last
        .ancestors
        .iter()
        .map(|ancestor| String::from_utf8_lossy(&ancestor.executable).into_owned())
        .collect();
    assert_eq!(names.len(), ANCESTORS_MAX);
    let expected: Vec<String> = (0..ANCESTORS_MAX).map(|at| format!("/bin/{}", 37 - at)).collect();
    assert_eq!(names, expected);
    assert!(last.ancestors.iter().all(|ancestor| ancestor.entity_id.len() == 32));
}

#[test]
fn a_pid_that_comes_round_within_a_tenth_of_a_second_has_another_id() {
    let mut table = table();
    let mut ids = std::collections::HashSet::new();
    for round in 0..10 {
        table.fork(10, 20, Some(2_000_000_000 + round), 2_000_000_000 + round);
        assert!(ids.insert(entity(&table, 20)), "round {round}");
        if round % 2 == 0 {
            table.exit(20, 2_000_000_000 + round); // the others' exits are told late
        }
    }
    assert_eq!(entity(&table, 20).len(), 32);
}

#[test]
fn an_exit_that_is_told_after_the_pids_next_fork_ends_the_earlier_one() {
    let mut table = table();
    table.fork(10, 20, Some(2_000_000_000), 2_000_000_000);
    let first = table.newest(20);
    table.fork(10, 20, Some(3_000_000_000), 3_000_000_000);
    let second = table.newest(20);
    assert_ne!(first, second);
    assert_ne!(entity(&table, first), entity(&table, second));
    let told = table.exiting(20);
    assert_eq!(told, first);
    table.leave(told);
    table.exit(told, 3_000_000_100);
    assert!(table.lives(second) && !table.lives(first));
    assert_eq!(table.exiting(20), second);
}

#[test]
fn those_that_had_a_pid_before_are_bounded_too() {
    let mut table = table();
    for round in 0..200_000 {
        let ns = 2_000_000_000 + round * 1000;
        table.fork(10, 20 + u32::try_from(round % 3).unwrap_or(0), Some(ns), ns);
    }
    assert_eq!(table.former_count, 3 * FORMER_MAX);
    assert_eq!(table.former.values().map(VecDeque::len).sum::<usize>(), table.former_count);
    assert!(table.tombstones.len() <= TOMBSTONES_MAX);
    for pid in 1000..1000 + u32::try_from(TOMBSTONES_MAX).unwrap_or(0) {
        table.fork(10, pid, Some(3_000_000_000), 3_000_000_000);
        table.exit(pid, 3_000_000_000);
    }
    assert_eq!((table.former_count, table.former.len()), (0, 0));
}

#[test]
fn after_lost_messages_nobody_is_named_until_proc_confirms_it() {
    let mut table = table();
    table.fork(10, 20, Some(2_000_000_000), 2_000_000_000);
    table.lost(3_000_000_000);
    table.fork(20, 30, Some(3_000_000_000), 3_000_000_000);
    for pid in [10, 20, 30] {
        assert_eq!(executable(&table, pid, Which::Newest), b"", "{pid}");
    }
    assert_eq!(
        table.describe(30, Which::Newest).and_then(|process| process.parent).unwrap_or_default().executable,
        b""
    );
    table.confirm(10);
    assert_eq!(executable(&table, 10, Which::Newest), b"/bin/sh");
    table.exec(20, None);
    table.settle(20, b"/bin/x", wire::Source::Join, true);
    assert_eq!(executable(&table, 20, Which::Newest), b"/bin/x");
}
