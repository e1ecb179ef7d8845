//! What a scanner that was taken over would try, tried for real from inside the sandbox, each by the raw system call.
//!
//! Used by `worker --probe`, which prints what each attempt got; `tests/worker.rs` expects a refusal of every one.

use std::io::Error;

/// One attempt: its name, and the error it got; `None` when it succeeded.
pub type Attempt = (&'static str, Option<i32>);

/// Tries them all. `other_process` is one that must not be reachable, the parent.
#[must_use]
pub fn all(other_process: i32) -> Vec<Attempt> {
    let mut attempts = files();
    attempts.extend(processes(other_process));
    attempts.extend(executable_memory());
    attempts
}

fn outcome(result: libc::c_long) -> Option<i32> {
    if result >= 0 { None } else { Some(Error::last_os_error().raw_os_error().unwrap_or(0)) }
}

fn files() -> Vec<Attempt> {
    let open = |path: &std::ffi::CStr, flags: i32| {
        // SAFETY: the path is a live C string; the kernel only reads it.
        outcome(unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0o600) })
    };
    let socket = |family: i32, kind: i32| {
        // SAFETY: socket takes integers only.
        outcome(unsafe { libc::syscall(libc::SYS_socket, family, kind, 0) })
    };
    vec![
        ("open for reading", open(c"/etc/passwd", libc::O_RDONLY)),
        ("open for writing", open(c"/tmp/vidette-probe", libc::O_WRONLY | libc::O_CREAT)),
        ("open own memory", open(c"/proc/self/mem", libc::O_RDWR)),
        ("internet socket", socket(libc::AF_INET, libc::SOCK_STREAM)),
        ("unix socket", socket(libc::AF_UNIX, libc::SOCK_STREAM)),
        ("netlink socket", socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    ]
}

fn processes(other: i32) -> Vec<Attempt> {
    let arguments = [c"true".as_ptr(), std::ptr::null()];
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: path and arguments are live, null-terminated C strings and lists of them; it returns only by failing.
    let exec = unsafe {
        libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), arguments.as_ptr(), environment.as_ptr())
    };
    let exec = outcome(exec);
    // SAFETY: signal 0 asks only whether a signal could be sent.
    let kill = outcome(unsafe { libc::syscall(libc::SYS_kill, other, 0) });
    // SAFETY: clone without CLONE_VM copies the process like fork; a child that is made after all ends at once.
    let fork = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if fork == 0 {
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(0) };
    }
    let fork = outcome(fork);
    // SAFETY: PTRACE_ATTACH takes no pointers.
    let trace = outcome(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, other, 0, 0) });
    // SAFETY: unshare takes an integer.
    let unshare = outcome(unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER) });
    vec![
        ("exec", exec),
        ("kill the parent", kill),
        ("fork", fork),
        ("trace the parent", trace),
        ("new user namespace", unshare),
    ]
}

fn executable_memory() -> Vec<Attempt> {
    const PAGE: usize = 4096;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let map = |protection: i32| {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory in use.
        unsafe { libc::syscall(libc::SYS_mmap, 0, PAGE, protection, anonymous, -1, 0) }
    };
    let executable = outcome(map(libc::PROT_READ | libc::PROT_EXEC));
    let all_at_once = outcome(map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC));
    let page = map(libc::PROT_READ | libc::PROT_WRITE);
    let later = if page > 0 {
        // SAFETY: the page was mapped above and is used by nobody.
        outcome(unsafe { libc::syscall(libc::SYS_mprotect, page, PAGE, libc::PROT_READ | libc::PROT_EXEC) })
    } else {
        // Without plain memory the attempt shows nothing: report it as a success, which the test refuses.
        None
    };
    vec![
        ("map executable memory", executable),
        ("map writable executable memory", all_at_once),
        ("make memory executable", later),
    ]
}
