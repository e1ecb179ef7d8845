//! A small file system in user space (fuse(4), the kernel's `include/uapi/linux/fuse.h`), for tests: one folder with
//! one file, whose reading does what the test wants. No library, no unsafe: requests are bytes.

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The file's name.
pub(crate) const FILE: &str = "file";
/// The file's size. Bytes.
pub(crate) const SIZE: u64 = 64 << 10;
const ROOT_NODE: u64 = 1;
const FILE_NODE: u64 = 2;
/// The kernel sends no request that is larger than what it may write, and a page for its head.
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// What reading the file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    /// It never ends, and pages are read ahead: a reader can be killed.
    Hangs,
    /// It never ends and is direct: the kernel lets no reader go, not even one that is killed.
    HangsForGood,
    /// A few bytes at a time, with a pause before each.
    Drips(Duration),
    /// The content comes from a server over TCP, which goes silent without a word after the first part.
    FromNetworkThatDies,
}

/// A mounted file system; unmounted, and everybody who hangs in it let go, when it is dropped.
#[derive(Debug)]
pub(crate) struct Fuse {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Fuse {
    /// Mounts it there.
    pub(crate) fn mount(folder: &Path, reading: Reading) -> Self {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        let none = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("vidette-test", folder, "fuse", none, options.as_c_str()).unwrap();
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let daemon = Daemon { device, reading, reads: reads.clone(), network: None };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || daemon.serve(&stopped));
        Self { folder: folder.to_owned(), stop, reads, thread: Some(thread) }
    }

    /// The one file.
    pub(crate) fn file(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// How many times somebody asked for content.
    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.folder, UnmountFlags::DETACH);
        self.stop.store(true, Ordering::Relaxed);
        // The last descriptor of the connection goes with the thread: what hangs in it fails then.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Daemon {
    device: OwnedFd,
    reading: Reading,
    reads: Arc<AtomicU64>,
    network: Option<TcpStream>,
}

/// `struct fuse_in_header`, as far as it is needed.
struct Head {
    opcode: u32,
    unique: u64,
    node: u64,
}

impl Daemon {
    fn serve(mut self, stop: &AtomicBool) {
        let mut request = vec![0; REQUEST_BYTES_MAX];
        while !stop.load(Ordering::Relaxed) {
            let mut wait = [PollFd::new(&self.device, PollFlags::IN)];
            let _ = rustix::event::poll(&mut wait, Some(&Timespec { tv_sec: 0, tv_nsec: 20_000_000 }));
            let Ok(length) = rustix::io::read(self.device.as_fd(), &mut request) else { continue };
            let Some(head) = head(&request[..length]) else { continue };
            self.answer(&head, &request[40..length]);
        }
    }

    fn answer(&mut self, head: &Head, body: &[u8]) {
        match head.opcode {
            // FORGET, INTERRUPT, BATCH_FORGET: have no answer; the reader that is interrupted gets none either.
            2 | 36 | 42 => {}
            // LOOKUP
            1 if body.starts_with(FILE.as_bytes()) => {
                let mut out = Vec::new();
                words(&mut out, &[FILE_NODE, 0, 3600, 3600, 0]);
                out.extend(attributes(FILE_NODE));
                self.reply(head, &out);
            }
            // GETATTR
            3 => {
                let mut out = Vec::new();
                words(&mut out, &[3600, 0]);
                out.extend(attributes(head.node));
                self.reply(head, &out);
            }
            // OPEN, OPENDIR. FOPEN_DIRECT_IO is 1; FOPEN_KEEP_CACHE is 2: else a second open waits for the pages that are
            // being read for the first.
            14 | 27 => {
                let direct = if self.reading == Reading::Hangs { 2u64 } else { 1 };
                let mut out = Vec::new();
                words(&mut out, &[1, if head.opcode == 14 { direct } else { 0 }]);
                self.reply(head, &out);
            }
            15 => self.read(head, body),
            // INIT: protocol 7.31, no flags, which leaves reads beside each other allowed.
            26 => {
                let mut out = vec![0u8; 64];
                out[..4].copy_from_slice(&7u32.to_ne_bytes());
                out[4..8].copy_from_slice(&31u32.to_ne_bytes());
                out[20..24].copy_from_slice(&(128u32 << 10).to_ne_bytes());
                self.reply(head, &out);
            }
            // READDIR: one entry, then the end.
            28 => {
                let mut out = Vec::new();
                if body.get(8..16) == Some(&[0; 8]) {
                    words(&mut out, &[FILE_NODE, 1]);
                    out.extend(4u32.to_ne_bytes());
                    out.extend(8u32.to_ne_bytes());
                    out.extend(FILE.as_bytes());
                    out.resize(out.len().next_multiple_of(8), 0);
                }
                self.reply(head, &out);
            }
            // RELEASE, RELEASEDIR
            18 | 29 => self.reply(head, &[]),
            // STATFS
            17 => self.reply(head, &[0; 80]),
            1 => self.fail(head, rustix::io::Errno::NOENT),
            _ => self.fail(head, rustix::io::Errno::NOSYS),
        }
    }

    fn read(&mut self, head: &Head, body: &[u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let offset = u64::from_ne_bytes(body[8..16].try_into().unwrap());
        match self.reading {
            Reading::Hangs | Reading::HangsForGood => {}
            Reading::Drips(pause) => {
                std::thread::sleep(pause);
                let left = usize::try_from(SIZE.saturating_sub(offset)).unwrap().min(16);
                self.reply(head, &vec![b'.'; left]);
            }
            Reading::FromNetworkThatDies => {
                let server = self.network.get_or_insert_with(server_that_dies);
                let mut content = vec![0; 1024];
                // A time limit, so that the test ends; the kernel's client would wait for ever.
                if server.read_exact(&mut content).is_ok() {
                    self.reply(head, &content);
                }
            }
        }
    }

    fn reply(&self, head: &Head, body: &[u8]) {
        self.send(head, 0, body);
    }

    fn fail(&self, head: &Head, error: rustix::io::Errno) {
        self.send(head, -error.raw_os_error(), &[]);
    }

    /// `struct fuse_out_header`, and what follows.
    fn send(&self, head: &Head, error: i32, body: &[u8]) {
        let mut out = Vec::new();
        out.extend(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        out.extend(error.to_ne_bytes());
        out.extend(head.unique.to_ne_bytes());
        out.extend(body);
        // Whoever asked may be gone.
        let _ = rustix::io::write(&self.device, &out);
    }
}

/// Sends the first part of the file and then nothing, without closing: what a cut cable looks like.
fn server_that_dies() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.write_all(&[b'.'; 1024]).unwrap();
    // Kept open for as long as the test's process lives.
    Box::leak(Box::new(served));
    client
}

fn head(request: &[u8]) -> Option<Head> {
    Some(Head {
        opcode: u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?),
        unique: u64::from_ne_bytes(request.get(8..16)?.try_into().ok()?),
        node: u64::from_ne_bytes(request.get(16..24)?.try_into().ok()?),
    })
    .filter(|_| request.len() >= 40)
}

fn words(out: &mut Vec<u8>, words: &[u64]) {
    words.iter().for_each(|word| out.extend(word.to_ne_bytes()));
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let file = node != ROOT_NODE;
    let mut out = Vec::new();
    // Number, size, blocks; times.
    words(&mut out, &[node, if file { SIZE } else { 0 }, if file { SIZE / 512 } else { 0 }, 1, 1, 1]);
    let mode = if file { 0o100_444 } else { 0o040_755 };
    for word in [0u32, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(word.to_ne_bytes());
    }
    out
}
