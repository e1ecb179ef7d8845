//! The connector's messages with what `/proc` adds to them, and what they say was lost.
//!
//! Assumes that the caller drains to empty every turn. Goes to the join.

use super::join::Told;
use super::proc;
use crate::host::Moment;
use crate::sensors::processes::{Facts, ProcessTable, is_ambiguous};
use crate::sys::connector::{Connector, Message, What};
use std::collections::{HashMap, HashSet};

/// Messages taken in one turn, so that a storm of forks can't keep files waiting for ever.
const MESSAGES_TURN_MAX: usize = 32_768;
/// The CPU of a message that none has numbered: an acknowledgement, on older kernels.
const NO_CPU: u32 = u32::MAX;
/// Looks at the clocks, of which the quickest counts.
const CLOCK_LOOKS: usize = 3;
/// A start that `/proc` gives may lie this far from the fork's message. Nanoseconds.
const START_APART_MAX_NS: u64 = 1_000_000_000;

/// What one turn brought.
#[derive(Debug, Default)]
pub(crate) struct Drained {
    /// Messages in their order.
    pub(crate) messages: Vec<Message>,
    /// Messages that were lost, exactly.
    pub(crate) lost: u64,
    /// The kernel said that its buffer was full.
    pub(crate) overflowed: bool,
}

/// Next number of each CPU.
#[derive(Debug, Default)]
pub(crate) struct Sequences(HashMap<u32, u32>);

impl Sequences {
    /// How many are missing before this one. The first of a CPU misses none. Everybody's acknowledgements come
    /// here too: they are numbered like events (6.18), or by no CPU at all (older kernels).
    pub(crate) fn missing(&mut self, cpu: u32, seq: u32) -> u32 {
        if cpu == NO_CPU {
            return 0;
        }
        let expected = self.0.insert(cpu, seq.wrapping_add(1)).unwrap_or(seq);
        let missing = seq.wrapping_sub(expected);
        if missing > u32::MAX / 2 { 0 } else { missing }
    }
}

/// Everything that waits.
///
/// # Errors
/// When the socket is dead: what was drained before is lost with it, and `/proc` is read again anyway.
pub(crate) fn drain(connector: &Connector, sequences: &mut Sequences) -> std::io::Result<Drained> {
    let mut drained = Drained::default();
    while drained.messages.len() < MESSAGES_TURN_MAX {
        match connector.receive() {
            Ok(Some(message)) => {
                drained.lost += u64::from(sequences.missing(message.cpu, message.seq));
                drained.messages.push(message);
            }
            Ok(None) => break,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => drained.overflowed = true,
            Err(error) => return Err(error),
        }
    }
    Ok(drained)
}

/// What turns the messages' CLOCK_MONOTONIC, which stands still in a suspend, into CLOCK_BOOTTIME. Stays the
/// same as long as it can, so that the order of messages stays theirs.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    ahead_ns: Option<u64>,
}

impl Clocks {
    /// Looks at both clocks; `pair` reads monotonic, boottime, monotonic.
    pub(crate) fn look(&mut self, mut pair: impl FnMut() -> [u64; 3]) {
        let looks = (0..CLOCK_LOOKS).map(|_| pair());
        let Some([first, boot, second]) =
            looks.min_by_key(|[first, _, second]| second.saturating_sub(*first))
        else {
            return;
        };
        let (least, most) = (boot.saturating_sub(second), boot.saturating_sub(first));
        if !self.ahead_ns.is_some_and(|ahead| (least..=most).contains(&ahead)) {
            self.ahead_ns = Some(least.midpoint(most));
        }
    }

    /// When a message was sent, by both clocks.
    pub(crate) fn moment(&self, message: &Message, now: Moment) -> Moment {
        let uptime_ns = message.monotonic_ns.saturating_add(self.ahead_ns.unwrap_or(0));
        let ago = now.uptime_ns.saturating_sub(uptime_ns);
        Moment { unix_ns: now.unix_ns.saturating_sub_unsigned(ago), uptime_ns }
    }
}

/// CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC.
pub(crate) fn read_clocks() -> [u64; 3] {
    let read = |clock| {
        let time = rustix::time::clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
    };
    use rustix::time::ClockId::{Boottime, Monotonic};
    [Monotonic, Boottime, Monotonic].map(read)
}

/// Processes whose end is among these messages: `/proc` has nothing to say of them any more, or speaks of
/// another who has their pid.
pub(crate) fn ended(messages: &[Message]) -> HashSet<u32> {
    let pid = |message: &Message| match message.what {
        What::Exit { pid, .. } => Some(pid),
        What::Fork { .. }
        | What::Exec { .. }
        | What::User { .. }
        | What::Group { .. }
        | What::Session { .. }
        | What::Acknowledged(_)
        | What::Other => None,
    };
    messages.iter().filter_map(pid).collect()
}

/// A message for the join; none for what it does not need.
pub(crate) fn tell(
    message: &Message,
    at: Moment,
    table: &ProcessTable,
    ended: &HashSet<u32>,
    remote: impl Fn(u64) -> bool,
) -> Option<Told> {
    Some(match message.what {
        What::Fork { parent, child } => {
            Told::Fork { parent, child, start_ns: Some(start(child, at.uptime_ns)) }
        }
        What::Exec { pid } => {
            let known = table.start_ns(pid);
            let facts = if ended.contains(&pid) { None } else { proc::facts(pid) };
            let facts = facts.filter(|facts| is_of(facts, known, at.uptime_ns));
            let exe = facts.as_ref().and_then(|_| proc::open_exe(pid, remote));
            Told::Exec { pid, facts: facts.map(Box::new), exe }
        }
        What::Session { pid } => Told::Session { pid },
        What::User { pid, uid } => Told::User { pid, uid },
        What::Group { pid, gid } => Told::Group { pid, gid },
        What::Exit { pid, status } => Told::Exit { pid, status: status.cast_signed() },
        What::Acknowledged(_) | What::Other => return None,
    })
}

/// Whether facts are of a process that was told to start at `known` and to exec at `told_ns`: `/proc` gives the
/// start to the tick, the message some time after it.
fn is_of(facts: &Facts, known: Option<u64>, told_ns: u64) -> bool {
    facts
        .start_ns
        .is_some_and(|start_ns| start_ns <= told_ns && (known.is_none() || is_start(start_ns, known)))
}

/// Whether a start that `/proc` gave is the one that was told: at the same time or a little before.
pub(crate) fn is_start(read_ns: u64, known: Option<u64>) -> bool {
    known.is_some_and(|known| read_ns <= known && known - read_ns < START_APART_MAX_NS)
}

fn start(pid: u32, told_ns: u64) -> u64 {
    let read = is_ambiguous(told_ns).then(|| proc::start_ns(pid)).flatten();
    read.filter(|read_ns| read_ns.abs_diff(told_ns) < START_APART_MAX_NS).unwrap_or(told_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_numbers_are_counted_by_cpu_across_the_wrap() {
        let mut sequences = Sequences::default();
        let told =
            [(0, 7), (1, 900), (0, 8), (0, 11), (1, 901), (2, u32::MAX), (2, 1), (NO_CPU, 4), (NO_CPU, 9)];
        let missing: Vec<u32> = told.into_iter().map(|(cpu, seq)| sequences.missing(cpu, seq)).collect();
        assert_eq!(missing, [0, 0, 0, 2, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn a_message_is_as_old_as_it_says_and_the_clocks_do_not_jitter() {
        let message = |monotonic_ns| Message { seq: 0, cpu: 0, monotonic_ns, what: What::Other };
        let now = Moment { unix_ns: 1000, uptime_ns: 500 };
        let mut clocks = Clocks::default();
        // Interrupted between two looks, twice.
        let mut looks = [[10, 800, 900], [90, 490, 90], [95, 700, 300]].into_iter();
        clocks.look(|| looks.next().unwrap_or_default());
        assert_eq!(clocks.moment(&message(70), now), Moment { unix_ns: 970, uptime_ns: 470 });
        clocks.look(|| [100, 505, 110]);
        assert_eq!(clocks.moment(&message(71), now).uptime_ns, 471);
        // Slept.
        clocks.look(|| [100, 2500, 100]);
        assert_eq!(clocks.moment(&message(71), now).uptime_ns, 2471);
    }

    #[test]
    fn facts_of_another_with_the_same_pid_are_not_taken() {
        let second = 1_000_000_000;
        let facts = |start_ns| Facts { start_ns: Some(start_ns), ..Facts::default() };
        assert!(is_of(&facts(5 * second), Some(5 * second + 30_000_000), 6 * second));
        assert!(is_of(&facts(5 * second), None, 6 * second));
        assert!(!is_of(&facts(6 * second), Some(5 * second), 7 * second));
        assert!(!is_of(&facts(5 * second + 10_000_000), Some(5 * second), 5 * second + 5_000_000));
    }
}
