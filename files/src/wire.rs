//! Messages on a byte stream, each after its length as a varint.

use std::io;

use bytes::{Buf, BytesMut};
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Bytes of the longest message that is taken.
const MAX_MESSAGE: usize = 2 << 20;

/// Bytes of messages that are written at once, unless one is longer.
const BATCH: usize = 256 << 10;

/// How much is asked of the stream at once, in bytes.
const READ: usize = 64 << 10;

/// The most bytes that a varint has.
const MAX_VARINT: usize = 10;

/// What comes from a stream.
pub(crate) struct Incoming<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(crate) fn new(io: R) -> Self {
        let buffer = BytesMut::new();
        Self { io, buffer }
    }

    /// Receives a message, the bytes of which are not copied; `None` at the end.
    pub(crate) async fn receive<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        self.receive_hearing(|| ()).await
    }

    /// The same; tells whenever some bytes of it have come.
    pub(crate) async fn receive_hearing<M: Message + Default>(
        &mut self,
        heard: impl Fn(),
    ) -> io::Result<Option<M>> {
        loop {
            if let Some(body) = take_frame(&mut self.buffer)? {
                return M::decode(body.freeze()).map(Some).map_err(invalid);
            }
            self.buffer.reserve(READ);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            heard();
        }
    }
}

/// Writes what is queued, and still wanted, until nobody can queue any more.
pub(crate) async fn send_all<W, M>(
    mut io: W,
    mut queue: mpsc::Receiver<M>,
    is_wanted: impl Fn(&M) -> bool,
) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
    M: Message,
{
    let mut buffer = BytesMut::new();
    while let Some(message) = queue.recv().await {
        buffer.clear();
        if is_wanted(&message) {
            encode(&message, &mut buffer)?;
        }
        while buffer.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            if is_wanted(&next) {
                encode(&next, &mut buffer)?;
            }
        }
        io.write_all(&buffer).await?;
        io.flush().await?;
    }
    io.shutdown().await
}

fn encode(message: &impl Message, buffer: &mut BytesMut) -> io::Result<()> {
    message
        .encode_length_delimited(buffer)
        .map_err(io::Error::other)
}

/// Takes the first whole message off the buffer.
fn take_frame(buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let mut head = &buffer[..];
    let length = match prost::decode_length_delimiter(&mut head) {
        Ok(length) => length,
        Err(_) if buffer.len() < MAX_VARINT => return Ok(None),
        Err(error) => return Err(invalid(error)),
    };
    let head = buffer.len() - head.len();
    if length > MAX_MESSAGE {
        return Err(invalid(format!("message of {length} bytes")));
    }
    if buffer.len() < head + length {
        buffer.reserve(head + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(head);
    Ok(Some(buffer.split_to(length)))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use kvpn_proto::v1::{FileWrite, FilesRequest, files_request::Op};

    use super::*;

    fn request(id: u64, size: usize) -> FilesRequest {
        FilesRequest {
            id,
            op: Some(Op::Write(FileWrite {
                handle: 1,
                offset: 0,
                data: vec![7; size].into(),
            })),
        }
    }

    #[tokio::test]
    async fn messages_of_all_sizes_arrive_in_order_through_a_narrow_stream() {
        let (ours, theirs) = tokio::io::duplex(100);
        let (queue, queued) = mpsc::channel(8);
        let sizes = [0, 1, 127, 128, 100_000, 1 << 20, 3];
        let sender = tokio::spawn(send_all(ours, queued, |_| true));
        let filler = tokio::spawn(async move {
            for (id, size) in sizes.into_iter().enumerate() {
                queue.send(request(id as u64, size)).await.unwrap();
            }
        });
        let mut incoming = Incoming::new(theirs);
        for (id, size) in sizes.into_iter().enumerate() {
            let message: FilesRequest = incoming.receive().await.unwrap().unwrap();
            assert_eq!(message, request(id as u64, size));
        }
        assert_eq!(incoming.receive::<FilesRequest>().await.unwrap(), None);
        filler.await.unwrap();
        sender.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn too_long_a_message_is_refused_before_it_is_read() {
        let (mut ours, theirs) = tokio::io::duplex(100);
        ours.write_all(&[0xff, 0xff, 0xff, 0xff, 0x0f])
            .await
            .unwrap();
        let error = Incoming::new(theirs).receive::<FilesRequest>().await;
        assert_eq!(
            error.unwrap_err().to_string(),
            "message of 4294967295 bytes"
        );
    }

    #[tokio::test]
    async fn stream_that_ends_within_a_message_is_an_error() {
        let (mut ours, theirs) = tokio::io::duplex(100);
        ours.write_all(&[5, 1, 2]).await.unwrap();
        drop(ours);
        let error = Incoming::new(theirs).receive::<FilesRequest>().await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
