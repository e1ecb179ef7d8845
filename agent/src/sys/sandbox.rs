//! Gives up every right that the scanner does not need, before it reads its first byte of input.
//!
//! Assumes a process that has one thread and was just executed with its socket as descriptor 0. What is left
//! afterwards: computing, memory, threads, reading descriptors that arrive over the socket, answering on it.
//! Sources: capabilities(7), landlock(7), seccomp(2), prctl(2), close_range(2).

use anyhow::{Context as _, Result, bail};
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, Compatible as _, Ruleset, RulesetAttr as _, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Compare, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// The user and group `nobody`, which own nothing.
pub const NOBODY: u32 = 65_534;
/// Private writable memory of the worker. Bytes.
pub const DATA_BYTES_MAX: u64 = 1 << 30;
/// Address space of the worker: above its memory, because thread arenas and guards reserve what they never touch. Bytes.
pub const ADDRESS_SPACE_BYTES_MAX: u64 = 8 << 30;
/// Open descriptors of the worker: its socket, the null device twice, and the files that it was handed.
pub const DESCRIPTORS_MAX: u64 = 1024;
/// What a compiling worker may write: its rules. Bytes.
pub const COMPILED_BYTES_MAX: u64 = 256 << 20;
/// Numbers of capabilities that are tried; the kernel says which is the last (41 are known in Linux 6.18).
const CAPABILITIES_MAX: libc::c_ulong = 64;
/// Descriptors that are closed one by one where the kernel can't do it at once.
const DESCRIPTORS_INHERITED_MAX: i32 = 65_536;

const _: () = assert!(DATA_BYTES_MAX < ADDRESS_SPACE_BYTES_MAX);

/// What a call that is not on the list does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// It fails with EPERM: libraries that try something optional go on.
    Deny,
    /// The process dies: tests find calls that the list lacks.
    Kill,
}

/// What the process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Reading files.
    Scan,
    /// Also writing to the one file that it is handed for compiled rules.
    Compile,
}

/// How much of the sandbox this kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `full`, `partial` or `none`: what the kernel has of Landlock.
    pub landlock: &'static str,
    /// The process was root and is `nobody` now.
    pub user_dropped: bool,
}

/// Enters the sandbox. There is no way back.
///
/// # Errors
/// Names the step that failed; the caller must end then, because it may be half inside.
pub fn enter(violation: Violation, duty: Duty) -> Result<Report> {
    close_all_but_standard().context("could not close inherited descriptors")?;
    ignore_stop_signals();
    let user_dropped = drop_user()?;
    drop_capabilities()?;
    rustix::thread::set_no_new_privs(true).context("could not set no_new_privs")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("could not forbid tracing")?;
    // After the change of user, which clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("could not tie to the parent")?;
    limit_resources(duty)?;
    let landlock = enter_landlock()?;
    enter_seccomp(violation, duty)?;
    Ok(Report { landlock, user_dropped })
}

fn close_all_but_standard() -> std::io::Result<()> {
    // SAFETY: close_range takes three integers. Descriptors from 3 up belong to nobody here: the caller has opened
    // nothing yet, and what was inherited by mistake is exactly what has to go.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ENOSYS) {
        return Err(error);
    }
    // Before Linux 5.9.
    for descriptor in 3..DESCRIPTORS_INHERITED_MAX {
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

/// Whoever stops a service signals all of its processes at once. The worker ends when the agent hangs up; ended before
/// that, it would look as if a file had killed it.
fn ignore_stop_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours; the numbers are valid, so that it can't fail.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The bounding set first, because that needs a capability; then groups, group, user.
fn drop_user() -> Result<bool> {
    if !rustix::process::geteuid().is_root() {
        return Ok(false);
    }
    drop_bounding_set().context("could not empty the capability bounding set")?;
    let (user, group) = (rustix::process::Uid::from_raw(NOBODY), rustix::process::Gid::from_raw(NOBODY));
    // These act on the calling thread, which is the only one.
    rustix::thread::set_thread_groups(&[]).context("could not drop supplementary groups")?;
    rustix::thread::set_thread_res_gid(group, group, group).context("could not become group nobody")?;
    rustix::thread::set_thread_res_uid(user, user, user).context("could not become user nobody")?;
    Ok(true)
}

fn drop_bounding_set() -> std::io::Result<()> {
    for capability in 0..CAPABILITIES_MAX {
        // SAFETY: prctl(PR_CAPBSET_DROP) takes integers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
            continue;
        }
        let error = std::io::Error::last_os_error();
        // EINVAL: this kernel has no capability of that number, nor any above it.
        return if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
            Ok(())
        } else {
            Err(error)
        };
    }
    Ok(())
}

fn drop_capabilities() -> Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set().context("could not clear ambient capabilities")?;
    rustix::thread::set_capabilities(None, none).context("could not drop capabilities")
}

/// No limit on processes: it counts every process of the user `nobody`, also those of others, and the system-call
/// filter lets only threads be made.
fn limit_resources(duty: Duty) -> Result<()> {
    let written = match duty {
        Duty::Scan => 0,
        Duty::Compile => COMPILED_BYTES_MAX,
    };
    for (resource, limit) in [
        (Resource::As, ADDRESS_SPACE_BYTES_MAX),
        (Resource::Data, DATA_BYTES_MAX),
        (Resource::Nofile, DESCRIPTORS_MAX),
        (Resource::Fsize, written),
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ] {
        // A limit that is lower already stays: it can't be raised without rights.
        let limit = rustix::process::getrlimit(resource).maximum.map_or(limit, |maximum| maximum.min(limit));
        rustix::process::setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
            .with_context(|| format!("could not limit {resource:?}"))?;
    }
    Ok(())
}

/// Handles everything that the newest known ABI can handle and allows nothing of it; an older kernel takes what it knows.
fn enter_landlock() -> Result<&'static str> {
    let status = Ruleset::default()
        .set_compatibility(landlock::CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V7))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V7)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V7)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .context("could not enter Landlock")?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => "full",
        RulesetStatus::PartiallyEnforced => "partial",
        RulesetStatus::NotEnforced => "none",
    })
}

fn enter_seccomp(violation: Violation, duty: Duty) -> Result<()> {
    // Three filters, since one has one answer for all that match: the strictest answer counts (seccomp(2)).
    // glibc makes threads by clone3, whose flags lie in memory where a filter can't see them; when that does not
    // exist it falls back to clone, whose flags are an argument.
    let no_clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
    install(no_clone3, SeccompAction::Allow, SeccompAction::Errno(errno(libc::ENOSYS)))?;
    // The standard library looks into /proc/self/cgroup for the number of processors it may use, and does without:
    // denied even where other violations kill.
    let no_open = BTreeMap::from([(libc::SYS_openat, vec![])]);
    install(no_open, SeccompAction::Allow, SeccompAction::Errno(errno(libc::EPERM)))?;
    let denied = match violation {
        Violation::Deny => SeccompAction::Errno(errno(libc::EPERM)),
        Violation::Kill => SeccompAction::KillProcess,
    };
    install(allowed_calls(duty)?, denied, SeccompAction::Allow)
}

fn errno(number: i32) -> u32 {
    number.unsigned_abs()
}

fn install(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<()> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => TargetArch::x86_64,
        "aarch64" => TargetArch::aarch64,
        "riscv64" => TargetArch::riscv64,
        other => bail!("there is no system-call filter for the processor type {other}"),
    };
    let filter = SeccompFilter::new(rules, otherwise, matching, arch)
        .context("could not make the system-call filter")?;
    let program: BpfProgram = filter.try_into().context("could not make the system-call filter")?;
    seccompiler::apply_filter(&program).context("could not install the system-call filter")
}

/// Calls that are allowed whatever their arguments.
const CALLS: &[libc::c_long] = &[
    // Files that were handed over, the socket.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    // Memory; mmap and mprotect are below.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads; clone is below, clone3 is answered by a filter of its own.
    libc::SYS_clone3,
    // As clone3: answered by a filter of its own.
    libc::SYS_openat,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    // Handlers of its own faults.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
];

fn allowed_calls(duty: Duty) -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|call| (*call, vec![])).collect();
    if duty == Duty::Compile {
        rules.insert(libc::SYS_write, vec![]);
    }
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let own_process = u64::from(std::process::id());
    rules.insert(libc::SYS_mmap, when(2, Width::Dword, Compare::MaskedEq(executable), 0)?);
    rules.insert(libc::SYS_mprotect, when(2, Width::Dword, Compare::MaskedEq(executable), 0)?);
    rules.insert(libc::SYS_clone, when(0, Width::Qword, Compare::MaskedEq(thread), thread)?);
    // abort(3) signals its own thread.
    rules.insert(libc::SYS_tgkill, when(0, Width::Dword, Compare::Eq, own_process)?);
    // The names of threads.
    rules.insert(
        libc::SYS_prctl,
        when(0, Width::Dword, Compare::Eq, u64::from(libc::PR_SET_NAME.unsigned_abs()))?,
    );
    // Closing an owned descriptor asks first whether it is open, in builds with checks.
    rules.insert(
        libc::SYS_fcntl,
        when(1, Width::Dword, Compare::Eq, u64::from(libc::F_GETFD.unsigned_abs()))?,
    );
    Ok(rules)
}

fn when(argument: u8, width: Width, compare: Compare, value: u64) -> Result<Vec<SeccompRule>> {
    let condition = SeccompCondition::new(argument, width, compare, value)
        .context("could not make a filter condition")?;
    Ok(vec![SeccompRule::new(vec![condition]).context("could not make a filter rule")?])
}
