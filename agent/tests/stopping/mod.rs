//! Stops a process of a test and waits until it has stopped: kill(2) returns before, and on a busy host its threads may
//! scan dozens of files until then.

use std::fs;
use std::time::{Duration, Instant};

/// Far more than a signal takes to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// SIGSTOP, and each of its threads in state `T` (proc_pid_stat(5)).
pub(crate) fn stop(pid: rustix::process::Pid) {
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let end = Instant::now() + PATIENCE;
    while !has_stopped(pid) {
        assert!(Instant::now() < end, "{pid:?} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn has_stopped(pid: rustix::process::Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap().flatten();
    let mut stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.all(|stat| stat.rsplit(')').next().unwrap_or_default().starts_with(" T"))
}
