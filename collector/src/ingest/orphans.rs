//! Connections that the last run of this program left behind when it was killed: remembered in a file, told at the next
//! start that they are gone.
//!
//! A QUIC server can't speak first on a connection that it has lost, but for one word: a stateless reset (RFC 9000 section
//! 10.3), for which it needs its old key, which `identity` keeps, the agent's address and the id that the agent sends to.
//! Without it a silent agent learns of the restart only from its next keep-alive.
//!
//! Assumes that the file is ours alone. It is written without waiting for the disk: it has to survive this process, not the
//! machine. What is in it can be wrong in any way; that costs a datagram that nobody takes. Agents that are told connect
//! again, which is `mod`'s part.

use super::CONNECTIONS_MAX;
use anyhow::{Context, ensure};
use quinn::ConnectionId;
use quinn::udp::{Transmit, UdpSocketState};
use ring::hmac;
use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The file's name.
pub(super) const FILE: &str = "connections";
/// Places in the file: connections of this run, beside those of the last one that are not told yet.
const SLOTS_MAX: usize = 2 * CONNECTIONS_MAX;
/// One place: family, a zero, port, address, whether the own address is known, that address, id, zeros.
const SLOT_BYTES: usize = 48;
/// As quinn's `HashedConnectionIdGenerator` makes them.
const ID_BYTES: usize = 8;
/// Changes that wait to be written. With more, a connection is not remembered.
const WAITING_MAX: usize = 4096;
/// A reset: bits that look like any packet, then the token (RFC 9000 section 10.3).
const RESET_BYTES: usize = 43;
const TOKEN_BYTES: usize = 16;
/// So many are told at a time, so that the network does not lose them; fewer take longer, because the first that hear it keep
/// this host busy with their handshakes.
const BURST: usize = 1000;
/// Between two bursts, and when this host's own buffer is full.
const BURST_EVERY: Duration = Duration::from_millis(5);
/// Everybody is told twice: datagrams get lost.
const ROUNDS: usize = 2;
const ROUND_EVERY: Duration = Duration::from_millis(500);

const _: () = assert!(RESET_BYTES >= 5 + TOKEN_BYTES);
const _: () = assert!(SLOTS_MAX <= u32::MAX as usize);

/// What is known of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trace {
    /// The agent's address.
    pub(super) remote: SocketAddr,
    /// The address of this host that the agent sends to, where the system says it.
    pub(super) local: Option<IpAddr>,
    /// The id that the agent sends to.
    id: [u8; ID_BYTES],
}

/// A connection of the last run, and its place in the file.
#[derive(Debug)]
pub(super) struct Orphan {
    slot: u32,
    trace: Trace,
}

/// The handle. Clones share everything.
#[derive(Debug, Clone)]
pub(super) struct Roll(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    slots: Mutex<Slots>,
    changes: SyncSender<Change>,
    /// None when everybody was forgotten.
    file: Arc<Mutex<Option<File>>>,
}

type Change = (u32, [u8; SLOT_BYTES]);

#[derive(Debug, Default)]
struct Slots {
    free: Vec<u32>,
    /// From here on no place was used yet.
    next: u32,
}

/// One remembered connection; dropping it forgets it.
#[derive(Debug)]
pub(super) struct Noted {
    roll: Roll,
    slot: Option<u32>,
    trace: Option<Trace>,
}

impl Trace {
    /// `None` for an id that is none of ours.
    pub(super) fn new(remote: SocketAddr, local: Option<IpAddr>, id: &ConnectionId) -> Option<Self> {
        Some(Self { remote, local, id: (**id).try_into().ok()? })
    }

    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        slot[0] = if self.remote.is_ipv4() { 4 } else { 6 };
        slot[2..4].copy_from_slice(&self.remote.port().to_be_bytes());
        slot[4..20].copy_from_slice(&address_bytes(self.remote.ip()));
        if let Some(local) = self.local {
            slot[20] = if local.is_ipv4() { 4 } else { 6 };
            slot[21..37].copy_from_slice(&address_bytes(local));
        }
        slot[37..45].copy_from_slice(&self.id);
        slot
    }

    /// `None` for a free place, and for one that can't be read.
    fn decode(slot: &[u8]) -> Option<Self> {
        let address = |family: u8, bytes: &[u8]| {
            let [a, b, c, d] = *bytes.first_chunk()?;
            match family {
                4 => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
                6 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
                _ => None,
            }
        };
        let port = u16::from_be_bytes(slot.get(2..4)?.try_into().ok()?);
        let remote = address(*slot.first()?, slot.get(4..20)?)?;
        let local = address(*slot.get(20)?, slot.get(21..37)?);
        let id = slot.get(37..45)?.try_into().ok()?;
        (port != 0).then_some(Self { remote: SocketAddr::new(remote, port), local, id })
    }
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

impl Roll {
    /// Remembers nothing.
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Opens or makes the file in `folder`; gives those that it names.
    pub(super) fn open(folder: &Path) -> anyhow::Result<(Self, Vec<Orphan>)> {
        let path = folder.join(FILE);
        let file = open(&path).with_context(|| format!("could not open {}", path.display()))?;
        let mut all = Vec::new();
        (&file).take((SLOTS_MAX * SLOT_BYTES) as u64).read_to_end(&mut all)?;
        let mut slots = Slots::default();
        let mut orphans = Vec::new();
        for slot in all.chunks_exact(SLOT_BYTES) {
            match Trace::decode(slot) {
                Some(trace) => orphans.push(Orphan { slot: slots.next, trace }),
                None => slots.free.push(slots.next),
            }
            slots.next += 1;
        }
        let (changes, received) = sync_channel(WAITING_MAX);
        let file = Arc::new(Mutex::new(Some(file)));
        let writing = file.clone();
        std::thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || write(&writing, &received))
            .context("could not start a thread")?;
        let inner = Inner { slots: Mutex::new(slots), changes, file };
        Ok((Self(Some(Arc::new(inner))), orphans))
    }

    /// Remembers a connection until what this gives is dropped.
    pub(super) fn note(&self, trace: Option<Trace>) -> Noted {
        let slot = trace.and_then(|trace| {
            let inner = self.0.as_ref()?;
            let slot = inner.slots().take()?;
            if inner.changes.try_send((slot, trace.encode())).is_err() {
                inner.slots().free.push(slot);
                return None;
            }
            Some(slot)
        });
        Noted { roll: self.clone(), slot, trace }
    }

    /// Forgets everybody at once: goodbye was said to all of them.
    pub(super) fn forget(&self) {
        let file = self.0.as_ref().and_then(|inner| lock(&inner.file).take());
        if let Some(file) = file {
            // What is left of them costs datagrams that nobody takes.
            let _ = file.set_len(0);
        }
    }

    fn free(&self, slot: u32) {
        if let Some(inner) = &self.0 {
            // In this order: who takes the place writes after this.
            let _ = inner.changes.try_send((slot, [0; SLOT_BYTES]));
            inner.slots().free.push(slot);
        }
    }
}

impl Inner {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        lock(&self.slots)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    fn take(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let slot = self.next;
            ((slot as usize) < SLOTS_MAX).then(|| {
                self.next += 1;
                slot
            })
        })
    }
}

impl Noted {
    /// The agent's address may have changed: its network, or a translation on the way.
    pub(super) fn is_at(&mut self, remote: SocketAddr, local: Option<IpAddr>) {
        if let (Some(slot), Some(trace), Some(inner)) = (self.slot, &mut self.trace, &self.roll.0)
            && trace.remote != remote
        {
            *trace = Trace { remote, local, ..*trace };
            // If there is no room now its keep-alive has to do.
            let _ = inner.changes.try_send((slot, trace.encode()));
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.slot.into_iter().for_each(|slot| self.roll.free(slot));
    }
}

fn open(path: &Path) -> anyhow::Result<File> {
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
    let is_regular = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile;
    ensure!(is_regular, "it is no regular file; move it away");
    Ok(File::from(file))
}

/// Until nobody is left who could send a change.
/// The lock is held while it writes: nobody is remembered again who was forgotten.
fn write(file: &Mutex<Option<File>>, changes: &Receiver<Change>) {
    let mut told = false;
    for (slot, bytes) in changes {
        let Some(file) = &*lock(file) else { return };
        if let Err(error) = file.write_all_at(&bytes, u64::from(slot) * SLOT_BYTES as u64)
            && !std::mem::replace(&mut told, true)
        {
            tracing::warn!(%error, "could not note who is connected; after a crash silent agents will come back later");
        }
    }
}

/// The thread that tells them; it ends early when this is dropped.
#[derive(Debug)]
pub(super) struct Telling(Arc<AtomicBool>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tells all of them that their connection is gone, at a pace, and forgets them. On a thread of its own: the first that hear
/// it keep everybody else busy with their handshakes.
pub(super) fn tell(
    orphans: Vec<Orphan>,
    socket: UdpSocket,
    key: hmac::Key,
    roll: Roll,
) -> anyhow::Result<Telling> {
    let sender = UdpSocketState::new((&socket).into()).context("could not prepare the UDP socket")?;
    let telling = Telling(Arc::default());
    let is_over = telling.0.clone();
    std::thread::Builder::new()
        .name("restart".to_owned())
        .spawn(move || {
            for round in 0..ROUNDS {
                if round > 0 {
                    std::thread::sleep(ROUND_EVERY);
                }
                for burst in orphans.chunks(BURST) {
                    for Orphan { trace, .. } in burst {
                        if is_over.load(Ordering::Relaxed) {
                            return;
                        }
                        let sent = send(&sender, &socket, &key, trace);
                        if sent.is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                            std::thread::sleep(BURST_EVERY);
                            // Who can't be reached now is told in the next round, or asks.
                            let _ = send(&sender, &socket, &key, trace);
                        }
                    }
                    std::thread::sleep(BURST_EVERY);
                }
            }
            orphans.iter().for_each(|orphan| roll.free(orphan.slot));
            tracing::info!(agents = orphans.len(), "told agents that were connected before the restart");
        })
        .context("could not start a thread")?;
    Ok(telling)
}

fn send(sender: &UdpSocketState, socket: &UdpSocket, key: &hmac::Key, trace: &Trace) -> std::io::Result<()> {
    let transmit = Transmit {
        destination: trace.remote,
        ecn: None,
        contents: &reset(key, &trace.id),
        segment_size: None,
        src_ip: trace.local,
    };
    sender.try_send(socket.into(), &transmit)
}

/// A stateless reset for a connection id (RFC 9000 section 10.3): whoever does not know the token sees a packet of 1-RTT.
fn reset(key: &hmac::Key, id: &[u8; ID_BYTES]) -> [u8; RESET_BYTES] {
    let mut datagram: [u8; RESET_BYTES] = rand::random();
    datagram[0] = 0b0100_0000 | (datagram[0] >> 2);
    let token = hmac::sign(key, id); // as quinn makes it: the first bytes of the digest
    for (byte, of_token) in datagram[RESET_BYTES - TOKEN_BYTES..].iter_mut().zip(token.as_ref()) {
        *byte = *of_token;
    }
    datagram
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::mem_forget)] // to forget is what a kill does
mod tests {
    use super::*;

    fn trace(number: u8, remote: &str, local: Option<&str>) -> Trace {
        let local = local.map(|local| local.parse().unwrap());
        Trace { remote: remote.parse().unwrap(), local, id: [number; ID_BYTES] }
    }

    /// All changes are on disk when the thread that makes them has ended; what is there is who is connected.
    fn traces_of(folder: &Path) -> Vec<Trace> {
        Roll::open(folder).unwrap().1.into_iter().map(|orphan| orphan.trace).collect()
    }

    fn wait_for_traces(folder: &Path, expected: &[Trace]) {
        for _ in 0..1000 {
            if traces_of(folder) == expected {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(traces_of(folder), expected);
    }

    #[test]
    fn a_trace_is_read_as_it_was_written_and_anything_else_is_a_free_place() {
        for trace in [
            trace(1, "192.0.2.1:40000", Some("192.0.2.9")),
            trace(2, "[2001:db8::1]:1", None),
            trace(3, "[::ffff:192.0.2.1]:65535", Some("::ffff:192.0.2.9")),
        ] {
            assert_eq!(Trace::decode(&trace.encode()), Some(trace));
            (0..SLOT_BYTES)
                .for_each(|bytes| assert_eq!(Trace::decode(&trace.encode()[..bytes.min(44)]), None));
        }
        assert_eq!(Trace::decode(&[0; SLOT_BYTES]), None);
        assert_eq!(Trace::decode(&[0xff; SLOT_BYTES]), None);
    }

    #[test]
    fn who_is_connected_is_in_the_file_and_who_went_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<Trace> = (1..=3).map(|number| trace(number, "192.0.2.1:4000", None)).collect();
        let (roll, before) = Roll::open(folder.path()).unwrap();
        assert!(before.is_empty());
        let mut noted: Vec<Noted> = all.iter().map(|trace| roll.note(Some(*trace))).collect();
        wait_for_traces(folder.path(), &all);
        drop(noted.remove(0));
        noted[0].is_at("192.0.2.7:4001".parse().unwrap(), None);
        wait_for_traces(folder.path(), &[trace(2, "192.0.2.7:4001", None), all[2]]);
        let fourth = roll.note(Some(trace(4, "192.0.2.1:4000", None)));
        assert_eq!(fourth.slot, Some(0), "a place is used again");
        roll.forget();
        wait_for_traces(folder.path(), &[]);
    }

    #[test]
    fn orphans_keep_their_places_until_they_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (trace(1, "127.0.0.1:9", None), trace(2, "127.0.0.1:9", None));
        let (roll, _) = Roll::open(folder.path()).unwrap();
        std::mem::forget(roll.note(Some(old))); // as a kill does
        wait_for_traces(folder.path(), &[old]);
        let (roll, orphans) = Roll::open(folder.path()).unwrap();
        let _noted = roll.note(Some(new));
        wait_for_traces(folder.path(), &[old, new]);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 64]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let _telling = tell(orphans, socket, key, roll).unwrap();
        wait_for_traces(folder.path(), &[new]);
    }

    #[test]
    fn places_are_bounded_and_a_file_of_anything_is_no_harm() {
        let mut slots = Slots::default();
        (0..SLOTS_MAX).for_each(|slot| assert_eq!(slots.take(), Some(slot as u32)));
        assert_eq!(slots.take(), None);
        let folder = tempfile::tempdir().unwrap();
        let long: Vec<u8> = (0..SLOT_BYTES * (SLOTS_MAX + 7) + 5).map(|index| (index % 7) as u8).collect();
        std::fs::write(folder.path().join(FILE), long).unwrap();
        let (roll, orphans) = Roll::open(folder.path()).unwrap();
        assert!(orphans.len() <= SLOTS_MAX);
        drop(roll.note(Some(trace(1, "192.0.2.1:4000", None))));
    }

    #[test]
    fn a_reset_looks_like_any_packet_and_ends_in_the_token() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 64]);
        for number in 0..200 {
            let datagram = reset(&key, &[number; ID_BYTES]);
            assert_eq!(datagram[0] >> 6, 0b01, "short header, fixed bit");
            let token = hmac::sign(&key, &[number; ID_BYTES]);
            assert_eq!(datagram[RESET_BYTES - TOKEN_BYTES..], token.as_ref()[..TOKEN_BYTES]);
        }
    }
}
