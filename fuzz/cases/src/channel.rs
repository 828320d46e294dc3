//! Messages of the API server about a port that it forwards.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};
use tokio_tungstenite::tungstenite::Message;

use crate::input::Input;
use port_channel::PortChannel;

#[path = "../../../daemon/src/session/transport/channel.rs"]
mod port_channel;

/// Messages on a WebSocket, read in pieces: the port's data comes out whole and
/// in order, up to what ends the stream.
pub fn channel(bytes: &[u8]) {
    let mut input = Input(bytes);
    let size = usize::from(input.byte()).max(1);
    let mut messages = Vec::new();
    while !input.is_empty() {
        messages.push(message(&mut input));
    }
    let (expected, fails) = outcome(&messages);
    let socket = futures::stream::iter(messages.into_iter().map(Ok));
    let mut channel = pin!(PortChannel::new(socket));
    let mut piece = vec![0; size];
    let mut got = Vec::new();
    let end = loop {
        let mut buffer = ReadBuf::new(&mut piece);
        let mut cx = Context::from_waker(Waker::noop());
        match channel.as_mut().poll_read(&mut cx, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                got.extend_from_slice(buffer.filled());
            }
            Poll::Ready(end) => break end,
            Poll::Pending => panic!("it waits for messages that are there"),
        }
    };
    assert_eq!(got, expected);
    assert_eq!(end.is_err(), fails);
}

fn message(input: &mut Input<'_>) -> Message {
    let kind = input.byte();
    let payload = input.some(255);
    match kind % 16 {
        0 => Message::Close(None),
        1 => Message::Ping(payload.to_vec().into()),
        2 => Message::text("text"),
        3 => Message::binary(payload.to_vec()),
        _ => Message::binary([&[(kind >> 4) & 1], payload].concat()),
    }
}

/// What the port has sent, and whether the stream ends with an error.
fn outcome(messages: &[Message]) -> (Vec<u8>, bool) {
    let mut data = Vec::new();
    let mut greeted = [false; 2];
    for message in messages {
        let payload = match message {
            Message::Binary(payload) => payload,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            Message::Close(_) => return (data, false),
            Message::Text(_) => return (data, true),
        };
        let Some((channel @ (0 | 1), rest)) = payload.split_first() else {
            return (data, true);
        };
        let is_first = !std::mem::replace(&mut greeted[usize::from(*channel)], true);
        match channel {
            _ if is_first || rest.is_empty() => {}
            0 => data.extend_from_slice(rest),
            _ => return (data, true),
        }
    }
    (data, false)
}
