//! Frames: a u32 little-endian payload length, then a postcard payload.
//!
//! A length above [`MAX_FRAME_BYTES`] is refused before anything is read, and a payload is read
//! as it arrives, so that a lying length costs no memory.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest payload, in bytes. Senders split what is larger (see [`crate::LogitsRows`]).
pub const MAX_FRAME_BYTES: usize = 64 << 20;

const PREFIX_BYTES: usize = 4;

/// Why a frame could not be sent or received. The stream is unusable afterwards.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length prefix, or the message to be sent, is above the cap.
    #[error("a frame of {len_bytes} bytes is above the limit of {MAX_FRAME_BYTES} bytes")]
    TooLarge {
        /// The payload length in bytes.
        len_bytes: usize,
    },
    /// The stream ended inside a frame.
    #[error("the channel closed inside a message")]
    Truncated,
    /// The payload is not a message of this version.
    #[error("a message could not be decoded: {0}")]
    Malformed(#[source] postcard::Error),
    /// The payload holds more than one message.
    #[error("a message is followed by {extra_bytes} bytes that do not belong to it")]
    TrailingBytes {
        /// How many bytes were left over.
        extra_bytes: usize,
    },
    /// The channel failed.
    #[error("the channel failed: {0}")]
    Io(#[from] io::Error),
}

/// Encodes and sends one message with a single write, then flushes.
///
/// Nothing is sent when the message is too large.
pub fn write_frame<T: Serialize>(mut writer: impl Write, message: &T) -> Result<(), FrameError> {
    let mut bytes =
        postcard::to_extend(message, vec![0; PREFIX_BYTES]).map_err(FrameError::Malformed)?;
    let len_bytes = bytes.len() - PREFIX_BYTES;
    let prefix = match u32::try_from(len_bytes) {
        Ok(prefix) if len_bytes <= MAX_FRAME_BYTES => prefix,
        _ => return Err(FrameError::TooLarge { len_bytes }),
    };
    bytes[..PREFIX_BYTES].copy_from_slice(&prefix.to_le_bytes());
    writer.write_all(&bytes)?;
    writer.flush()?;
    Ok(())
}

/// Receives one message; `None` when the stream has ended between two frames.
pub fn read_frame<T: DeserializeOwned>(mut reader: impl Read) -> Result<Option<T>, FrameError> {
    let mut prefix = Vec::with_capacity(PREFIX_BYTES);
    reader.by_ref().take(PREFIX_BYTES as u64).read_to_end(&mut prefix)?;
    let prefix: [u8; PREFIX_BYTES] = match prefix.try_into() {
        Ok(prefix) => prefix,
        Err(partial) if partial.is_empty() => return Ok(None),
        Err(_) => return Err(FrameError::Truncated),
    };
    let len_bytes = u32::from_le_bytes(prefix) as usize;
    if len_bytes > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge { len_bytes });
    }
    let mut payload = Vec::new();
    reader.take(len_bytes as u64).read_to_end(&mut payload)?;
    if payload.len() < len_bytes {
        return Err(FrameError::Truncated);
    }
    match postcard::take_from_bytes(&payload) {
        Ok((message, [])) => Ok(Some(message)),
        Ok((_, rest)) => Err(FrameError::TrailingBytes { extra_bytes: rest.len() }),
        Err(error) => Err(FrameError::Malformed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Event, LogitsRows, RequestId};
    use proptest::prelude::*;

    fn frame<T: Serialize>(message: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, message).unwrap();
        bytes
    }

    fn survives<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(
        messages: &[T],
    ) -> Result<(), TestCaseError> {
        let bytes: Vec<u8> = messages.iter().flat_map(frame).collect();
        let mut reader = bytes.as_slice();
        for message in messages {
            let back: T = read_frame(&mut reader).unwrap().unwrap();
            prop_assert_eq!(&back, message);
        }
        prop_assert!(read_frame::<T>(&mut reader).unwrap().is_none());
        Ok(())
    }

    proptest! {
        #[test]
        fn any_commands_survive_in_order(sent in prop::collection::vec(any::<Command>(), 0..4)) {
            survives(&sent)?;
        }

        #[test]
        fn any_events_survive_in_order(messages in prop::collection::vec(any::<Event>(), 0..4)) {
            survives(&messages)?;
        }

        #[test]
        fn a_cut_frame_is_truncated(event: Event, cut in any::<prop::sample::Index>()) {
            let mut bytes = frame(&event);
            bytes.truncate(1 + cut.index(bytes.len() - 1));
            let result = read_frame::<Event>(bytes.as_slice());
            prop_assert!(matches!(result, Err(FrameError::Truncated)), "{result:?}");
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let framed = [&(bytes.len() as u32).to_le_bytes()[..], &bytes].concat();
            for input in [&bytes, &framed] {
                let _ = read_frame::<Command>(input.as_slice());
                let _ = read_frame::<Event>(input.as_slice());
            }
        }

        #[test]
        fn a_flipped_bit_never_panics(
            event: Event,
            at in any::<prop::sample::Index>(),
            bit in 0..8,
        ) {
            let mut bytes = frame(&event);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            let _ = read_frame::<Event>(bytes.as_slice());
        }
    }

    #[test]
    fn nan_and_infinite_logits_keep_their_bits() {
        let values = vec![f32::NAN, f32::NEG_INFINITY, -0.0, f32::from_bits(0x7fc0_1234)];
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let sent = LogitsRows { id: RequestId(1), first_row: 0, n_cols: 2, values };
        let bytes = frame(&Event::LogitsRows(sent.clone()));
        let Some(Event::LogitsRows(back)) = read_frame(bytes.as_slice()).unwrap() else {
            panic!("another event came back")
        };
        assert_eq!(bits(&back.values), bits(&sent.values));
    }

    #[test]
    fn an_oversized_length_is_refused_before_reading() {
        struct OnlyPrefix(usize);
        impl Read for OnlyPrefix {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                assert!(self.0 < PREFIX_BYTES, "read on after a refused length");
                buf[0] = 0xff;
                self.0 += 1;
                Ok(1)
            }
        }
        let result = read_frame::<Command>(OnlyPrefix(0));
        assert!(matches!(result, Err(FrameError::TooLarge { len_bytes: 0xffff_ffff })));
    }

    #[test]
    fn a_lying_element_count_is_an_error_not_an_allocation() {
        // LogitsRows: variant, id, first_row, n_cols, then a count of 2^63 values that never come.
        let whole = postcard::to_stdvec(&Event::LogitsRows(LogitsRows {
            id: RequestId(0),
            first_row: 0,
            n_cols: 1,
            values: vec![],
        }))
        .unwrap();
        let mut payload = whole[..whole.len() - 1].to_vec();
        payload.extend([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        let framed = [&(payload.len() as u32).to_le_bytes()[..], &payload].concat();
        let result = read_frame::<Event>(framed.as_slice());
        assert!(matches!(result, Err(FrameError::Malformed(_))), "{result:?}");
    }

    #[test]
    fn a_message_above_the_cap_is_not_sent() {
        let rows = LogitsRows {
            id: RequestId(1),
            first_row: 0,
            n_cols: 1,
            values: vec![0.0; MAX_FRAME_BYTES / 4 + 1],
        };
        let mut sent = Vec::new();
        let result = write_frame(&mut sent, &Event::LogitsRows(rows));
        assert!(matches!(result, Err(FrameError::TooLarge { .. })));
        assert!(sent.is_empty());
    }

    #[test]
    fn bytes_after_a_message_are_refused() {
        let mut payload = postcard::to_stdvec(&Command::Shutdown).unwrap();
        payload.push(7);
        let framed = [&(payload.len() as u32).to_le_bytes()[..], &payload].concat();
        let result = read_frame::<Command>(framed.as_slice());
        assert!(matches!(result, Err(FrameError::TrailingBytes { extra_bytes: 1 })));
    }
}
