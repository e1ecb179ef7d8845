//! One message, and at most one descriptor, over a socket that keeps messages apart (SOCK_SEQPACKET, unix(7)).
//!
//! Used by both halves. What is received goes to `messages` to be decoded.

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// What arrived.
#[derive(Debug)]
pub struct Received {
    /// How many bytes of the buffer it fills.
    pub bytes: usize,
    /// What came with it.
    pub descriptor: Option<OwnedFd>,
}

/// Sends one message; waits while the other side's queue is full.
///
/// # Errors
/// The system's: the other side is gone, or the message is longer than the socket takes.
pub fn send(socket: BorrowedFd<'_>, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
    send_with(socket, message, descriptor, SendFlags::NOSIGNAL)
}

/// Sends one message, or fails at once when the other side's queue is full.
///
/// # Errors
/// As [`send`], and `WouldBlock`.
pub fn send_at_once(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<()> {
    send_with(socket, message, descriptor, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> Result<()> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Error::from(ErrorKind::InvalidInput));
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut control, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits for one message; `None` when the other side has closed.
///
/// # Errors
/// `InvalidData` for a message that does not fit the buffer, and the system's.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) => received,
            Err(Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut descriptor = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                // The iterator closes what is not taken.
                descriptor = descriptors.last();
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(Error::from(ErrorKind::InvalidData));
        }
        // An empty packet can't be told from the end, and nobody sends one.
        return Ok((received.bytes > 0).then_some(Received { bytes: received.bytes, descriptor }));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::{Read as _, Seek as _, Write as _};
    use std::os::fd::AsFd as _;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn a_message_brings_its_file() {
        let (left, right) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"content").unwrap();
        file.rewind().unwrap();
        send(left.as_fd(), b"first", Some(file.as_fd())).unwrap();
        send(left.as_fd(), b"second", None).unwrap();
        let mut buffer = [0; 16];
        let first = receive(right.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..first.bytes], b"first");
        let mut text = String::new();
        std::fs::File::from(first.descriptor.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        let second = receive(right.as_fd(), &mut buffer).unwrap().unwrap();
        assert!(second.descriptor.is_none());
        drop(left);
        assert!(receive(right.as_fd(), &mut buffer).unwrap().is_none());
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error_and_not_cut() {
        let (left, right) = pair();
        send(left.as_fd(), &[1; 17], None).unwrap();
        assert_eq!(receive(right.as_fd(), &mut [0; 16]).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
