//! A run that is too large for one commit, cut into several: whoever else waits for the disk waits for one piece and not
//! for four thousand events. Pure. Each piece is a run of its own for the store.

use super::session::{Arrival, Received};
use std::collections::VecDeque;

/// Events of one piece.
const PIECE_EVENTS_MAX: usize = 128;
/// Their encoded bytes, unless one event alone is larger. Bytes.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// A part of a run.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) arrival: Arrival,
    /// Nothing of its run follows: the session hears what became of it.
    pub(super) is_last: bool,
}

/// Cuts a run, in order.
pub(super) fn cut(arrival: Arrival) -> VecDeque<Piece> {
    let Arrival { agent, epoch, class, mut first_seq, mut skipped, events } = arrival;
    let mut pieces = VecDeque::new();
    let mut left = VecDeque::from(events);
    while !left.is_empty() {
        // Collected anew: a part that is split off would keep the room of the whole.
        let count = count(&left);
        let events: Vec<Received> = left.drain(..count).collect();
        let arrival = Arrival { agent, epoch, class, first_seq, skipped, events };
        pieces.push_back(Piece { arrival, is_last: left.is_empty() });
        (first_seq, skipped) = (first_seq + count as u64, 0);
    }
    pieces
}

/// Events of the next piece: at least one, when there is one.
fn count(events: &VecDeque<Received>) -> usize {
    let (mut count, mut bytes) = (0, 0);
    for event in events.iter().take(PIECE_EVENTS_MAX) {
        bytes += event.body.len();
        if count > 0 && bytes > PIECE_BYTES_MAX {
            break;
        }
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use vidette_protocol::id::{AgentId, Class};
    use vidette_protocol::wire;

    fn run(sizes: &[usize]) -> Arrival {
        let event = |size: &usize| Received { event: wire::Event::default(), body: vec![0; *size] };
        let events = sizes.iter().map(event).collect();
        Arrival { agent: AgentId([1; 16]), epoch: 7, class: Class::Alert, first_seq: 10, skipped: 3, events }
    }

    #[test]
    fn pieces_follow_each_other_and_are_the_whole_run() {
        for sizes in [
            vec![1],
            vec![9; PIECE_EVENTS_MAX],
            vec![9; PIECE_EVENTS_MAX + 1],
            vec![200_000; 16],
            vec![9; 4096],
            vec![600_000, 1, 1],
        ] {
            let whole = run(&sizes);
            let pieces = cut(whole.clone());
            let mut next = 10;
            let mut bodies = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                let Piece { arrival, is_last } = piece;
                assert_eq!(arrival.first_seq, next);
                assert_eq!(arrival.skipped, if index == 0 { 3 } else { 0 });
                assert_eq!(*is_last, index + 1 == pieces.len());
                assert!(
                    arrival.events.capacity() <= PIECE_EVENTS_MAX,
                    "room for {}",
                    arrival.events.capacity()
                );
                let bytes: usize = arrival.events.iter().map(|event| event.body.len()).sum();
                assert!(arrival.events.len() <= PIECE_EVENTS_MAX && !arrival.events.is_empty());
                assert!(bytes <= PIECE_BYTES_MAX || arrival.events.len() == 1, "{bytes}");
                next += arrival.events.len() as u64;
                bodies.extend(arrival.events.clone());
            }
            assert_eq!(bodies, whole.events);
        }
    }
}
