//! The process connector: PROC_EVENTS over NETLINK_CONNECTOR (linux/cn_proc.h, linux/connector.h).
//!
//! Assumes Linux, the first pid and user namespace and CAP_NET_ADMIN; elsewhere the kernel does not
//! acknowledge, which is an error here. Messages go to the reader thread of the Linux sensors.

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The socket's receive buffer. Bytes. Holds about 13,000 execs; the default holds about 90.
pub const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// How long the kernel may take to acknowledge that we listen.
pub const ACKNOWLEDGE_MAX: Duration = Duration::from_secs(2);

/// CN_IDX_PROC and CN_VAL_PROC, linux/connector.h.
const INDEX_PROC: u32 = 1;
const VALUE_PROC: u32 = 1;
/// PROC_CN_MCAST_LISTEN, linux/cn_proc.h.
const LISTEN: u32 = 1;
const NLMSG_DONE: u16 = 3;
const NLMSG_BYTES: usize = 16;
const CN_MSG_BYTES: usize = 20;
/// Larger than any message of this group.
const MESSAGE_BYTES_MAX: usize = 512;

/// The listening socket.
#[derive(Debug)]
pub struct Connector {
    socket: OwnedFd,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Counts per CPU, without holes unless messages were lost.
    pub seq: u32,
    /// Which CPU counted.
    pub cpu: u32,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// What happened.
    pub what: What,
}

/// What a process did. Ids are thread group ids of the first pid namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The kernel's answer to our listening: 0 or an errno.
    Acknowledged(u32),
    /// A process, not a thread, was made.
    Fork {
        /// `real_parent` of the new process.
        parent: u32,
        /// The new process.
        child: u32,
    },
    /// execve(2) succeeded.
    Exec {
        /// The process.
        pid: u32,
    },
    /// Effective user id.
    User {
        /// The process.
        pid: u32,
        /// Its new id.
        uid: u32,
    },
    /// Effective group id.
    Group {
        /// The process.
        pid: u32,
        /// Its new id.
        gid: u32,
    },
    /// setsid(2) succeeded: it leads a session that is called like itself.
    Session {
        /// The process.
        pid: u32,
    },
    /// The leader of a thread group ended.
    Exit {
        /// The process.
        pid: u32,
        /// wait(2) status.
        status: u32,
    },
    /// A thread came or went, a trace, a name: not used.
    Other,
}

impl Connector {
    /// Opens, binds and asks for events. Waits until the kernel says yes.
    ///
    /// # Errors
    /// EPERM and what else socket(2) and bind(2) list; `TimedOut` when nothing answers, as in a container.
    pub fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(netlink::CONNECTOR),
        )?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES)?;
        }
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, INDEX_PROC))?;
        rustix::net::send(&socket, &listen_message(), SendFlags::empty())?;
        let connector = Self { socket };
        connector.wait_for_acknowledgement()?;
        Ok(connector)
    }

    fn wait_for_acknowledgement(&self) -> io::Result<()> {
        let end = Instant::now() + ACKNOWLEDGE_MAX;
        while Instant::now() < end {
            match self.receive() {
                Ok(Some(Message { what: What::Acknowledged(0), .. })) => return Ok(()),
                Ok(Some(Message { what: What::Acknowledged(errno), .. })) => {
                    return Err(io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(libc::EPERM)));
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    let mut ready = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::IN)];
                    let wait = rustix::time::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
                    rustix::event::poll(&mut ready, Some(&wait))?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not acknowledge"))
    }

    /// The next message; none when nothing waits.
    ///
    /// # Errors
    /// ENOBUFS after messages were dropped, once; what else recvfrom(2) lists.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        let mut buffer = [0u8; MESSAGE_BYTES_MAX];
        loop {
            match rustix::net::recvfrom(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _, from)) => {
                    // Another process may send to this group: only pid 0 is the kernel.
                    let kernel = from
                        .and_then(|from| SocketAddrNetlink::try_from(from).ok())
                        .is_some_and(|from| from.pid() == 0);
                    if let Some(message) = parse(buffer.get(..length).unwrap_or_default()).filter(|_| kernel)
                    {
                        return Ok(Some(message));
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Connector {
    /// Closes the socket, unless somebody closed it underneath: its number may be another descriptor's by now.
    pub fn discard(self) {
        let protocol = sockopt::socket_protocol(&self.socket);
        if !protocol.is_ok_and(|protocol| protocol == Some(netlink::CONNECTOR)) {
            let _ = self.socket.into_raw_fd();
        }
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// nlmsghdr, cn_msg, and the operation.
fn listen_message() -> Vec<u8> {
    let length = NLMSG_BYTES + CN_MSG_BYTES + 4;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).unwrap_or(0).to_ne_bytes());
    bytes.extend(NLMSG_DONE.to_ne_bytes());
    bytes.extend([0; 10]); // flags, sequence, port
    bytes.extend(INDEX_PROC.to_ne_bytes());
    bytes.extend(VALUE_PROC.to_ne_bytes());
    bytes.extend([0; 8]); // sequence, acknowledgement
    bytes.extend(4u16.to_ne_bytes());
    bytes.extend([0; 2]); // flags
    bytes.extend(LISTEN.to_ne_bytes());
    bytes
}

/// `struct proc_event` behind its two headers; none for a message of another kind.
fn parse(bytes: &[u8]) -> Option<Message> {
    let message = bytes.get(NLMSG_BYTES..)?;
    if number(message, 0)? != INDEX_PROC || number(message, 4)? != VALUE_PROC {
        return None;
    }
    let seq = number(message, 8)?;
    let event = message.get(CN_MSG_BYTES..)?;
    let (what, cpu) = (number(event, 0)?, number(event, 4)?);
    let monotonic_ns = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
    let data = event.get(16..)?;
    Some(Message { seq, cpu, monotonic_ns, what: parse_what(what, data)? })
}

fn parse_what(what: u32, data: &[u8]) -> Option<What> {
    Some(match what {
        0 => What::Acknowledged(number(data, 0)?),
        // parent pid, parent tgid, child pid, child tgid
        1 if number(data, 8)? == number(data, 12)? => {
            What::Fork { parent: number(data, 4)?, child: number(data, 12)? }
        }
        2 => What::Exec { pid: number(data, 4)? },
        // pid, tgid, real, effective
        4 => What::User { pid: number(data, 4)?, uid: number(data, 12)? },
        0x40 => What::Group { pid: number(data, 4)?, gid: number(data, 12)? },
        // pid, tgid, status
        // pid, tgid
        0x80 => What::Session { pid: number(data, 4)? },
        0x8000_0000 if number(data, 0)? == number(data, 4)? => {
            What::Exit { pid: number(data, 4)?, status: number(data, 8)? }
        }
        _ => What::Other, // a kernel may add kinds
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message(what: u32, data: [u32; 4]) -> Vec<u8> {
        let mut bytes = vec![0; NLMSG_BYTES];
        for part in [INDEX_PROC, VALUE_PROC, 77, 0, 40, what, 3] {
            bytes.extend(part.to_ne_bytes());
        }
        bytes.extend(5_000_000_000u64.to_ne_bytes());
        data.into_iter().for_each(|part| bytes.extend(part.to_ne_bytes()));
        bytes
    }

    #[test]
    fn a_thread_is_not_a_process() {
        assert_eq!(parse(&message(1, [1, 1, 51, 50])).unwrap().what, What::Other);
        assert_eq!(parse(&message(0x8000_0000, [51, 50, 0, 0])).unwrap().what, What::Other);
    }

    #[test]
    fn each_kind_is_read() {
        let all = [
            (1, [8, 9, 50, 50], What::Fork { parent: 9, child: 50 }),
            (2, [51, 50, 0, 0], What::Exec { pid: 50 }),
            (4, [50, 50, 1000, 0], What::User { pid: 50, uid: 0 }),
            (0x40, [50, 50, 1000, 5], What::Group { pid: 50, gid: 5 }),
            (0x80, [51, 50, 0, 0], What::Session { pid: 50 }),
            (0x8000_0000, [50, 50, 256, 17], What::Exit { pid: 50, status: 256 }),
        ];
        for (number, data, what) in all {
            let expected = Message { seq: 77, cpu: 3, monotonic_ns: 5_000_000_000, what };
            assert_eq!(parse(&message(number, data)), Some(expected));
        }
    }

    #[test]
    fn cut_and_foreign_messages_are_nothing() {
        let bytes = message(2, [51, 50, 0, 0]);
        for length in 0..NLMSG_BYTES + CN_MSG_BYTES + 16 {
            assert_eq!(parse(&bytes[..length]), None, "{length} bytes");
        }
        let mut foreign = bytes;
        foreign[NLMSG_BYTES] ^= 1;
        assert_eq!(parse(&foreign), None);
    }
}
