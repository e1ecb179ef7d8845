//! Tests of the join: what each order of the two kernel queues must come to.
#![allow(clippy::unwrap_used)]

use super::*;
use std::fs::File;

fn at(ms: u64) -> Moment {
    Moment { unix_ns: 0, uptime_ns: ms * 1_000_000 }
}

fn file(path: &str) -> OpenFile {
    let descriptor = File::open("/dev/null").unwrap().into();
    OpenFile { descriptor, path: path.as_bytes().to_vec(), deleted: false, container_path: Vec::new() }
}

fn program(path: &str) -> Program {
    let elf = !path.ends_with(".sh") && !path.ends_with(".py");
    let inode = path.bytes().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    Program { file: file(path), key: (1, inode), elf }
}

fn run(pid: u32, path: &str) -> Seen {
    Seen { pid, standing: Standing::Lives, written: None, opened: false, run: Some(program(path)), at: at(0) }
}

fn wrote(pid: u32, path: &str) -> Seen {
    Seen { pid, standing: Standing::Lives, written: Some(file(path)), opened: false, run: None, at: at(0) }
}

fn exec(pid: u32, exe: Option<&str>) -> Told {
    let facts = exe.map(|exe| Facts {
        pid,
        start_ns: Some(2_000_000_000),
        executable: exe.as_bytes().to_vec(),
        args: vec![exe.as_bytes().to_vec()],
        ..Facts::default()
    });
    Told::Exec { pid, facts: facts.map(Box::new), exe: exe.map(program) }
}

fn read(emptied: bool, ms: u64) -> Read {
    Read { from_ns: ms * 1_000_000, until_ns: ms * 1_000_000, emptied }
}

/// A shell, pid 10, and its child, pid 20.
fn joiner() -> Joiner {
    let mut table = ProcessTable::new("boot".into());
    let shell =
        Facts { pid: 10, start_ns: Some(1_000_000_000), executable: b"/bin/sh".into(), ..Facts::default() };
    table.found(&shell, Source::Inventory);
    let mut joiner = Joiner::new(table);
    joiner.tell(Told::Fork { parent: 10, child: 20, start_ns: Some(2_000_000_000) }, at(0));
    joiner
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `write FILE by EXECUTABLE`, `run EXECUTABLE scan IMAGE`, `end EXECUTABLE`.
fn show(outcomes: Vec<Outcome>) -> Vec<String> {
    let line = |outcome| match outcome {
        Outcome::Written { process, file, .. } => {
            let by = process.map_or("nobody".into(), |process| text(&process.executable));
            format!("write {} by {by}", text(&file.path))
        }
        Outcome::Ran { process, image, .. } => {
            let image = image.map_or("nothing".into(), |image| text(&image.file.path));
            format!("run {} scan {image}", text(&process.executable))
        }
        Outcome::Ended { process, .. } => format!("end {}", text(&process.executable)),
    };
    outcomes.into_iter().map(line).collect()
}

#[test]
fn a_program_that_was_written_run_and_ended_within_a_turn() {
    let mut joiner = joiner();
    joiner.tell(exec(20, None), at(0));
    joiner.tell(Told::Exit { pid: 20, status: 0 }, at(0));
    let batch =
        vec![wrote(10, "/tmp/x"), run(20, "/tmp/x"), run(20, "/lib/ld-linux.so.2"), wrote(20, "/tmp/y")];
    let outcomes = show(joiner.see(batch, read(true, 0)));
    let expected =
        ["write /tmp/x by /bin/sh", "run /tmp/x scan /tmp/x", "write /tmp/y by /tmp/x", "end /tmp/x"];
    assert_eq!(outcomes, expected);
    assert!(!joiner.is_waiting());
}

#[test]
fn a_script_runs_as_its_interpreter_and_is_what_gets_scanned() {
    let mut joiner = joiner();
    joiner.tell(exec(20, Some("/usr/bin/dash")), at(0));
    let batch = vec![run(20, "/tmp/a.sh"), run(20, "/usr/bin/dash"), run(20, "/lib/ld-linux.so.2")];
    assert_eq!(show(joiner.see(batch, read(true, 0))), ["run /usr/bin/dash scan /tmp/a.sh"]);
}

/// `#!/usr/bin/env python3`: two execs of one process. The kernel merges the loader's second opening.
#[test]
fn two_execs_in_one_turn_each_get_their_own_image() {
    for merged in [false, true] {
        let mut joiner = joiner();
        joiner.tell(exec(20, Some("/usr/bin/python3")), at(0));
        joiner.tell(exec(20, Some("/usr/bin/python3")), at(0));
        let mut batch = vec![
            run(20, "/tmp/a.py"),
            run(20, "/usr/bin/env"),
            run(20, "/lib/ld-linux.so.2"),
            run(20, "/usr/bin/python3"),
        ];
        batch.extend((!merged).then(|| run(20, "/lib/ld-linux.so.2")));
        let expected = ["run /usr/bin/env scan /tmp/a.py", "run /usr/bin/python3 scan /usr/bin/python3"];
        assert_eq!(show(joiner.see(batch, read(true, 0))), expected, "merged: {merged}");
        let python = joiner.table.describe(20, Which::Newest).unwrap();
        assert_eq!(python.args, [b"/usr/bin/python3".to_vec()]);
    }
}

/// The second program's OPEN_EXEC was read, its exec event was not told yet: it is not of an exec that failed.
#[test]
fn an_open_exec_that_is_early_waits_for_its_own_exec() {
    let batch = || {
        let all = ["/usr/bin/env", "/lib/ld-linux.so.2", "/bin/dd", "/lib/ld-linux.so.2"];
        all.map(|path| run(20, path)).into_iter().collect::<Vec<_>>()
    };
    let expected =
        ["run /usr/bin/env scan /usr/bin/env", "run /bin/dd scan /bin/dd", "write /tmp/x by /bin/dd"];
    // Told a turn later.
    let mut soon = joiner();
    soon.tell(exec(20, None), at(0));
    assert!(soon.see(batch(), read(true, 0)).is_empty());
    soon.tell(exec(20, None), at(1));
    assert_eq!(show(soon.see(vec![wrote(20, "/tmp/x")], read(true, 1))), expected);
    // Told much later, because the disk is slow.
    let mut late = joiner();
    late.tell(exec(20, Some("/usr/bin/env")), at(0));
    let mut outcomes = show(late.see(batch(), read(true, 0)));
    outcomes.extend(show(late.see(vec![], read(true, 1))));
    outcomes.extend(show(late.see(vec![], read(true, 2))));
    late.tell(exec(20, None), at(3));
    outcomes.extend(show(late.see(vec![wrote(20, "/tmp/x")], read(true, 3))));
    assert_eq!(outcomes, expected);
}

#[test]
fn a_program_from_memory_before_one_from_a_file_takes_no_ones_place() {
    let mut joiner = joiner();
    joiner.tell(exec(20, Some("/memfd:x")), at(0));
    joiner.tell(exec(20, Some("/bin/cat")), at(0));
    let mut outcomes =
        show(joiner.see(vec![run(20, "/bin/cat"), run(20, "/lib/ld-linux.so.2")], read(true, 0)));
    outcomes.extend(show(joiner.see(vec![], read(true, 1))));
    assert_eq!(outcomes, ["run /memfd:x scan /memfd:x", "run /bin/cat scan /bin/cat"]);
}

#[test]
fn arguments_of_a_later_image_are_not_shown_with_an_earlier_one() {
    let mut joiner = joiner();
    joiner.tell(exec(20, Some("/usr/bin/python3")), at(0));
    let outcomes = joiner.see(vec![run(20, "/usr/bin/env"), run(20, "/lib/ld-linux.so.2")], read(true, 0));
    let [Outcome::Ran { process, .. }] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!((text(&process.executable), process.args.len()), ("/usr/bin/env".into(), 0));
}

#[test]
fn what_was_written_before_an_exec_is_the_old_images() {
    let mut joiner = joiner();
    joiner.tell(exec(20, None), at(0));
    let batch =
        vec![wrote(20, "/tmp/x"), run(20, "/bin/cat"), run(20, "/lib/ld-linux.so.2"), wrote(20, "/tmp/y")];
    let expected = ["write /tmp/x by /bin/sh", "run /bin/cat scan /bin/cat", "write /tmp/y by /bin/cat"];
    assert_eq!(show(joiner.see(batch, read(true, 0))), expected);
}

#[test]
fn an_exec_from_memory_never_shows_its_parents_image() {
    let mut joiner = joiner();
    joiner.tell(exec(20, None), at(0));
    assert_eq!(show(joiner.see(vec![wrote(20, "/tmp/x")], read(true, 0))), Vec::<String>::new());
    assert!(joiner.is_waiting());
    let expected = ["run  scan nothing", "write /tmp/x by "];
    assert_eq!(show(joiner.see(vec![], read(true, 1))), expected);
}

#[test]
fn an_exec_from_memory_is_taken_from_proc() {
    let mut joiner = joiner();
    joiner.tell(exec(20, Some("/memfd:x")), at(0));
    assert_eq!(show(joiner.see(vec![], read(true, 0))), Vec::<String>::new());
    assert_eq!(show(joiner.see(vec![], read(true, 1))), ["run /memfd:x scan /memfd:x"]);
    assert_eq!(joiner.table.describe(20, Which::Newest).unwrap().source, Source::Proc as i32);
}

/// An execve of something harmless that fails must not lend its name to what ran from memory after it.
#[test]
fn a_failed_exec_lends_its_name_to_nobody() {
    let mut joiner = joiner();
    assert_eq!(show(joiner.see(vec![run(20, "/usr/bin/foreign")], read(true, 0))), Vec::<String>::new());
    joiner.tell(exec(20, Some("/memfd:x")), at(1));
    joiner.see(vec![], read(true, 1));
    joiner.see(vec![], read(true, 2));
    assert_eq!(text(&joiner.table.executable(20)), "/memfd:x");

    joiner.tell(Told::Fork { parent: 10, child: 30, start_ns: Some(3_000_000_000) }, at(3));
    joiner.see(vec![run(30, "/usr/bin/foreign")], read(true, 3));
    joiner.tell(exec(30, None), at(4));
    let batch = vec![run(30, "/bin/cat"), run(30, "/lib/ld-linux.so.2")];
    let mut outcomes = show(joiner.see(batch, read(true, 4)));
    outcomes.extend(show(joiner.see(vec![], read(true, 5))));
    assert_eq!(outcomes, ["run /bin/cat scan /bin/cat"]);
}

#[test]
fn a_parent_that_has_just_run_something_is_named() {
    let mut joiner = joiner();
    joiner.tell(exec(20, None), at(0));
    joiner.tell(Told::Fork { parent: 20, child: 30, start_ns: Some(3_000_000_000) }, at(0));
    joiner.tell(exec(30, None), at(0));
    let mut batch: Vec<Seen> = [(20, "/bin/sudo"), (20, "/lib/ld-linux.so.2"), (30, "/bin/dd")]
        .map(|(pid, path)| run(pid, path))
        .into();
    batch.push(wrote(30, "/tmp/x"));
    for outcome in joiner.see(batch, read(true, 0)) {
        let (Outcome::Written { process: Some(process), .. } | Outcome::Ran { process, .. }) = outcome else {
            panic!("{outcome:?}")
        };
        let expected = if process.pid == 20 { "/bin/sh" } else { "/bin/sudo" };
        assert_eq!(text(&process.parent.unwrap().executable), expected);
    }
}

#[test]
fn an_open_exec_may_come_a_turn_before_or_after_its_exec() {
    let mut before = joiner();
    assert!(before.see(vec![run(20, "/bin/cat"), run(20, "/lib/ld-linux.so.2")], read(true, 0)).is_empty());
    before.tell(exec(20, None), at(1));
    assert_eq!(show(before.see(vec![], read(true, 1))), ["run /bin/cat scan /bin/cat"]);

    let mut after = joiner();
    after.tell(exec(20, None), at(0));
    assert!(after.see(vec![wrote(20, "/tmp/x")], read(true, 0)).is_empty());
    let batch = vec![run(20, "/bin/cat"), run(20, "/lib/ld-linux.so.2"), wrote(20, "/tmp/y")];
    let expected = ["write /tmp/x by /bin/sh", "run /bin/cat scan /bin/cat", "write /tmp/y by /bin/cat"];
    assert_eq!(show(after.see(batch, read(true, 1))), expected);
}

#[test]
fn nothing_waits_for_ever_while_files_keep_coming() {
    let mut joiner = joiner();
    joiner.tell(exec(20, None), at(0));
    joiner.see(vec![wrote(20, "/tmp/x")], read(false, 0));
    let turns = (0..2 * WAIT_TURNS_MAX).take_while(|_| joiner.see(vec![], read(false, 1)).is_empty()).count();
    assert!(u64::try_from(turns).unwrap() <= WAIT_TURNS_MAX, "{turns} turns");
    joiner.see(vec![], read(false, 1));
    joiner.see(vec![], read(false, 1));
    assert!(!joiner.is_waiting());
}

#[test]
fn what_waits_is_bounded_and_ages() {
    let mut joiner = joiner();
    for pid in 1000..1000 + 2 * u32::try_from(HELD_MAX).unwrap() {
        joiner.see(vec![run(pid, "/bin/x")], read(true, 0));
    }
    assert_eq!((joiner.held_count, joiner.held.len()), (HELD_MAX, HELD_MAX));
    joiner.see(vec![], read(true, 6000));
    assert_eq!((joiner.held_count, joiner.held.len()), (0, 0));
    joiner.tell(exec(20, None), at(6000));
    let many = (0..2 * DEFERRED_MAX).map(|_| wrote(20, "/tmp/x")).collect();
    joiner.see(many, read(false, 6000));
    assert!(joiner.deferred.len() <= 2 * DEFERRED_MAX);
}

#[test]
fn an_end_comes_after_its_run_and_only_then() {
    let mut joiner = joiner();
    joiner.tell(exec(20, None), at(0));
    joiner.tell(Told::Exit { pid: 20, status: 9 }, at(0));
    joiner.tell(Told::Fork { parent: 10, child: 30, start_ns: Some(3_000_000_000) }, at(0));
    joiner.tell(Told::Exit { pid: 30, status: 0 }, at(0));
    assert!(joiner.see(vec![], read(true, 0)).is_empty());
    assert_eq!(show(joiner.see(vec![], read(true, 1))), ["run  scan nothing", "end "]);
    assert!(joiner.see(vec![], read(true, 2)).is_empty());
}

#[test]
fn without_the_connector_a_group_is_a_run() {
    let mut joiner = joiner();
    let batch =
        vec![run(20, "/tmp/a.sh"), run(20, "/bin/sh"), run(20, "/lib/ld-linux.so.2"), wrote(20, "/tmp/y")];
    let outcomes = show(joiner.see_alone(batch));
    assert_eq!(outcomes, ["write /tmp/y by /bin/sh", "run /bin/sh scan /tmp/a.sh"]);
    assert!(!joiner.table.knows(20) && joiner.held_count == 0);
}
