//! The worker killed, stopped, replaced on disk, without memory or descriptors.

use super::rig::{self, MARKER, MARKER_RULE, Said, file, ready, scan, settings, signal, submit, until};
use rustix::process::{Resource, Rlimit, Signal};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vidette_agent::worker::pool::{Pool, Settings};
use vidette_agent::worker::process::Launcher;
use vidette_agent::worker::{RuleSet, SIZE_BYTES_MAX};
use vidette_protocol::wire::Verdict;

fn marker() -> Settings {
    settings(RuleSet::new(vec![rig::source("marker.yar", MARKER_RULE)]))
}

fn matches(pool: &mut Pool, said: &mut Said, id: u64) {
    scan(pool, said, id, file(MARKER));
    assert_eq!(said.scan(id).verdict, Verdict::Matched);
}

#[test]
fn signals_cost_no_verdict_at_all() {
    let (mut pool, mut said) = ready(marker());
    for (id, deadly) in
        [Signal::SEGV, Signal::KILL, Signal::STOP, Signal::BUS, Signal::ILL].into_iter().enumerate()
    {
        let outputs = pool.prepare(Instant::now());
        said.take(outputs);
        until(&mut pool, &mut said, |said, pool| pool.pid().is_some() && said.loaded.len() > id);
        let pid = pool.pid().unwrap();
        // Stopped first, so that it has the file when it dies.
        signal(pid, Signal::STOP);
        submit(&mut pool, &mut said, id as u64, file(MARKER));
        signal(pid, deadly);
        if deadly != Signal::STOP {
            signal(pid, Signal::CONT);
        }
        let alive = Path::new("/proc").join(pid.to_string());
        until(&mut pool, &mut said, |said, pool| {
            // The first of some is caught, to tell an exhausted stack, and the second kills.
            if deadly != Signal::STOP && pool.pid() == Some(pid) && alive.exists() {
                signal(pid, deadly);
            }
            said.done.contains_key(&(id as u64)) && said.died.len() > id
        });
        assert_eq!(said.scan(id as u64).verdict, Verdict::Matched, "{deadly:?}: {said:?}");
        assert_eq!(said.died.len(), id + 1, "{said:?}");
    }
    assert!(pool.poison().is_empty());
}

#[test]
fn a_compiling_or_loading_worker_that_is_stopped_is_replaced_and_no_rules_are_blamed() {
    // Many, so that the compiler is stopped before it is done.
    let many: String = (0..5_000)
        .map(|n| format!("rule r{n} {{ strings: $a = \"{n:08x}{:08x}\" condition: $a }}\n", n * 7919))
        .collect();
    let mut pool = Pool::new(settings(rig::with_rules("many.yar", &many)));
    let mut said = Said::default();
    said.take(pool.prepare(Instant::now()));
    rig::compilers().into_iter().for_each(|pid| signal(pid, Signal::STOP));
    let mut stopped = false;
    until(&mut pool, &mut said, |said, pool| {
        if !stopped && let Some(pid) = pool.pid() {
            stopped = true;
            signal(pid, Signal::STOP);
        }
        !said.loaded.is_empty()
    });
    assert!(said.refused.is_empty() && said.loaded[0].problems.is_empty(), "{said:?}");
    assert!(stopped && said.died.iter().any(|died| died.contains("compiler was stopped")), "{said:?}");
    matches(&mut pool, &mut said, 1);
}

#[test]
fn the_worker_s_program_may_be_replaced_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (program, other) = (folder.path().join("agent"), folder.path().join("other"));
    std::fs::copy(rig::AGENT, &program).unwrap();
    std::fs::copy("/bin/false", &other).unwrap();
    let launcher = Launcher::of(&program).unwrap();
    let (mut pool, mut said) = ready(Settings { launcher, ..marker() });
    matches(&mut pool, &mut said, 1);
    std::fs::rename(&other, &program).unwrap();
    signal(pool.pid().unwrap(), Signal::KILL);
    until(&mut pool, &mut said, |said, _| said.died.len() == 1);
    matches(&mut pool, &mut said, 2);
    std::fs::remove_file(&program).unwrap();
    signal(pool.pid().unwrap(), Signal::KILL);
    until(&mut pool, &mut said, |said, _| said.died.len() == 2);
    matches(&mut pool, &mut said, 3);
}

#[test]
fn a_worker_without_memory_says_so_of_the_file_and_lives() {
    if !rig::with_little_memory("world::a_worker_without_memory_says_so_of_the_file_and_lives") {
        return;
    }
    let (mut pool, mut said) = ready(Settings { size_max_bytes: SIZE_BYTES_MAX, ..marker() });
    matches(&mut pool, &mut said, 1);
    let pid = pool.pid().unwrap();
    let large = tempfile::tempfile().unwrap();
    large.set_len(rig::LITTLE_BYTES + (1 << 20)).unwrap();
    scan(&mut pool, &mut said, 2, large);
    assert!(said.scan(2).verdict == Verdict::Failed && said.scan(2).detail.contains("memory"), "{said:?}");
    matches(&mut pool, &mut said, 3);
    assert!(said.died.is_empty() && pool.pid() == Some(pid), "{said:?}");
}

/// In a process of its own: the limit is the process's.
#[test]
fn an_agent_that_may_open_no_more_keeps_its_rules() {
    const INSIDE: &str = "VIDETTE_TEST_WITHOUT_DESCRIPTORS";
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "--nocapture", "world::an_agent_that_may_open_no_more_keeps_its_rules"]);
        let output = again.env(INSIDE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{said}{output:?}");
        return;
    }
    let (mut pool, mut said) = ready(marker());
    pool.fall_back_to(RuleSet::new(vec![rig::source("other.yar", "rule other { condition: true }")]));
    let version = pool.rules_version().to_owned();
    let one = file(b"one");
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = |most| {
        let limit =
            Rlimit { current: Some(most), maximum: rustix::process::getrlimit(Resource::Nofile).maximum };
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    };
    limit(open - 2);
    signal(pool.pid().unwrap(), Signal::KILL);
    submit(&mut pool, &mut said, 1, one);
    until(&mut pool, &mut said, |said, _| !said.unavailable.is_empty());
    assert!(said.refused.is_empty(), "the rules are not to blame: {said:?}");
    limit(1024);
    said.take(pool.tick(Instant::now() + vidette_agent::worker::pool::RETRY_TIME));
    matches(&mut pool, &mut said, 2);
    assert_eq!(pool.rules_version(), version, "the same rules, not those to fall back to");
}

#[test]
fn a_scan_with_few_descriptors_ends_and_is_not_clean_without_having_looked() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..200 {
        std::fs::write(folder.path().join(number.to_string()), if number == 150 { MARKER } else { b"clean" })
            .unwrap();
    }
    let rules = folder.path().join("marker.yar");
    std::fs::write(&rules, MARKER_RULE.replace("vidette-marker-string", "vidette-marker-strin\\x67"))
        .unwrap();
    for most in [8u32, 12, 16, 24, 32, 64] {
        let mut limited = Command::new("sh");
        limited
            .arg0("sh")
            .arg("-c")
            .arg(format!("ulimit -n {most} && exec \"$@\""))
            .arg("sh")
            .arg(rig::AGENT);
        limited
            .args(["scan", "--no-builtin-rules", "--threads", "2", "--rules"])
            .arg(&rules)
            .arg(folder.path());
        let output = limited.output().unwrap();
        let (out, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // Found, or not everything was looked at; never clean.
        let found = output.status.code() == Some(1) && out.contains("marker");
        assert!(found || output.status.code() == Some(2), "{most}: {output:?} {out} {said}");
    }
}

#[test]
fn a_program_that_ends_at_once_is_no_scanner_and_is_not_started_for_ever() {
    let mut pool =
        Pool::new(Settings { launcher: Launcher::of(Path::new("/bin/false")).unwrap(), ..marker() });
    let mut said = Said::default();
    for id in 0..5 {
        submit(&mut pool, &mut said, id, file(MARKER));
    }
    until(&mut pool, &mut said, |said, _| said.done.len() == 5);
    assert_eq!((said.unavailable.len(), said.died.len() < 10), (1, true), "{said:?}");
    assert!(pool.wake_at().unwrap() > Instant::now() + Duration::from_secs(5), "not at once again");
}

/// Rules change while a worker still loads those before: nobody has a file to scan, and the new ones are told all the same.
#[test]
fn rules_that_come_while_others_are_loaded_are_loaded_though_no_file_comes() {
    let old = RuleSet::new(vec![rig::source("marker.yar", MARKER_RULE)]);
    let new = rig::with_rules("more.yar", "rule more { condition: filesize > 1MB }");
    let version = new.version().to_owned();
    let (mut pool, mut said) = (Pool::new(settings(old)), Said::default());
    said.take(pool.prepare(Instant::now()));
    until(&mut pool, &mut said, |_, pool| pool.pid().is_some());
    assert!(said.loaded.is_empty(), "it is still loading: {said:?}");
    said.take(pool.use_rules(new, Instant::now()));
    until(&mut pool, &mut said, |said, _| said.loaded.iter().any(|loaded| loaded.version == version));
}
