//! Processes that are there now and were not a second ago, or run another program than then.
//!
//! Assumes nothing of privileges: what `sysinfo` may not read stays empty. The first look is not reported.

use crate::host::{Host, Moment};
use crate::sensors::outlet::Outlet;
use crate::sensors::processes::{Facts, ProcessTable, Which};
use crate::sensors::{Observation, OpenFile};
use crate::stop::Stop;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};
use vidette_protocol::wire::Source;

/// How often the list is looked at. What lives shorter can be missed.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);
/// Processes that are compared. Beyond it new ones are not reported.
const PROCESSES_MAX: usize = 65_536;

/// The sensor.
pub(crate) struct Processes {
    outlet: Outlet,
    system: System,
    users: crate::sensors::users::Users,
    table: ProcessTable,
    running: HashMap<u32, Running>,
    own_pid: u32,
    own_executable: Vec<u8>,
}

struct Running {
    start: u64,
    executable: Vec<u8>,
    reported: bool,
}

impl Processes {
    /// Nothing is known yet.
    pub(crate) fn new(outlet: Outlet) -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        Self {
            outlet,
            system: System::new(),
            users: crate::sensors::users::Users::new("/etc/passwd".into()),
            table: ProcessTable::new(Host::read().boot_id),
            running: HashMap::new(),
            own_pid: std::process::id(),
            own_executable: own.as_os_str().as_bytes().to_vec(),
        }
    }

    /// Until `stop`.
    pub(crate) fn run(mut self, stop: &Stop) {
        self.look(false);
        while !stop.wait(INTERVAL) {
            self.look(true);
            self.outlet.flush(Moment::now());
        }
        self.outlet.flush_all(Moment::now());
    }

    fn look(&mut self, tell: bool) {
        let kind = ProcessRefreshKind::nothing()
            .with_exe(UpdateKind::Always)
            .with_cmd(UpdateKind::Always)
            .with_cwd(UpdateKind::OnlyIfNotSet)
            .with_user(UpdateKind::Always)
            .without_tasks();
        self.system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
        let now = Moment::now();
        self.tell_ended(now);
        let boot = System::boot_time();
        let mut new = Vec::new();
        for process in self.system.processes().values().filter(|process| is_alive(process)) {
            let facts = facts(process, boot);
            let start = process.start_time();
            let known = self.running.get(&facts.pid);
            let same =
                known.is_some_and(|known| known.start == start && known.executable == facts.executable);
            if !same {
                new.push((facts, start));
            }
        }
        for (facts, start) in new {
            self.note(&facts, start, tell, now);
        }
    }

    fn tell_ended(&mut self, at: Moment) {
        let system = &self.system;
        let is_there = |pid: u32, running: &Running| {
            let process = system.process(sysinfo::Pid::from_u32(pid));
            process.is_some_and(|process| is_alive(process) && process.start_time() == running.start)
        };
        let ended = self.running.extract_if(|pid, running| !is_there(*pid, running));
        let ended: Vec<(u32, bool)> = ended.map(|(pid, running)| (pid, running.reported)).collect();
        for (pid, reported) in ended {
            let process = self.table.describe(pid, Which::Newest);
            self.table.exit(pid, at.uptime_ns);
            if let Some(mut process) = process.filter(|_| reported) {
                process.user_name = self.user_name(process.uid);
                self.outlet.pass(Observation::ProcessEnded { process, status: None, at }, at);
            }
        }
    }

    fn note(&mut self, facts: &Facts, start: u64, tell: bool, at: Moment) {
        if !self.table.found(facts, Source::Proc) {
            self.table.exec(facts.pid, Some(facts));
            self.table.settle(facts.pid, &facts.executable, Source::Proc, true);
        }
        if self.running.len() >= PROCESSES_MAX && !self.running.contains_key(&facts.pid) {
            return;
        }
        let executable = facts.executable.clone();
        // Kernel threads run no program.
        let reported =
            tell && !(facts.executable.is_empty() && facts.args.is_empty()) && self.tell_run(facts, at);
        self.running.insert(facts.pid, Running { start, executable, reported });
    }

    fn tell_run(&mut self, facts: &Facts, at: Moment) -> bool {
        if facts.parent == self.own_pid && facts.executable == self.own_executable {
            self.outlet.own(); // a worker
            return false;
        }
        if !self.outlet.paths().cover(&facts.executable) {
            self.outlet.unwatched();
            return false;
        }
        let Some(mut process) = self.table.describe(facts.pid, Which::Newest) else { return false };
        process.user_name = self.user_name(process.uid);
        let image = open_image(facts.pid);
        self.outlet.pass(Observation::ProgramRun { process, image, found: true, at }, at)
    }

    fn user_name(&mut self, uid: Option<u32>) -> Vec<u8> {
        uid.map(|uid| self.users.name(uid, Instant::now())).unwrap_or_default()
    }
}

/// What ended and nobody waited for is still listed.
fn is_alive(process: &sysinfo::Process) -> bool {
    !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead)
}

fn facts(process: &sysinfo::Process, boot_s: u64) -> Facts {
    let pid = process.pid().as_u32();
    let path = |path: Option<&std::path::Path>| {
        path.map(|path| path.as_os_str().as_bytes().to_vec()).unwrap_or_default()
    };
    let second = process.start_time().saturating_sub(boot_s).saturating_mul(1_000_000_000);
    Facts {
        pid,
        start_ns: exact_start_ns(pid).or(Some(second)),
        parent: process.parent().map_or(0, sysinfo::Pid::as_u32),
        name: process.name().as_bytes().to_vec(),
        executable: path(process.exe()),
        args: process.cmd().iter().map(|argument| argument.as_bytes().to_vec()).collect(),
        working_directory: path(process.cwd()),
        uid: process.effective_user_id().map(|uid| **uid),
        gid: process.effective_group_id().map(|gid| *gid),
        session: process.session_id().map(sysinfo::Pid::as_u32),
        ..Facts::default()
    }
}

/// So that a process keeps its entity id when the sensors change.
#[cfg(target_os = "linux")]
fn exact_start_ns(pid: u32) -> Option<u64> {
    crate::sensors::linux::start_ns(pid)
}

#[cfg(not(target_os = "linux"))]
fn exact_start_ns(_: u32) -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn open_image(pid: u32) -> Option<OpenFile> {
    crate::sensors::linux::open_image(pid)
}

#[cfg(not(target_os = "linux"))]
fn open_image(_: u32) -> Option<OpenFile> {
    None
}
