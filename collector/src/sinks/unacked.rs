//! How many bytes of a TCP connection the peer has not acknowledged, asked of the kernel without an ioctl.
//!
//! sock_diag(7): `INET_DIAG` for one connection answers with `idiag_wqueue`, which for an established TCP connection
//! is `write_seq - snd_una`, the same number as `SIOCOUTQ` of tcp(7). It needs no privilege for connections
//! of the own network namespace. Where the kernel has no sock_diag, the caller is told so and waits longer instead.

use anyhow::{Context, bail};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// linux/sock_diag.h: `SOCK_DIAG_BY_FAMILY`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// linux/netlink.h: `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;
/// `struct nlmsghdr`. Bytes.
const HEADER_BYTES: usize = 16;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`. Bytes.
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
/// Offset of `idiag_wqueue`: header, four bytes, `struct inet_diag_sockid`, expires, rqueue.
const WQUEUE_OFFSET: usize = HEADER_BYTES + 4 + 48 + 8;
/// TCP states a connection can have while bytes of it may be on the way (include/net/tcp_states.h):
/// ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING.
const STATES: [u8; 6] = [1, 4, 5, 8, 9, 11];

/// A netlink socket to ask with.
#[derive(Debug)]
pub struct Unacked {
    socket: OwnedFd,
}

impl Unacked {
    /// Opens it.
    ///
    /// # Errors
    /// When the kernel or a sandbox has no such sockets.
    pub fn open() -> anyhow::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            flags,
            Some(netlink::SOCK_DIAG),
        )
        .context("could not open a sock_diag socket")?;
        Ok(Self { socket })
    }

    /// Bytes written to the connection `local` - `peer` that the peer's TCP has not acknowledged.
    ///
    /// # Errors
    /// When the kernel knows no such connection, or can't be asked.
    pub fn ask(&self, local: SocketAddr, peer: SocketAddr) -> anyhow::Result<u64> {
        rustix::net::send(&self.socket, &request(local, peer), SendFlags::empty())
            .context("could not ask sock_diag")?;
        let mut answer = [0_u8; 1024];
        // The kernel answers within the send: the answer waits, or there is none.
        let (count, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())
            .context("sock_diag gave no answer")?;
        parse(answer.get(..count).unwrap_or_default())
    }
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2` (linux/inet_diag.h). Ports and addresses in network order.
fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut bytes = Vec::with_capacity(REQUEST_BYTES);
    bytes.extend(u32::try_from(REQUEST_BYTES).unwrap_or(0).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // sequence, port: one question at a time
    bytes.push(u8::try_from(family.as_raw()).unwrap_or(0));
    bytes.push(6); // IPPROTO_TCP
    bytes.extend([0; 2]); // no extensions, padding
    bytes.extend(u32::MAX.to_ne_bytes()); // any state
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(peer.port().to_be_bytes());
    bytes.extend(address(local.ip()));
    bytes.extend(address(peer.ip()));
    bytes.extend([0; 4]); // any interface
    bytes.extend([0xff; 8]); // INET_DIAG_NOCOOKIE
    bytes
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            for (to, from) in bytes.iter_mut().zip(ip.octets()) {
                *to = from;
            }
            bytes
        }
    }
}

fn parse(answer: &[u8]) -> anyhow::Result<u64> {
    let message_type = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let state = answer.get(HEADER_BYTES + 1);
    let queue = answer
        .get(WQUEUE_OFFSET..WQUEUE_OFFSET + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u32::from_ne_bytes);
    match (message_type, state, queue) {
        (Some(SOCK_DIAG_BY_FAMILY), Some(state), Some(queue)) if STATES.contains(state) => {
            Ok(u64::from(queue))
        }
        _ => bail!("sock_diag knows no such connection"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn bytes_count_until_the_peer_has_room_for_them() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            let unacked = Unacked::open().unwrap();
            let ask =
                |stream: &TcpStream| unacked.ask(stream.local_addr().unwrap(), stream.peer_addr().unwrap());
            stream.set_nonblocking(true).unwrap();
            let mut written = 0_u64;
            while let Ok(count) = stream.write(&[b'x'; 65536]) {
                written += count as u64;
            }
            let waiting = ask(&stream).unwrap();
            assert!(waiting > 0 && waiting <= written, "{waiting} of {written}: the peer does not read");
            let mut buffer = vec![0; 1 << 20];
            let mut read = 0;
            while read < written {
                read += peer.read(&mut buffer).unwrap() as u64;
            }
            let mut left = ask(&stream).unwrap();
            for _ in 0..500 {
                if left == 0 {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
                left = ask(&stream).unwrap();
            }
            assert_eq!(left, 0, "{address}");
        }
    }

    #[test]
    fn an_unknown_connection_is_an_error() {
        let unacked = Unacked::open().unwrap();
        assert!(unacked.ask("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()).is_err());
    }
}
