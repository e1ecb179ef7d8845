//! Messages on a stream: a 4-byte big-endian length, then a protobuf message. The length is checked
//! before anything is allocated.

use crate::limits::FRAME_BYTES_MAX;
use prost::Message;

/// Bytes before the body of a frame.
pub const HEADER_BYTES: usize = 4;

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
        Self { buffer: Vec::new(), frame_bytes_max }
    }

    /// Takes what arrived. Call [`Decoder::next`] until it gives nothing before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it has arrived.
    ///
    /// # Errors
    /// [`FrameError`] when the stream breaks the format; the decoder is of no more use then.
    #[allow(clippy::should_implement_trait)] // it fails, and it is generic over what it gives
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = body_length(*header, self.frame_bytes_max)?;
        let Some(body) = self.buffer.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(None) };
        let message = M::decode(body)?;
        self.buffer.drain(..HEADER_BYTES + length);
        Ok(Some(message))
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
}
