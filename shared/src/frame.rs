//! Messages on a stream: a 4-byte big-endian length, then a protobuf message. The length is checked
//! before anything is allocated.

use crate::bounds::{self, BoundsError, Shape};
use crate::limits::FRAME_BYTES_MAX;
use prost::Message;

/// Bytes before the body of a frame.
pub const HEADER_BYTES: usize = 4;
/// A buffer that is empty keeps no more room than this: ten thousand agents have three each. Bytes.
const ROOM_KEPT_BYTES_MAX: usize = 4 << 10;

/// A stream that does not follow the format. The connection it came from can't be trusted any more.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced length is over the limit.
    #[error("a frame of {bytes} bytes was announced, at most {max} are allowed")]
    TooLarge {
        /// What was announced.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// The body is not the message that belongs here.
    #[error("a frame could not be read: {0}")]
    Unreadable(#[from] prost::DecodeError),
    /// The body would not fit its limits in memory.
    #[error("a frame was not read: {0}")]
    Bounds(#[from] BoundsError),
}

/// The message as it goes on a stream, header first.
pub fn encode(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message.encode_raw(&mut bytes);
    bytes
}

/// The length that a header announces, in bytes, when `max` allows it.
///
/// # Errors
/// [`FrameError::TooLarge`] when it does not.
pub fn body_length(header: [u8; HEADER_BYTES], max: usize) -> Result<usize, FrameError> {
    let bytes = u32::from_be_bytes(header) as usize;
    if bytes > max { Err(FrameError::TooLarge { bytes, max }) } else { Ok(bytes) }
}

/// Cuts a stream of bytes, as it comes, into messages. Holds at most one frame.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// What was given out already.
    start: usize,
    frame_bytes_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new(FRAME_BYTES_MAX)
    }
}

impl Decoder {
    /// A decoder that refuses frames over `frame_bytes_max`.
    #[must_use]
    pub fn new(frame_bytes_max: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, frame_bytes_max }
    }

    /// Takes what arrived. Call [`Decoder::next`] until it gives nothing before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        // Once for everything that was pushed before, not once for every frame in it.
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it has arrived.
    ///
    /// # Errors
    /// [`FrameError`] when the stream breaks the format; the decoder is of no more use then.
    #[allow(clippy::should_implement_trait)] // it fails, and it is generic over what it gives
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        self.take(None)
    }

    /// As [`Decoder::next`], for a peer that is not trusted: nothing is decoded that is over the lists of `shape`.
    ///
    /// # Errors
    /// As there.
    pub fn next_within<M: Message + Default>(&mut self, shape: &Shape) -> Result<Option<M>, FrameError> {
        self.take(Some(shape))
    }

    /// The size of the frame that has begun and is not whole, header included, as far as it is known. Bytes.
    #[must_use]
    pub fn begun(&self) -> Option<usize> {
        let waiting = self.waiting();
        let announced = waiting.first_chunk::<HEADER_BYTES>().map_or(0, |header| u32::from_be_bytes(*header));
        (!waiting.is_empty()).then(|| HEADER_BYTES + (announced as usize).min(self.frame_bytes_max))
    }

    fn take<M: Message + Default>(&mut self, shape: Option<&Shape>) -> Result<Option<M>, FrameError> {
        let waiting = self.waiting();
        let Some(header) = waiting.first_chunk::<HEADER_BYTES>() else { return Ok(self.rest()) };
        let length = body_length(*header, self.frame_bytes_max)?;
        let Some(body) = waiting.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(None) };
        if let Some(shape) = shape {
            bounds::check(shape, body)?;
        }
        let message = M::decode(body)?;
        self.start += HEADER_BYTES + length;
        Ok(Some(message))
    }

    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }

    /// Nothing whole is left: a buffer that is empty gives its room back.
    fn rest<M>(&mut self) -> Option<M> {
        if self.waiting().is_empty() {
            self.start = 0;
            self.buffer.clear();
            self.buffer.shrink_to(ROOM_KEPT_BYTES_MAX);
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{Ack, Nack};

    #[test]
    fn messages_survive_any_cutting() {
        let acks: Vec<Ack> = (0..50).map(|seq| Ack { class: 1, epoch: 9, seq }).collect();
        let stream: Vec<u8> = acks.iter().flat_map(encode).collect();
        for step in 1..40 {
            let mut decoder = Decoder::default();
            let mut got: Vec<Ack> = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(piece);
                while let Some(ack) = decoder.next().unwrap() {
                    got.push(ack);
                }
            }
            assert_eq!(got, acks, "pieces of {step} bytes");
        }
    }

    #[test]
    fn a_huge_length_is_refused_before_its_body_comes() {
        let mut decoder = Decoder::new(1000);
        decoder.push(&1001u32.to_be_bytes());
        assert!(matches!(decoder.next::<Ack>(), Err(FrameError::TooLarge { bytes: 1001, max: 1000 })));
    }

    #[test]
    fn garbage_in_a_frame_is_an_error() {
        let mut decoder = Decoder::default();
        decoder.push(&[0, 0, 0, 3, 0xff, 0xff, 0xff]);
        assert!(matches!(decoder.next::<Nack>(), Err(FrameError::Unreadable(_))));
    }

    #[test]
    fn an_empty_decoder_gives_back_the_room_of_a_large_frame() {
        let large = crate::wire::ToAgent {
            message: Some(crate::wire::to_agent::Message::Refuse(crate::wire::Refuse {
                code: 1,
                reason: "x".repeat(900_000),
            })),
        };
        let mut decoder = Decoder::default();
        decoder.push(&encode(&large));
        decoder.push(&encode(&large)[..10]);
        assert_eq!(decoder.begun(), Some(encode(&large).len()));
        assert_eq!(decoder.next::<crate::wire::ToAgent>().unwrap(), Some(large.clone()));
        decoder.push(&encode(&large)[10..]);
        assert_eq!(decoder.next::<crate::wire::ToAgent>().unwrap(), Some(large));
        assert_eq!(decoder.next::<crate::wire::ToAgent>().unwrap(), None);
        assert_eq!(decoder.begun(), None);
        assert!(decoder.buffer.capacity() <= ROOM_KEPT_BYTES_MAX, "{}", decoder.buffer.capacity());
    }

    #[test]
    fn a_frame_of_many_empty_entries_is_not_decoded() {
        let health = vec![crate::wire::Health::default(); 60_000];
        let status = crate::wire::Status { health, ..Default::default() };
        let message = Some(crate::wire::to_collector::Message::Status(status));
        let mut decoder = Decoder::default();
        decoder.push(&encode(&crate::wire::ToCollector { message }));
        let error =
            decoder.next_within::<crate::wire::ToCollector>(&crate::bounds::TO_COLLECTOR).unwrap_err();
        assert!(error.to_string().contains("health has more entries than 64"), "{error}");
    }
}
