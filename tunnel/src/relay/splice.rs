//! A byte stream and a frame stream.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kvpn_proto::flow::Frame;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use crate::turns;

use super::{
    FrameReceiver, FrameSender, FrameStream, MAX_DATA, RelayError, StreamLost, Transferred,
};

/// How much is read at once from a stream that says little, in bytes.
const MIN_READ: usize = 2 << 10;

/// Copies between a byte stream and an already opened frame stream until both
/// directions have ended. On an error the caller aborts the byte stream.
pub async fn splice<S>(io: S, frames: FrameStream) -> Result<Transferred, RelayError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (moved, frames) = copy(io, frames).await?;
    frames.finish().await;
    Ok(moved)
}

/// Copies as [`splice`] does, and aborts the connection with RST when the flow
/// did not end in order, be it that this future or the process was cut short.
pub async fn splice_tcp(
    mut socket: TcpStream,
    frames: FrameStream,
) -> Result<Transferred, RelayError> {
    abort_on_close(&socket, true);
    let (moved, frames) = copy(&mut socket, frames).await?;
    abort_on_close(&socket, false);
    frames.finish().await;
    Ok(moved)
}

/// Has the socket say RST when it is closed, by whatever it is closed; or no
/// longer.
pub fn abort_on_close(socket: &impl AsFd, abort: bool) {
    let linger = abort.then_some(Duration::ZERO);
    if let Err(error) = SockRef::from(socket).set_linger(linger) {
        tracing::debug!(%error, abort, "cannot choose how the connection ends");
    }
}

async fn copy<S>(io: S, frames: FrameStream) -> Result<(Transferred, FrameStream), RelayError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, writer) = tokio::io::split(io);
    let FrameStream {
        sender,
        mut receiver,
    } = frames;
    let mut moved = Transferred::default();
    let outcome = tokio::try_join!(
        send(reader, &sender, &mut moved.sent),
        receive(writer, &mut receiver, &mut moved.received),
    );
    match outcome {
        Ok(((), ())) => Ok((moved, FrameStream { sender, receiver })),
        Err(error) => {
            sender.reset();
            Err(error)
        }
    }
}

async fn send<S: AsyncRead>(
    mut reader: ReadHalf<S>,
    sender: &FrameSender,
    sent: &mut u64,
) -> Result<(), RelayError> {
    let mut size = MIN_READ;
    loop {
        let data = tokio::select! {
            // The other half may wait for a reader that never comes, so this
            // one notices that the tunnel is gone.
            () = sender.closed() => return Err(StreamLost::new("the stream was cancelled").into()),
            data = read(&mut reader, size) => data.map_err(RelayError::Local)?,
        };
        if data.is_empty() {
            return Ok(sender.send(Frame::Fin).await?);
        }
        *sent += data.len() as u64;
        size = next_size(size, data.len());
        turns::pay(data.len()).await;
        sender.send(Frame::Data(data)).await?;
    }
}

/// Reads as much as is there, up to `size` bytes; nothing at the end. While
/// there is nothing to read there is no buffer either: most flows wait.
async fn read<S: AsyncRead>(reader: &mut ReadHalf<S>, size: usize) -> io::Result<Bytes> {
    poll_fn(|cx| {
        let mut buffer = BytesMut::with_capacity(size);
        let mut room = (&mut buffer).limit(size);
        let read = pin!(reader.read_buf(&mut room)).poll(cx);
        read.map_ok(|_| buffer.freeze())
    })
    .await
}

/// Grows with a stream that fills what it is given, and shrinks with it too.
fn next_size(size: usize, read: usize) -> usize {
    if read == size {
        (size * 4).min(MAX_DATA)
    } else if read < size / 2 {
        read.next_power_of_two().max(MIN_READ)
    } else {
        size
    }
}

async fn receive<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    receiver: &mut FrameReceiver,
    received: &mut u64,
) -> Result<(), RelayError> {
    while let Some(data) = receiver.data().await? {
        turns::pay(data.len()).await;
        writer.write_all(&data).await.map_err(RelayError::Local)?;
        *received += data.len() as u64;
    }
    writer.shutdown().await.map_err(RelayError::Local)
}
