//! The byte stream of one forwarded port: WebSocket messages whose first byte
//! names a channel, as in Kubernetes' `v4.channel.k8s.io`.
//!
//! Channel 0 is the port's data, channel 1 what went wrong with it. The first
//! message of each only repeats the port's number.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::{self, Message};

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// The most bytes that one message carries.
const MAX_MESSAGE: usize = 256 << 10;

/// A forwarded port over a WebSocket.
pub(super) struct PortChannel<S> {
    socket: S,
    /// Which channels have had their first message.
    greeted: [bool; 2],
    unread: Bytes,
}

/// What a message means.
#[derive(Debug, PartialEq, Eq)]
enum Incoming {
    Data(Bytes),
    /// Nothing for the reader.
    Other,
    End,
}

impl<S> PortChannel<S> {
    pub(super) fn new(socket: S) -> Self {
        Self {
            socket,
            greeted: [false; 2],
            unread: Bytes::new(),
        }
    }

    fn interpret(&mut self, message: Message) -> io::Result<Incoming> {
        let mut payload = match message {
            Message::Binary(payload) => payload,
            Message::Close(_) => return Ok(Incoming::End),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Ok(Incoming::Other),
            Message::Text(_) => return Err(broken("the API server sent text")),
        };
        if payload.is_empty() {
            return Err(broken("the API server sent a message without a channel"));
        }
        let channel = payload.get_u8();
        let Some(greeted) = self.greeted.get_mut(usize::from(channel)) else {
            return Err(broken("the API server sent something for another port"));
        };
        if !*greeted {
            *greeted = true;
            return Ok(Incoming::Other);
        }
        match channel {
            ERROR if !payload.is_empty() => Err(io::Error::other(
                String::from_utf8_lossy(&payload).trim().to_owned(),
            )),
            DATA if !payload.is_empty() => Ok(Incoming::Data(payload)),
            _ => Ok(Incoming::Other),
        }
    }
}

impl<S> AsyncRead for PortChannel<S>
where
    S: Stream<Item = Result<Message, tungstenite::Error>> + Unpin,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            let Some(message) = ready!(self.socket.poll_next_unpin(cx)) else {
                return Poll::Ready(Ok(()));
            };
            match self.interpret(message.map_err(io::Error::other)?)? {
                Incoming::Data(data) => self.unread = data,
                Incoming::Other => {}
                Incoming::End => return Poll::Ready(Ok(())),
            }
        }
        let length = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S> AsyncWrite for PortChannel<S>
where
    S: Sink<Message, Error = tungstenite::Error> + Unpin,
{
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    /// One message for all, since each costs both ends a wake-up.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.socket.poll_ready_unpin(cx)).map_err(io::Error::other)?;
        let all: usize = bufs.iter().map(|buf| buf.len()).sum();
        let length = all.min(MAX_MESSAGE);
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut message = Vec::with_capacity(1 + length);
        message.push(DATA);
        for buf in bufs {
            let room = 1 + length - message.len();
            message.extend_from_slice(&buf[..buf.len().min(room)]);
        }
        self.socket
            .start_send_unpin(Message::binary(message))
            .map_err(io::Error::other)?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_flush_unpin(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_close_unpin(cx).map_err(io::Error::other)
    }
}

fn broken(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::channel::mpsc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn channel() -> PortChannel<()> {
        PortChannel::new(())
    }

    fn message(channel: u8, payload: &[u8]) -> Message {
        let mut bytes = vec![channel];
        bytes.extend_from_slice(payload);
        Message::binary(bytes)
    }

    #[test]
    fn the_first_message_of_each_channel_is_no_data() {
        let mut channel = channel();
        let port = 8443_u16.to_le_bytes();
        for message in [message(DATA, &port), message(ERROR, &port)] {
            assert_eq!(channel.interpret(message).unwrap(), Incoming::Other);
        }
        assert_eq!(
            channel.interpret(message(DATA, b"abc")).unwrap(),
            Incoming::Data(Bytes::from_static(b"abc"))
        );
    }

    #[test]
    fn an_error_of_the_kubelet_ends_the_stream_with_its_words() {
        let mut channel = channel();
        channel.interpret(message(ERROR, &[0, 0])).unwrap();
        let error = channel
            .interpret(message(ERROR, b"connection refused\n"))
            .unwrap_err();
        assert_eq!(error.to_string(), "connection refused");
    }

    #[test]
    fn nonsense_is_an_error_and_never_data() {
        for message in [
            message(2, b"x"),
            Message::binary(vec![]),
            Message::text("x"),
        ] {
            assert!(channel().interpret(message).is_err());
        }
        for message in [message(DATA, b""), Message::Ping(Bytes::new())] {
            assert_eq!(channel().interpret(message).unwrap(), Incoming::Other);
        }
        assert_eq!(
            channel().interpret(Message::Close(None)).unwrap(),
            Incoming::End
        );
    }

    #[tokio::test]
    async fn data_is_read_in_whatever_pieces_the_reader_likes() {
        let messages = [
            message(DATA, &[0, 0]),
            message(DATA, b"hello "),
            message(DATA, b"world"),
        ];
        let mut channel = PortChannel::new(futures::stream::iter(messages.map(Ok)));
        let mut text = [0; 11];
        for byte in &mut text {
            *byte = channel.read_u8().await.unwrap();
        }
        assert_eq!(&text, b"hello world");
        assert_eq!(channel.read(&mut text).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_written_at_once_goes_in_one_message_of_bounded_size() {
        let (sender, messages) = mpsc::unbounded();
        let mut channel =
            PortChannel::new(sender.sink_map_err(|_| tungstenite::Error::ConnectionClosed));
        let parts = [io::IoSlice::new(b"ab"), io::IoSlice::new(b"c")];
        assert_eq!(channel.write_vectored(&parts).await.unwrap(), 3);
        let long = vec![7; MAX_MESSAGE + 9];
        assert_eq!(channel.write(&long).await.unwrap(), MAX_MESSAGE);
        drop(channel);
        let sent: Vec<Message> = messages.collect().await;
        assert_eq!(sent[0], message(DATA, b"abc"));
        assert_eq!(sent[1].len(), 1 + MAX_MESSAGE);
    }
}
