//! Tells systemd how the collector is: sd_notify(3), one datagram to the socket that it names. Nobody waits for room in
//! that, as the crates for this do: a service manager that has stopped must not stop the collector.
//!
//! The sign that it waits for is given when the store's writer has answered a question, and the runtime, on which agents are
//! served, has carried it there and back: a timer alone gives none. A disk that is full answers too.

use crate::store::Handle;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;
use vidette_protocol::id::AgentId;

/// Signs in the time that systemd waits for one.
const SIGNS_A_WATCHDOG: u32 = 4;

/// Where to tell. Clones share the socket.
#[derive(Debug, Clone)]
pub struct Service(Option<Arc<(OwnedFd, SocketAddrUnix)>>);

impl Service {
    /// The one that started this process, from `$NOTIFY_SOCKET`; else nobody, who may be told all the same.
    #[must_use]
    pub fn of_this_process() -> Self {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Self(None) };
        match connect(name.as_bytes()) {
            Ok(parts) => Self(Some(Arc::new(parts))),
            Err(error) => {
                tracing::warn!(%error, "could not reach whoever started the collector: it is not told how it is");
                Self(None)
            }
        }
    }

    /// `READY=1`, `STOPPING=1` and the like, one a line.
    pub fn tell(&self, lines: &str) {
        let Some(parts) = &self.0 else { return };
        let (socket, address) = &**parts;
        if let Err(error) = rustix::net::sendto(socket, lines.as_bytes(), SendFlags::NOSIGNAL, address) {
            tracing::debug!(%error, "could not tell the service manager");
        }
    }

    /// Gives the sign for as long as the store answers; `asker` is the collector's own id. Never ends.
    pub async fn beat(self, store: Handle, asker: AgentId) {
        let Some(patience) = watchdog() else { return std::future::pending().await };
        loop {
            // What it answers is of no interest, nor whether the disk is well: agents keep what is not stored.
            let _ = store.durable(asker, 0).await;
            self.tell("WATCHDOG=1");
            tokio::time::sleep(patience / SIGNS_A_WATCHDOG).await;
        }
    }
}

fn connect(name: &[u8]) -> rustix::io::Result<(OwnedFd, SocketAddrUnix)> {
    let address = match name {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok((rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?, address))
}

/// How long systemd waits (sd_watchdog_enabled(3)); none when it does not.
fn watchdog() -> Option<Duration> {
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
        let service = Service(Some(Arc::new(connect(path.as_os_str().as_bytes()).unwrap())));
        service.tell("READY=1");
        let mut heard = [0; 64];
        let length = socket.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"READY=1");
        drop(socket);
        service.tell("WATCHDOG=1");
        Service(None).tell("READY=1");
        assert!(connect(b"@vidette nobody listens").is_ok() && connect(&[b'x'; 300]).is_err());
    }
}
