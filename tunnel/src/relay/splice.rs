//! A byte stream and a frame stream.

use bytes::{BufMut, BytesMut};
use kvpn_proto::flow::Frame;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;

use super::{
    FrameReceiver, FrameSender, FrameStream, MAX_DATA, RelayError, StreamLost, Transferred,
};

/// Room below which a fresh buffer is taken for the next read.
const MIN_READ: usize = 32 << 10;

/// Copies between a byte stream and an already opened frame stream until both
/// directions have ended. On an error the caller aborts the byte stream.
pub async fn splice<S>(io: S, frames: FrameStream) -> Result<Transferred, RelayError>
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
        Ok(((), ())) => {
            let frames = FrameStream { sender, receiver };
            frames.finish().await;
            Ok(moved)
        }
        Err(error) => {
            sender.reset();
            Err(error)
        }
    }
}

/// Copies as [`splice`] does, and aborts the connection with RST when the flow
/// did not end in order.
pub async fn splice_tcp(
    mut socket: TcpStream,
    frames: FrameStream,
) -> Result<Transferred, RelayError> {
    let outcome = splice(&mut socket, frames).await;
    if outcome.is_err()
        && let Err(error) = socket.set_zero_linger()
    {
        tracing::debug!(%error, "cannot abort the connection");
    }
    outcome
}

async fn send<S: AsyncRead>(
    mut reader: ReadHalf<S>,
    sender: &FrameSender,
    sent: &mut u64,
) -> Result<(), RelayError> {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < MIN_READ {
            buffer.reserve(MAX_DATA);
        }
        let mut room = (&mut buffer).limit(MAX_DATA);
        let count = tokio::select! {
            // The other half may wait for a reader that never comes, so this
            // one notices that the tunnel is gone.
            () = sender.closed() => return Err(StreamLost::new("the stream was cancelled").into()),
            count = reader.read_buf(&mut room) => count.map_err(RelayError::Local)?,
        };
        if count == 0 {
            return Ok(sender.send(Frame::Fin).await?);
        }
        *sent += count as u64;
        sender.send(Frame::Data(buffer.split().freeze())).await?;
    }
}

async fn receive<S: AsyncWrite>(
    mut writer: WriteHalf<S>,
    receiver: &mut FrameReceiver,
    received: &mut u64,
) -> Result<(), RelayError> {
    loop {
        let frame = receiver
            .recv()
            .await
            .unwrap_or_else(|| Err(StreamLost::new("the stream ended early")))?;
        match frame {
            Frame::Data(data) => {
                writer.write_all(&data).await.map_err(RelayError::Local)?;
                *received += data.len() as u64;
            }
            Frame::Fin => return writer.shutdown().await.map_err(RelayError::Local),
            Frame::Reset => return Err(RelayError::Reset),
            Frame::Open(_) => return Err(RelayError::Unexpected("open")),
            Frame::Opened => return Err(RelayError::Unexpected("opened")),
            Frame::Failed(_) => return Err(RelayError::Unexpected("failed")),
        }
    }
}
