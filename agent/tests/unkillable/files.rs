//! Files that are huge, endless, no files, or on file systems that do not answer.

use super::fuse::{Fuse, Reading};
use super::rig::{self, MARKER, MARKER_RULE, Said, file, open, ready, scan, settings, submit, until};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vidette_agent::worker::pool::{Pool, Settings};
use vidette_agent::worker::{Outcome, RuleSet};
use vidette_protocol::wire::Verdict;

fn marker() -> Settings {
    settings(RuleSet::new(vec![rig::source("marker.yar", MARKER_RULE)]))
}

fn next_is_scanned(pool: &mut Pool, said: &mut Said, id: u64) {
    scan(pool, said, id, file(MARKER));
    assert_eq!(said.scan(id).verdict, Verdict::Matched);
}

#[test]
fn a_huge_file_is_scanned_in_part_wherever_its_data_are() {
    let (mut pool, mut said) = ready(Settings { timeout: Duration::from_secs(60), ..marker() });
    let sparse = |size: u64, at: u64| {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(MARKER).unwrap();
        file
    };
    for (id, size, at) in [(1, 10u64 << 30, 5 << 30), (2, 1 << 40, (1 << 40) - 100), (3, 1 << 40, 0)] {
        scan(&mut pool, &mut said, id, sparse(size, at));
        assert_eq!(said.scan(id).verdict, Verdict::Matched, "{said:?}");
        assert!(said.scan(id).scanned_bytes < 1 << 20);
    }
    // With every block allocated, where the disk has room for it twice.
    let mut whole = tempfile::tempfile().unwrap();
    let room = rustix::fs::fstatvfs(&whole).unwrap();
    let size = 10u64.min(((room.f_bavail * room.f_frsize) >> 30) / 2).max(1) << 30;
    fallocate(&whole, FallocateFlags::empty(), 0, size).unwrap();
    whole.seek(SeekFrom::Start(size - 100)).unwrap();
    whole.write_all(MARKER).unwrap();
    scan(&mut pool, &mut said, 4, whole);
    assert_eq!(said.scan(4).verdict, Verdict::Matched);
    assert!(said.scan(4).detail.contains("head and tail"), "{:?}", said.scan(4));
    assert!(said.died.is_empty(), "{said:?}");
}

#[test]
fn a_file_that_grows_shrinks_or_is_replaced_meanwhile_is_an_answer() {
    let (mut pool, mut said) = ready(Settings { timeout: Duration::from_secs(60), ..marker() });
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("one"), folder.path().join("other"));
    std::fs::write(&path, vec![b'x'; 8 << 20]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0u64;
            while !done.load(Ordering::Relaxed) {
                turn += 1;
                let Ok(mut file) = File::options().append(true).open(&path) else { continue };
                match turn % 3 {
                    0 => file.write_all(&[b'y'; 1 << 16]).unwrap(),
                    1 => file.set_len(turn % 7 * 1000).unwrap(),
                    _ => {
                        std::fs::write(&other, vec![b'z'; 4 << 20]).unwrap();
                        std::fs::rename(&other, &path).unwrap();
                    }
                }
            }
        });
        for id in 0..30 {
            scan(&mut pool, &mut said, id, open(&path));
            let verdict = said.scan(id).verdict;
            assert!(matches!(verdict, Verdict::Clean | Verdict::TooLarge), "{said:?}");
        }
        done.store(true, Ordering::Relaxed);
    });
    next_is_scanned(&mut pool, &mut said, 100);
    assert!(said.died.is_empty(), "{said:?}");
}

#[test]
fn what_is_no_file_is_refused_and_what_proc_shows_is_read_or_refused() {
    let (mut pool, mut said) = ready(marker());
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut odd: Vec<File> = vec![open(&fifo), std::os::fd::OwnedFd::from(left).into(), open(folder.path())];
    odd.extend(["/dev/zero", "/dev/null", "/dev/random"].map(|path| open(Path::new(path))));
    let refused = odd.len() as u64;
    let shown = [
        "/proc/kcore",
        "/proc/kmsg",
        "/proc/self/mem",
        "/proc/self/maps",
        "/proc/self/pagemap",
        "/proc/kpageflags",
    ];
    odd.extend(shown.iter().filter(|path| Path::new(path).exists()).map(|path| open(Path::new(path))));
    let count = odd.len() as u64;
    for (id, file) in odd.into_iter().enumerate() {
        scan(&mut pool, &mut said, id as u64, file);
    }
    for id in 0..refused {
        assert!(
            said.scan(id).verdict == Verdict::Failed && said.scan(id).detail.contains("regular"),
            "{said:?}"
        );
    }
    (refused..count).for_each(|id| assert_ne!(said.scan(id).verdict, Verdict::Matched));
    next_is_scanned(&mut pool, &mut said, 100);
    assert!(said.died.is_empty() && pool.poison().is_empty(), "{said:?}");
}

/// The file that hangs is in front; those behind it are scanned while it hangs.
fn hangs(reading: Reading) {
    let folder = tempfile::tempdir().unwrap();
    let fuse = Fuse::mount(folder.path(), reading);
    let (mut pool, mut said) = ready(marker());
    for round in 0..2u64 {
        submit(&mut pool, &mut said, 10 * round, open(&fuse.file()));
        for id in 1..4 {
            submit(&mut pool, &mut said, 10 * round + id, file(MARKER));
        }
        until(&mut pool, &mut said, |said, _| said.done.len() as u64 == 4 * (round + 1));
        assert_eq!(said.order.last(), Some(&(10 * round)), "{said:?}");
        assert!(matches!(&said.done[&(10 * round)], Outcome::TimedOut(_)), "{said:?}");
        (1..4).for_each(|id| assert_eq!(said.scan(10 * round + id).verdict, Verdict::Matched));
        assert_eq!(pool.poison().len() as u64, round, "once may be chance, twice is not");
    }
    assert!(fuse.reads() > 0);
    next_is_scanned(&mut pool, &mut said, 100);
    scan(&mut pool, &mut said, 101, open(&fuse.file()));
    assert!(matches!(&said.done[&101], Outcome::Died(detail) if detail.starts_with("not tried again")));
}

#[test]
fn a_file_on_a_mount_that_hangs_costs_itself() {
    hangs(Reading::Hangs);
}

#[test]
fn a_file_that_the_kernel_never_lets_go_of_costs_itself() {
    hangs(Reading::HangsForGood);
}

#[test]
fn a_file_on_a_network_mount_that_dies_costs_itself() {
    hangs(Reading::FromNetworkThatDies);
}

#[test]
fn a_file_that_comes_in_drops_is_given_up_in_time_without_a_death() {
    let folder = tempfile::tempdir().unwrap();
    let fuse = Fuse::mount(folder.path(), Reading::Drips(Duration::from_millis(50)));
    let (mut pool, mut said) = ready(marker());
    submit(&mut pool, &mut said, 1, open(&fuse.file()));
    submit(&mut pool, &mut said, 2, file(MARKER));
    until(&mut pool, &mut said, |said, _| said.done.len() == 2);
    assert_eq!((said.order[1], said.scan(1).verdict), (1, Verdict::TimedOut), "{said:?}");
    assert!(said.died.is_empty() && pool.poison().is_empty(), "{said:?}");
}
