//! Signals that ask the process to end, with what the kernel says of whoever sent them.
//!
//! Assumes that `block` is called before any other thread exists: threads inherit the mask, and one alone waits. What it
//! says goes to `stop`.

use std::io;

/// What is waited for.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// One signal (sigaction(2), `siginfo_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    /// Its name.
    pub name: &'static str,
    /// Who sent it, where a process did: its pid in our namespace, 0 for one outside; and its real user.
    pub sender: Option<(u32, u32)>,
}

/// Keeps these signals for [`wait`]. Programs that are started later do not inherit this (`std::process::Command`).
///
/// # Errors
/// What pthread_sigmask(3) lists; none is expected.
pub fn block() -> io::Result<()> {
    let set = ending();
    // SAFETY: the set outlives the call; nothing is written back.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

/// Waits for the next one.
///
/// # Errors
/// What sigwaitinfo(2) lists, but for EINTR.
pub fn wait() -> io::Result<Signal> {
    let set = ending();
    loop {
        // SAFETY: every byte of the structure is an integer or a pointer, for which zero is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: both structures outlive the call.
        let number = unsafe { libc::sigwaitinfo(&raw const set, &raw mut info) };
        if number < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        return Ok(Signal { name: name(number), sender: sender(&info) });
    }
}

/// kill(2), sigqueue(3) and tgkill(2) say who; what the kernel sends itself, as for Ctrl-C, says nobody.
fn sender(info: &libc::siginfo_t) -> Option<(u32, u32)> {
    if !matches!(info.si_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL) {
        return None;
    }
    // SAFETY: with these codes the kernel has filled in both fields.
    let (pid, uid) = unsafe { (info.si_pid(), info.si_uid()) };
    Some((u32::try_from(pid).unwrap_or_default(), uid))
}

fn name(number: libc::c_int) -> &'static str {
    match number {
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        _ => "a signal", // none that is waited for
    }
}

fn ending() -> libc::sigset_t {
    // SAFETY: every byte of the set is an integer, for which zero is a value; it outlives the calls.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for number in ENDING {
            libc::sigaddset(&raw mut set, number);
        }
        set
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_says_who_sent_it() {
        block().unwrap();
        let (pid, thread) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get());
        // To this thread alone: the harness has others, in which the signal would end the process.
        // SAFETY: tgkill(2) takes numbers only.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, pid.cast_signed(), thread, libc::SIGHUP) };
        assert_eq!(sent, 0);
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(wait().unwrap(), Signal { name: "SIGHUP", sender: Some((pid, uid)) });
    }
}
