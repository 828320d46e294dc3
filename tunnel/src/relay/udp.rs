//! A datagram socket and a frame stream.

use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kvpn_proto::flow::Frame;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until};

use super::{FrameStream, RelayError, Transferred};

/// The largest UDP payload: over IPv6 without jumbograms.
const MAX_DATAGRAM: usize = 65_527;

/// Copies between a connected UDP socket and an already opened frame stream,
/// one datagram a frame, until either end says that it is done or nothing
/// passed for `idle`.
pub async fn splice_udp(
    socket: UdpSocket,
    frames: FrameStream,
    idle: Duration,
) -> Result<Transferred, RelayError> {
    let FrameStream {
        sender,
        mut receiver,
    } = frames;
    let mut moved = Transferred::default();
    let mut buffer = BytesMut::new();
    // What the other end has not taken yet. Its own datagrams need not wait for
    // that, and the kernel drops what else comes meanwhile.
    let mut waiting: Option<Bytes> = None;
    let expiry = sleep_until(Instant::now() + idle);
    tokio::pin!(expiry);
    loop {
        if buffer.capacity() < MAX_DATAGRAM {
            buffer.reserve(4 * MAX_DATAGRAM);
        }
        let mut room = (&mut buffer).limit(MAX_DATAGRAM);
        let datagram = Frame::Data(waiting.clone().unwrap_or_default());
        tokio::select! {
            () = &mut expiry => {
                sender.send(Frame::Fin).await?;
                break;
            }
            taken = sender.send(datagram), if waiting.is_some() => {
                taken?;
                waiting = None;
            }
            received = socket.recv_buf(&mut room), if waiting.is_none() => match received {
                Ok(length) => {
                    moved.sent += length as u64;
                    waiting = Some(buffer.split().freeze());
                }
                Err(error) => {
                    sender.reset();
                    return Err(RelayError::Local(error));
                }
            },
            data = receiver.data() => {
                let Some(datagram) = data? else { break };
                match socket.send(&datagram).await {
                    Ok(length) => moved.received += length as u64,
                    Err(error) if is_fatal(&error) => {
                        sender.reset();
                        return Err(RelayError::Local(error));
                    }
                    Err(error) => tracing::debug!(%error, "datagram dropped"),
                }
            }
        }
        expiry.as_mut().reset(Instant::now() + idle);
    }
    let frames = FrameStream { sender, receiver };
    frames.finish().await;
    Ok(moved)
}

/// Tells an answer of the network from a datagram that merely does not fit.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}
