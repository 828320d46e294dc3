//! Frames as a gRPC stream, in whatever chunks a peer makes of it.

use bytes::{Bytes, BytesMut};
use kvpn_proto::flow::Frame;
use kvpn_proto::v1;
use prost::Message;

use crate::input::Input;
use grpc::Decoder;

#[path = "../../../tunnel/src/grpc/messages.rs"]
mod grpc;

/// The longest message that is taken, in bytes.
const LONGEST: usize = 1 << 20;

/// How a stream ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Complete,
    Cut,
    BadMessage,
}

/// Settings, the lengths of chunks, and then the stream, or what its messages
/// are. However it is cut, it is what prost makes of the whole, and so is what
/// is sent on.
pub fn frames(bytes: &[u8]) {
    let mut input = Input(bytes);
    let has_prefixes = input.byte() & 1 == 0;
    let lengths = input.some(15);
    let stream = if has_prefixes {
        input.0.to_vec()
    } else {
        with_prefixes(input)
    };
    let expected = prost_frames(&stream);
    assert_eq!(frames_of(cut(stream, lengths)), expected);
    let frames = expected.0;
    assert_eq!(frames_of(encode(&frames)), (frames, End::Complete));
}

/// A prefix and a message each, of a length that the input says.
fn with_prefixes(mut input: Input<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !input.is_empty() {
        let message = input.some(255);
        stream.push(0);
        stream.extend_from_slice(&(message.len() as u32).to_be_bytes());
        stream.extend_from_slice(message);
    }
    stream
}

/// Chunks of these lengths, over and over; one of all when there are none.
fn cut(stream: Vec<u8>, lengths: &[u8]) -> Vec<Bytes> {
    let mut rest = Bytes::from(stream);
    let mut chunks = Vec::new();
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let length = usize::from(*length) + 1;
        chunks.push(rest.split_to(length.min(rest.len())));
    }
    chunks.push(rest);
    chunks
}

/// What arrives on a connection.
fn frames_of(chunks: Vec<Bytes>) -> (Vec<Frame>, End) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, End::BadMessage),
            }
        }
    }
    if decoder.is_empty() {
        (frames, End::Complete)
    } else {
        (frames, End::Cut)
    }
}

/// The same by prost, of the stream as a whole (gRPC's "PROTOCOL-HTTP2" page,
/// Length-Prefixed-Message).
fn prost_frames(mut stream: &[u8]) -> (Vec<Frame>, End) {
    let mut frames = Vec::new();
    while !stream.is_empty() {
        let Some((prefix, rest)) = stream.split_first_chunk::<5>() else {
            return (frames, End::Cut);
        };
        let [flag, length @ ..] = *prefix;
        let length = u32::from_be_bytes(length) as usize;
        if flag != 0 || length > LONGEST {
            return (frames, End::BadMessage);
        }
        let Some((message, rest)) = rest.split_at_checked(length) else {
            return (frames, End::Cut);
        };
        match v1::Frame::decode(message).map(Frame::try_from) {
            Ok(Ok(frame)) => frames.push(frame),
            Ok(Err(_)) | Err(_) => return (frames, End::BadMessage),
        }
        stream = rest;
    }
    (frames, End::Complete)
}

/// As frames are sent: small ones share a chunk.
fn encode(frames: &[Frame]) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    let mut chunk = BytesMut::new();
    for frame in frames {
        if let Some(payload) = grpc::encode(frame.clone(), &mut chunk) {
            chunks.push(chunk.split().freeze());
            chunks.push(payload);
        }
    }
    chunks.push(chunk.freeze());
    chunks
}
