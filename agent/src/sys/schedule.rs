//! How urgent the calling thread is: real-time for the reader, hardly at all for a sweep.
//!
//! Assumes Linux: priorities belong to threads there (sched(7), ioprio_set(2)), and 0 means the caller.

use std::io;

/// The lowest of the real-time priorities: above everything ordinary, below everything that asked for more.
const REALTIME_PRIORITY: i32 = 1;
/// IOPRIO_WHO_PROCESS, linux/ioprio.h: here a thread.
const WHO_PROCESS: i32 = 1;
/// IOPRIO_CLASS_IDLE << IOPRIO_CLASS_SHIFT, linux/ioprio.h.
const CLASS_IDLE: i32 = 3 << 13;

/// SCHED_RR at the lowest real-time priority; what this thread starts is ordinary again.
///
/// # Errors
/// EPERM without CAP_SYS_NICE and without RLIMIT_RTPRIO.
pub fn realtime() -> io::Result<()> {
    set_policy(libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, REALTIME_PRIORITY)
}

/// SCHED_OTHER.
///
/// # Errors
/// What sched_setscheduler(2) lists; none is expected.
pub fn ordinary() -> io::Result<()> {
    set_policy(libc::SCHED_OTHER, 0)
}

/// Nice value of this thread, -20 to 19. Threads that it starts later have it too.
///
/// # Errors
/// EACCES for a lower value than before without CAP_SYS_NICE.
pub fn nice(value: i32) -> io::Result<()> {
    // SAFETY: no pointers; 0 is the calling thread.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, value) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Disk access only when nobody else wants the disk. Schedulers without classes ignore it.
///
/// # Errors
/// What ioprio_set(2) lists; none is expected.
pub fn idle_io() -> io::Result<()> {
    // SAFETY: no pointers; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_policy(policy: i32, priority: i32) -> io::Result<()> {
    // SAFETY: every byte of the structure is an integer, for which zero is a value.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = priority;
    // SAFETY: the structure outlives the call; 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn nice_of_this_thread() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        stat.rsplit(')').next().unwrap().split_ascii_whitespace().nth(16).unwrap().to_owned()
    }

    #[test]
    fn a_thread_changes_its_own_urgency_alone() {
        let before = nice_of_this_thread();
        let thread = std::thread::spawn(|| {
            idle_io().unwrap();
            ordinary().unwrap();
            nice(17).unwrap();
            nice_of_this_thread()
        });
        assert_eq!((thread.join().unwrap(), nice_of_this_thread()), ("17".to_owned(), before));
    }
}
