//! Runs of consecutive events, compressed. Both limits, packed and unpacked, hold on both sides.

use crate::bounds;
use crate::id::Class;
use crate::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, BATCH_UNPACKED_BYTES_MAX, SEQ_MAX};
use crate::wire::{Batch, EventList};
use prost::Message;

/// zstd level: 1 to 3 differ by little, more costs five times the time for a twentieth of the size.
const ZSTD_LEVEL: i32 = 1;

/// A batch that is not what it says.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// Of no class this version knows.
    #[error("a batch of class {0}, which is not known here")]
    Class(i32),
    /// More than a limit allows, or nothing at all.
    #[error(
        "a batch of {events} events in {bytes} bytes, allowed are 1 to {BATCH_EVENTS_MAX} in {BATCH_UNPACKED_BYTES_MAX}"
    )]
    Size {
        /// Events announced.
        events: usize,
        /// Bytes announced.
        bytes: usize,
    },
    /// Not zstd, or not of the size announced.
    #[error("a batch that can't be unpacked: {0}")]
    Packing(String),
    /// Unpacked, but holds another number of events than announced.
    #[error("a batch that announced {announced} events and holds {held}")]
    Count {
        /// Events announced.
        announced: usize,
        /// Events found.
        held: usize,
    },
    /// Its numbers run over the end.
    #[error("a batch whose numbers start at {0} and run over the end")]
    Numbers(u64),
}

/// Packs `events`, encoded and numbered from `first_seq` on without holes.
///
/// # Errors
/// [`BatchError::Size`] when they are too many or too large, [`BatchError::Packing`] when zstd fails.
pub fn pack(
    class: Class,
    epoch: u64,
    first_seq: u64,
    skipped: u64,
    events: Vec<Vec<u8>>,
) -> Result<Batch, BatchError> {
    let count = events.len();
    let list = EventList { events }.encode_to_vec();
    if count == 0 || count > BATCH_EVENTS_MAX || list.len() > BATCH_UNPACKED_BYTES_MAX {
        return Err(BatchError::Size { events: count, bytes: list.len() });
    }
    let packed =
        zstd::bulk::compress(&list, ZSTD_LEVEL).map_err(|error| BatchError::Packing(error.to_string()))?;
    if packed.len() > BATCH_BYTES_MAX {
        return Err(BatchError::Size { events: count, bytes: packed.len() });
    }
    Ok(Batch {
        class: class.to_wire(),
        epoch,
        first_seq,
        skipped,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        events_bytes: u32::try_from(list.len()).unwrap_or(u32::MAX),
        events: packed,
    })
}

/// The encoded events of a batch, in order. Allocates no more than the limits, whatever the batch claims.
///
/// # Errors
/// [`BatchError`]: the batch as a whole can't be used. Its events are not looked at.
pub fn unpack(batch: &Batch) -> Result<Vec<Vec<u8>>, BatchError> {
    Class::from_wire(batch.class).ok_or(BatchError::Class(batch.class))?;
    let (announced, bytes) = (batch.count as usize, batch.events_bytes as usize);
    if announced == 0 || announced > BATCH_EVENTS_MAX || bytes > BATCH_UNPACKED_BYTES_MAX {
        return Err(BatchError::Size { events: announced, bytes });
    }
    if batch.first_seq == 0
        || batch.skipped >= batch.first_seq
        || batch.first_seq.saturating_add(announced as u64) > SEQ_MAX
    {
        return Err(BatchError::Numbers(batch.first_seq));
    }
    let list = zstd::bulk::decompress(&batch.events, bytes)
        .map_err(|error| BatchError::Packing(error.to_string()))?;
    if list.len() != bytes {
        return Err(BatchError::Packing(format!("{} bytes instead of {bytes}", list.len())));
    }
    // Two million empty events fit the limit of bytes: they are counted before they are decoded.
    bounds::check(&bounds::EVENT_LIST, &list).map_err(|error| BatchError::Packing(error.to_string()))?;
    let list = EventList::decode(list.as_slice()).map_err(|error| BatchError::Packing(error.to_string()))?;
    if list.events.len() != announced {
        return Err(BatchError::Count { announced, held: list.events.len() });
    }
    Ok(list.events)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sample() -> Batch {
        pack(Class::Alert, 1, 10, 3, vec![b"one".to_vec(), b"two".to_vec()]).unwrap()
    }

    #[test]
    fn what_was_packed_is_unpacked() {
        assert_eq!(unpack(&sample()).unwrap(), vec![b"one".to_vec(), b"two".to_vec()]);
    }

    #[test]
    fn a_batch_that_lies_is_refused() {
        type Lie = fn(&mut Batch);
        let lies: [(&str, Lie); 10] = [
            ("class", |b| b.class = 9),
            ("count", |b| b.count = 3),
            ("nothing", |b| b.count = 0),
            ("too many", |b| b.count = u32::MAX),
            ("bytes", |b| b.events_bytes += 1),
            ("a bomb", |b| b.events_bytes = u32::MAX),
            ("garbage", |b| b.events = vec![1, 2, 3]),
            ("numbers", |b| b.first_seq = u64::MAX),
            ("numbers that no database holds", |b| b.first_seq = SEQ_MAX),
            ("a jump over all of them", |b| (b.first_seq, b.skipped) = (1 << 63, (1 << 63) - 1)),
        ];
        for (name, lie) in lies {
            let mut batch = sample();
            lie(&mut batch);
            assert!(unpack(&batch).is_err(), "{name}");
        }
    }

    #[test]
    fn a_bomb_unpacks_to_no_more_than_it_announced() {
        let list = EventList { events: vec![vec![0; 64 << 20]] }.encode_to_vec();
        let events = zstd::bulk::compress(&list, 19).unwrap();
        let batch =
            Batch { class: 1, epoch: 1, first_seq: 1, skipped: 0, count: 1, events_bytes: 1000, events };
        assert!(matches!(unpack(&batch), Err(BatchError::Packing(_))));
    }

    #[test]
    fn a_million_empty_events_are_refused_before_they_are_decoded() {
        let list = EventList { events: vec![Vec::new(); 1_000_000] }.encode_to_vec();
        let events = zstd::bulk::compress(&list, 1).unwrap();
        let events_bytes = u32::try_from(list.len()).unwrap();
        let batch = Batch { class: 1, epoch: 1, first_seq: 1, skipped: 0, count: 1, events_bytes, events };
        assert!(matches!(unpack(&batch), Err(BatchError::Packing(reason)) if reason.contains("4096")));
    }
}
