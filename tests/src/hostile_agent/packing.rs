//! zstd frames by hand (RFC 8878 section 3.1.1): what a library would not make, and what stays as it is for a fuzzer.

/// Magic number, no content size, a window of 16 MiB.
const HEADER: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x70];
/// A block. Bytes.
const BLOCK_BYTES: usize = 100 << 10;

/// A frame of at most so many bytes that unpacks to 32,768 times as many: blocks of one repeated byte.
#[must_use]
pub fn bomb(bytes_max: usize) -> Vec<u8> {
    let block = |is_last: bool| {
        let header: u32 = (128 << 10) << 3 | 1 << 1 | u32::from(is_last);
        let [low, middle, high, _] = header.to_le_bytes();
        [low, middle, high, 0x0a]
    };
    let mut bytes = HEADER.to_vec();
    for _ in 0..bytes_max / 4 {
        bytes.extend(block(false));
    }
    bytes.extend(block(true));
    bytes
}

/// A frame that holds `content` as it is, so that a changed byte of the frame is a changed byte of the content.
#[must_use]
pub fn stored(content: &[u8]) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    let blocks = content.chunks(BLOCK_BYTES);
    let last = blocks.len().saturating_sub(1);
    for (index, block) in blocks.enumerate() {
        let header = u32::try_from(block.len()).unwrap_or(0) << 3 | u32::from(index == last);
        bytes.extend_from_slice(&header.to_le_bytes()[..3]);
        bytes.extend_from_slice(block);
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use prost::Message;
    use vidette_protocol::batch::{BatchError, unpack};
    use vidette_protocol::wire::{Batch, EventList};

    #[test]
    fn what_is_stored_unpacks_and_a_bomb_does_not() {
        let list = EventList { events: vec![vec![7; 250_000], vec![8; 9]] };
        let bytes = list.encode_to_vec();
        let batch = Batch {
            class: 1,
            epoch: 1,
            first_seq: 1,
            skipped: 0,
            count: 2,
            events_bytes: u32::try_from(bytes.len()).unwrap(),
            events: stored(&bytes),
        };
        assert_eq!(unpack(&batch).unwrap(), list.events);
        let bomb = Batch { events: bomb(4000), events_bytes: 4 << 20, ..batch };
        assert!(matches!(unpack(&bomb), Err(BatchError::Packing(_))));
    }
}
