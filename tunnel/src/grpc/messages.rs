//! Frames as the messages of a gRPC stream, without copying what they carry.
//!
//! tonic's codecs copy every message once to encode it and twice to decode it,
//! which is a tenth of what a flow costs. Here the bytes of a `data` frame stay
//! where they are: out as an HTTP/2 chunk of their own, in as a slice of the
//! chunk that they came in. On the wire it is the same gRPC (its "PROTOCOL-HTTP2"
//! page, Length-Prefixed-Message).

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kvpn_proto::flow::Frame;
use kvpn_proto::v1;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// Octets before each message: a flag and a length.
const PREFIX: usize = 5;

/// The longest message that is taken, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// Field numbers of the payloads in `Frame`.
const DATA: u32 = 4;
const WHOLE: u32 = 7;

/// Octets of a message that tell how long its payload is: a key and a length.
const MAX_HEAD: usize = 6;

/// Up to which length a payload is copied, to spare it a chunk of its own.
const SMALL: usize = 4 << 10;

/// What is wrong with a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum BadMessage {
    #[error("a message of {0} bytes")]
    TooLong(usize),
    #[error("a compressed message")]
    Compressed,
    #[error("a malformed message: {0}")]
    Malformed(String),
}

/// Appends a frame's message to a chunk. What a large frame carries is returned
/// instead, to follow as a chunk of its own.
pub(super) fn encode(frame: Frame, chunk: &mut BytesMut) -> Option<Bytes> {
    match frame {
        Frame::Data(payload) => encode_payload(DATA, payload, chunk),
        Frame::Whole(payload) => encode_payload(WHOLE, payload, chunk),
        Frame::Open(_) | Frame::Opened | Frame::Failed(_) | Frame::Fin | Frame::Reset => {
            let message = v1::Frame::from(frame);
            begin(message.encoded_len(), chunk);
            // A BytesMut has room for anything.
            let _ = message.encode(chunk);
            None
        }
    }
}

fn encode_payload(field: u32, payload: Bytes, chunk: &mut BytesMut) -> Option<Bytes> {
    let length = payload.len() as u64;
    begin(
        key_len(field) + encoded_len_varint(length) + payload.len(),
        chunk,
    );
    encode_key(field, WireType::LengthDelimited, chunk);
    encode_varint(length, chunk);
    if payload.len() > SMALL {
        return Some(payload);
    }
    chunk.put_slice(&payload);
    None
}

fn begin(length: usize, chunk: &mut BytesMut) {
    chunk.reserve(PREFIX + length.min(SMALL + MAX_HEAD));
    chunk.put_u8(0);
    chunk.put_u32(length as u32);
}

/// Puts messages together again from the chunks of a stream.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    chunks: VecDeque<Bytes>,
    length: usize,
    next: Option<Expected>,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// A message of that length, of which nothing more is known yet.
    Message(usize),
    /// A payload of that length.
    Payload { field: u32, length: usize },
}

impl Decoder {
    pub(super) fn push(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        if chunk.has_remaining() {
            self.chunks.push_back(chunk);
        }
    }

    /// Whether nothing is left of an unfinished message.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0 && self.next.is_none()
    }

    /// The next frame. `None` when more chunks are needed.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, BadMessage> {
        loop {
            let frame = match self.next {
                None => {
                    if self.length < PREFIX {
                        return Ok(None);
                    }
                    let mut prefix = self.take(PREFIX);
                    if prefix.get_u8() != 0 {
                        return Err(BadMessage::Compressed);
                    }
                    let length = prefix.get_u32() as usize;
                    if length > MAX_MESSAGE {
                        return Err(BadMessage::TooLong(length));
                    }
                    self.next = Some(Expected::Message(length));
                    continue;
                }
                Some(Expected::Message(length)) => {
                    if self.length < length.min(MAX_HEAD) {
                        return Ok(None);
                    }
                    if let Some((field, head, payload)) = self.payload(length) {
                        drop(self.take(head));
                        self.next = Some(Expected::Payload {
                            field,
                            length: payload,
                        });
                        continue;
                    }
                    if self.length < length {
                        return Ok(None);
                    }
                    let malformed = |error: String| BadMessage::Malformed(error);
                    let message = v1::Frame::decode(self.take(length))
                        .map_err(|error| malformed(error.to_string()))?;
                    Frame::try_from(message).map_err(|error| malformed(error.to_string()))?
                }
                Some(Expected::Payload { length, .. }) if self.length < length => return Ok(None),
                Some(Expected::Payload { field, length }) => {
                    let payload = self.take(length);
                    if field == WHOLE {
                        Frame::Whole(payload)
                    } else {
                        Frame::Data(payload)
                    }
                }
            };
            self.next = None;
            return Ok(Some(frame));
        }
    }

    /// When the message of that length is nothing but one payload: its field,
    /// and the lengths of the payload's head and of itself.
    fn payload(&self, length: usize) -> Option<(u32, usize, usize)> {
        let mut head = [0; MAX_HEAD];
        let octets = self.chunks.iter().flat_map(|chunk| chunk.iter());
        for (place, octet) in head.iter_mut().zip(octets) {
            *place = *octet;
        }
        let mut rest = &head[..length.min(MAX_HEAD)];
        let (field, wire_type) = prost::encoding::decode_key(&mut rest).ok()?;
        if wire_type != WireType::LengthDelimited || ![DATA, WHOLE].contains(&field) {
            return None;
        }
        let payload = usize::try_from(prost::encoding::decode_varint(&mut rest).ok()?).ok()?;
        let head = length.min(MAX_HEAD) - rest.len();
        (head + payload == length).then_some((field, head, payload))
    }

    /// Takes bytes that are there, as a slice of their chunk when they lie in
    /// one.
    fn take(&mut self, length: usize) -> Bytes {
        self.length -= length;
        match self.chunks.front_mut() {
            Some(chunk) if chunk.len() > length => return chunk.split_to(length),
            Some(chunk) if chunk.len() == length => {
                return self.chunks.pop_front().unwrap_or_default();
            }
            Some(_) | None => {}
        }
        let mut whole = BytesMut::with_capacity(length);
        while let Some(chunk) = self.chunks.front_mut()
            && whole.len() < length
        {
            let part = chunk.split_to(chunk.len().min(length - whole.len()));
            whole.put_slice(&part);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        whole.freeze()
    }
}

#[cfg(test)]
mod tests {
    use kvpn_proto::flow::{DialError, DialFailure, OpenTarget};
    use proptest::prelude::*;

    use super::*;

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Open(OpenTarget::Dial("d1".into())),
            Frame::Opened,
            Frame::Failed(DialFailure::new(DialError::Refused, "connection refused")),
            Frame::Data(Bytes::new()),
            Frame::Data(Bytes::from_static(b"hello")),
            Frame::Data(vec![7; SMALL].into()),
            Frame::Data(vec![8; 200 << 10].into()),
            Frame::Whole(vec![9; 9_000].into()),
            Frame::Fin,
            Frame::Reset,
        ]
    }

    fn wire(frames: Vec<Frame>) -> Vec<u8> {
        let mut wire = Vec::new();
        for frame in frames {
            let mut chunk = BytesMut::new();
            let payload = encode(frame, &mut chunk);
            wire.extend_from_slice(&chunk);
            wire.extend_from_slice(&payload.unwrap_or_default());
        }
        wire
    }

    fn read(chunks: impl IntoIterator<Item = Bytes>) -> Result<Vec<Frame>, BadMessage> {
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            while let Some(frame) = decoder.next()? {
                frames.push(frame);
            }
        }
        assert!(decoder.is_empty());
        Ok(frames)
    }

    #[test]
    fn it_is_the_grpc_that_tonic_speaks() {
        for frame in frames() {
            let message = v1::Frame::from(frame.clone()).encode_to_vec();
            let mut expected = vec![0];
            expected.extend_from_slice(&(message.len() as u32).to_be_bytes());
            expected.extend_from_slice(&message);
            assert_eq!(wire(vec![frame]), expected);
        }
    }

    #[test]
    fn a_large_payload_is_not_copied() {
        let payload = Bytes::from(vec![8; 100 << 10]);
        let mut head = BytesMut::new();
        let second = encode(Frame::Data(payload.clone()), &mut head).unwrap();
        assert_eq!(second.as_ptr(), payload.as_ptr());
        let Some(Frame::Data(received)) = read([head.freeze(), second]).unwrap().pop() else {
            panic!("no data");
        };
        assert_eq!(received.as_ptr(), payload.as_ptr());
    }

    #[test]
    fn bad_messages_are_told() {
        let bad = |wire: &'static [u8]| read([Bytes::from_static(wire)]).unwrap_err();
        assert_eq!(bad(&[1, 0, 0, 0, 0]), BadMessage::Compressed);
        assert_eq!(bad(&[0, 1, 0, 0, 0]), BadMessage::TooLong(1 << 24));
        assert!(matches!(
            bad(&[0, 0, 0, 0, 1, 0xff]),
            BadMessage::Malformed(_)
        ));
        assert!(matches!(bad(&[0, 0, 0, 0, 0]), BadMessage::Malformed(_)));
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(cuts in prop::collection::vec(1_usize..70_000, 1..40)) {
            let mut wire = Bytes::from(wire(frames()));
            let mut chunks = Vec::new();
            for cut in cuts.into_iter().cycle() {
                if wire.is_empty() {
                    break;
                }
                chunks.push(wire.split_to(cut.min(wire.len())));
            }
            prop_assert_eq!(read(chunks).unwrap(), frames());
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            for chunk in bytes.chunks(7) {
                decoder.push(Bytes::copy_from_slice(chunk));
                while let Ok(Some(_)) = decoder.next() {}
            }
        }
    }
}
