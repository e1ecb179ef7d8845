//! Tells systemd how the service is: sd_notify(3), which is one datagram to the socket that it names.
//!
//! Assumes Linux, for sockets without a name in the file system. Nobody waits: not for an answer, and not for room in the
//! socket, as the crates for this do. A service manager that has stopped must not stop the agent.

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Where to tell.
#[derive(Debug)]
pub struct Service {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

impl Service {
    /// The one that started this process, from `$NOTIFY_SOCKET`; none when nobody wants to hear.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        Self::at(&std::env::var_os("NOTIFY_SOCKET")?)
            .inspect_err(|error| tracing::warn!(%error, "could not reach whoever started the agent: it is not told how it is"))
            .ok()
    }

    fn at(name: &OsStr) -> rustix::io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self { socket, address })
    }

    /// `READY=1`, `STATUS=…`, `WATCHDOG=1` and the like, one a line. What can't be told now is told the next time.
    pub fn tell(&self, lines: &str) {
        if let Err(error) =
            rustix::net::sendto(&self.socket, lines.as_bytes(), SendFlags::NOSIGNAL, &self.address)
        {
            tracing::debug!(%error, "could not tell the service manager");
        }
    }
}

/// How long systemd waits for a sign before it ends this process; none when it does not (sd_watchdog_enabled(3)).
#[must_use]
pub fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|usec| meant && *usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn what_is_told_arrives_and_nobody_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let service = Service::at(path.as_os_str()).unwrap();
        service.tell("READY=1\nSTATUS=well");
        let mut heard = [0; 64];
        let length = socket.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"READY=1\nSTATUS=well");
        drop(socket);
        service.tell("WATCHDOG=1");
        Service::at(OsStr::new("@vidette nobody listens")).unwrap().tell("READY=1");
        assert!(Service::at(OsStr::new(&"x".repeat(300))).is_err());
    }
}
