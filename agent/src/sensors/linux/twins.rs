//! One write through an overlay is told twice, by the overlay and by the file system below it: made one here.
//!
//! Both are marked on purpose. Since Linux 6.5 the one below would do, where it is marked; but which file system
//! lies below an overlay is only the mounter's word. Pure. Assumes that both events come in one batch or shortly
//! after each other. What is left goes to the join.

use super::join::Program;
use super::places::{Side, Stat, is_same_content};
use crate::sensors::OpenFile;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Events whose twin may still come.
const WAITING_MAX: usize = 1024;
/// A twin comes within microseconds, unless the queue is long. Later ones are told again.
const TWIN_WAIT: Duration = Duration::from_secs(2);

/// One event of the kernel with what was found of its file.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) pid: u32,
    pub(crate) pidfd: Option<OwnedFd>,
    /// Its pid was free, or another's, when the event was read.
    pub(crate) reaped: bool,
    pub(crate) mask: u64,
    pub(crate) written: Option<OpenFile>,
    /// `written` is a guarded file that was opened.
    pub(crate) opened: bool,
    pub(crate) run: Option<Program>,
    pub(crate) stat: Stat,
    pub(crate) side: Side,
}

/// What was told and has no twin yet.
#[derive(Debug)]
struct Told {
    pid: u32,
    mask: u64,
    stat: Stat,
    side: Side,
    /// By the name it had it is watched, so somebody was told.
    covered: bool,
    at: Instant,
}

/// Remembers.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    waiting: VecDeque<Told>,
}

impl Twins {
    /// The batch with each pair made one, and how many were left out. The half that comes a batch later is left out
    /// only if the first was watched by the name that it had alone.
    pub(crate) fn merge(
        &mut self,
        batch: Vec<Look>,
        now: Instant,
        covers: impl Fn(&OpenFile) -> bool,
    ) -> (Vec<Look>, usize) {
        while self.waiting.front().is_some_and(|told| now.duration_since(told.at) > TWIN_WAIT) {
            self.waiting.pop_front();
        }
        let before = batch.len();
        let mut kept: Vec<Look> = Vec::with_capacity(before);
        for look in batch {
            if look.side == Side::Plain {
                kept.push(look);
                continue;
            }
            let twin = self.waiting.iter().position(|told| is_twin(told, &look));
            let Some(told) = twin.and_then(|twin| self.waiting.remove(twin)) else {
                let file = look.written.as_ref().or(look.run.as_ref().map(|program| &program.file));
                let covered = file.is_some_and(&covers);
                self.remember(&look, covered, now);
                kept.push(look);
                continue;
            };
            // The twin is in this batch, or was handed on in an earlier one.
            if let Some(first) = kept.iter_mut().find(|first| {
                (first.pid, first.mask, &first.side) == (told.pid, told.mask, &told.side)
                    && first.stat == told.stat
            }) {
                combine(first, look);
            } else if !told.covered {
                kept.push(look);
            }
        }
        let left_out = before - kept.len();
        (kept, left_out)
    }

    fn remember(&mut self, look: &Look, covered: bool, at: Instant) {
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        let (stat, side) = (look.stat.clone(), look.side.clone());
        self.waiting.push_back(Told { pid: look.pid, mask: look.mask, stat, side, covered, at });
    }
}

fn is_twin(told: &Told, look: &Look) -> bool {
    let content = match (&told.side, &look.side) {
        (Side::Overlay(above), Side::Layer(below)) => {
            above == below && is_same_content(&told.stat, &look.stat)
        }
        (Side::Layer(below), Side::Overlay(above)) => {
            above == below && is_same_content(&look.stat, &told.stat)
        }
        (Side::Plain | Side::Overlay(_) | Side::Layer(_), _) => false,
    };
    content && (told.pid, told.mask) == (look.pid, look.mask)
}

/// The file of the layer, which has the name and the inode that the host knows, and the overlay's name for it.
/// The join compares with `/proc/PID/exe`, which is the overlay's.
fn combine(first: &mut Look, mut second: Look) {
    if matches!(first.side, Side::Overlay(_)) {
        let pidfd = second.pidfd.take().or_else(|| first.pidfd.take());
        std::mem::swap(first, &mut second);
        first.pidfd = pidfd;
    }
    let above = second;
    if let (Some(file), Some(other)) = (first.written.as_mut(), above.written) {
        take_name(file, other);
    }
    if let (Some(program), Some(other)) = (first.run.as_mut(), above.run) {
        program.key = other.key;
        take_name(&mut program.file, other.file);
    }
}

/// A settled file keeps the name as its own namespace sees it in `container_path`, unless that is `path`.
fn take_name(file: &mut OpenFile, above: OpenFile) {
    let name = if above.container_path.is_empty() { above.path } else { above.container_path };
    if file.container_path == file.path {
        // Below nothing was found that the host could name.
        file.path.clone_from(&name);
    }
    file.container_path = name;
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn look(side: Side, path: &str, other: &str, device: u64) -> Look {
        let descriptor = std::fs::File::open("/dev/null").unwrap().into();
        let file = OpenFile {
            descriptor,
            path: path.as_bytes().to_vec(),
            deleted: false,
            container_path: other.as_bytes().to_vec(),
        };
        let stat = Stat { device, inode: 5, mount: 9, links: 1, size: 1, changed: (1, 1), born: (0, 1) };
        Look {
            pid: 7,
            pidfd: None,
            reaped: false,
            mask: 8,
            written: Some(file),
            opened: false,
            run: None,
            stat,
            side,
        }
    }

    fn above(inner: &str) -> Look {
        look(Side::Overlay(inner.into()), inner, inner, 39)
    }

    fn below(inner: &str) -> Look {
        look(Side::Layer(inner.into()), &format!("/up{inner}"), inner, 8)
    }

    fn names(looks: &[Look]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let file =
            |look: &Look| look.written.as_ref().map(|file| (text(&file.path), text(&file.container_path)));
        looks.iter().filter_map(file).collect()
    }

    #[test]
    fn twins_become_one_in_any_order_within_a_batch_and_across() {
        let expected = [("/up/x".to_owned(), "/x".to_owned())];
        for (first, second) in [(above("/x"), below("/x")), (below("/x"), above("/x"))] {
            let (kept, left_out) = Twins::default().merge(vec![first, second], Instant::now(), |_| true);
            assert_eq!((names(&kept), left_out), (expected.to_vec(), 1));
            assert_eq!(kept[0].stat.device, 8);
        }
        let mut twins = Twins::default();
        let now = Instant::now();
        assert_eq!(twins.merge(vec![above("/x")], now, |_| true).1, 0);
        let (kept, left_out) = twins.merge(vec![below("/x")], now, |_| true);
        assert_eq!((kept.len(), left_out), (0, 1));
        let mut twins = Twins::default();
        assert_eq!(twins.merge(vec![above("/x")], now, |_| false).1, 0);
        assert_eq!(twins.merge(vec![below("/x")], now, |_| true).1, 0, "nobody was told of the first");
        let mut twins = Twins::default();
        twins.merge(vec![above("/x")], now, |_| true);
        twins.merge(vec![below("/x")], now, |_| true);
        // Each twin is left out for one that was told, never for another that was left out.
        assert_eq!(twins.merge(vec![below("/x")], now, |_| true).1, 0);
    }

    #[test]
    fn what_is_no_twin_is_told() {
        let now = Instant::now();
        let mut changed = below("/x");
        changed.stat.changed = (1, 2);
        let mut somebody_else = below("/x");
        somebody_else.pid = 8;
        for other in [changed, somebody_else, below("/y"), above("/x"), look(Side::Plain, "/x", "", 8)] {
            let (kept, left_out) = Twins::default().merge(vec![above("/x"), other], now, |_| true);
            assert_eq!((kept.len(), left_out), (2, 0), "{kept:?}");
        }
        let mut twins = Twins::default();
        twins.merge(vec![above("/x")], now, |_| true);
        assert_eq!(twins.merge(vec![below("/x")], now + TWIN_WAIT * 2, |_| true).1, 0);
        for _ in 0..WAITING_MAX + 9 {
            twins.merge(vec![above("/z")], now, |_| true);
        }
        assert_eq!(twins.waiting.len(), WAITING_MAX);
    }
}
