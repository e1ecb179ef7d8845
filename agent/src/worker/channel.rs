//! One message, with a few descriptors, over a socket that keeps messages apart (SOCK_SEQPACKET, unix(7)).
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

/// Descriptors that one message brings. The kernel takes up to 253 (SCM_MAX_FD, unix(7)).
pub const DESCRIPTORS_MAX: usize = 16;

/// What arrived.
#[derive(Debug)]
pub struct Received {
    /// How many bytes of the buffer it fills.
    pub bytes: usize,
    /// What came with it, in the order it was sent.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends one message; waits while the other side's queue is full.
///
/// # Errors
/// The system's: the other side is gone, or the message is longer than the socket takes.
pub fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    send_with(socket, message, descriptors, SendFlags::NOSIGNAL)
}

/// Sends one message, or fails at once when the other side's queue is full.
///
/// # Errors
/// As [`send`], and `WouldBlock`.
pub fn send_at_once(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    send_with(socket, message, descriptors, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(
    socket: BorrowedFd<'_>,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = descriptors.len() <= DESCRIPTORS_MAX
        && (descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    if !fits {
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
/// `InvalidData` for a message that does not fit the buffer or whose descriptors did not all arrive, and the system's.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Received>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) => received,
            // CONNRESET comes once, when the other side ended without having read everything, and before what it had
            // sent: that, then the end, is what is read next.
            Err(Errno::INTR | Errno::CONNRESET) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(arrived) = message {
                descriptors.extend(arrived);
            }
        }
        // CTRUNC: more than there is room for, or this process may open no more.
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(Error::from(ErrorKind::InvalidData));
        }
        // An empty packet can't be told from the end, and nobody sends one.
        return Ok((received.bytes > 0).then_some(Received { bytes: received.bytes, descriptors }));
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
    fn last_words_arrive_though_the_other_side_left_something_unread() {
        let (left, right) = pair();
        send(left.as_fd(), b"never read", &[]).unwrap();
        send(right.as_fd(), b"last words", &[]).unwrap();
        drop(right);
        let mut buffer = [0; 64];
        let last = receive(left.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..last.bytes], b"last words");
        assert!(receive(left.as_fd(), &mut buffer).unwrap().is_none());
    }

    #[test]
    fn a_message_brings_its_files_in_order() {
        let (left, right) = pair();
        let file = |number: usize| {
            let mut file = tempfile::tempfile().unwrap();
            write!(file, "content {number}").unwrap();
            file.rewind().unwrap();
            file
        };
        let files: Vec<std::fs::File> = (0..DESCRIPTORS_MAX).map(file).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        send(left.as_fd(), b"first", &borrowed).unwrap();
        send(left.as_fd(), b"second", &[]).unwrap();
        let mut buffer = [0; 16];
        let first = receive(right.as_fd(), &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..first.bytes], first.descriptors.len()), (&b"first"[..], DESCRIPTORS_MAX));
        for (number, descriptor) in first.descriptors.into_iter().enumerate() {
            let mut text = String::new();
            std::fs::File::from(descriptor).read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("content {number}"));
        }
        let second = receive(right.as_fd(), &mut buffer).unwrap().unwrap();
        assert!(second.descriptors.is_empty());
        assert_eq!(
            send(left.as_fd(), b"x", &[left.as_fd(); DESCRIPTORS_MAX + 1]).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        drop(left);
        assert!(receive(right.as_fd(), &mut buffer).unwrap().is_none());
    }

    #[test]
    fn a_message_that_does_not_fit_is_an_error_and_not_cut() {
        let (left, right) = pair();
        send(left.as_fd(), &[1; 17], &[]).unwrap();
        assert_eq!(receive(right.as_fd(), &mut [0; 16]).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
