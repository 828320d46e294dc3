//! The netstack's flows on tokio, with the system's clock.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use kvpn_proto::flow::{DialError, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::netstack::{Netstack, TcpFlow, UdpFlow};
use crate::relay::{self, FrameReceiver, FrameSender, FrameStream, RelayError, Transferred};

/// A TCP flow as a byte stream of tokio.
#[derive(Debug)]
pub struct HostStream {
    flow: TcpFlow,
}

impl HostStream {
    pub fn new(flow: TcpFlow) -> Self {
        Self { flow }
    }

    /// Sends RST to the host.
    pub fn reset(&self) {
        self.flow.reset(Instant::now());
    }
}

impl AsyncRead for HostStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.initialize_unfilled();
        self.flow
            .poll_read(cx, room, Instant::now())
            .map_ok(|length| buffer.advance(length))
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.flow.poll_write(cx, data, Instant::now())
    }

    /// Written bytes are on their way already.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.shutdown_write(Instant::now());
        Poll::Ready(Ok(()))
    }
}

/// Copies between an accepted TCP flow and an already opened frame stream; the
/// host hears RST when the flow does not end in order.
pub async fn splice_tcp(flow: TcpFlow, frames: FrameStream) -> Result<Transferred, RelayError> {
    let mut stream = HostStream::new(flow);
    let outcome = relay::splice(&mut stream, frames).await;
    if outcome.is_err() {
        stream.reset();
    }
    outcome
}

/// Copies between a UDP flow and an already opened frame stream until either
/// falls silent; the host hears "unreachable" when the flow was reset or lost.
pub async fn splice_udp(flow: UdpFlow, frames: FrameStream) -> Result<Transferred, RelayError> {
    let outcome = copy_datagrams(&flow, frames).await;
    match &outcome {
        Err(RelayError::Reset) => flow.unreachable(DialError::Refused, Instant::now()),
        Err(RelayError::Lost(_)) => flow.unreachable(DialError::TunnelLost, Instant::now()),
        Ok(_) | Err(RelayError::Unexpected(_) | RelayError::Local(_)) => {}
    }
    outcome
}

/// Neither direction waits for the other: while the far end takes nothing, the
/// flow's queue loses the oldest datagrams, and answers still arrive.
async fn copy_datagrams(flow: &UdpFlow, frames: FrameStream) -> Result<Transferred, RelayError> {
    let FrameStream {
        sender,
        mut receiver,
    } = frames;
    let mut moved = Transferred::default();
    tokio::select! {
        ended = send_datagrams(flow, &sender, &mut moved.sent) => ended?,
        ended = receive_datagrams(flow, &mut receiver, &mut moved.received) => ended?,
    }
    let frames = FrameStream { sender, receiver };
    frames.finish().await;
    Ok(moved)
}

async fn send_datagrams(
    flow: &UdpFlow,
    sender: &FrameSender,
    sent: &mut u64,
) -> Result<(), RelayError> {
    while let Some(datagram) = poll_fn(|cx| flow.poll_recv(cx)).await {
        *sent += datagram.len() as u64;
        sender.send(Frame::Data(datagram)).await?;
    }
    Ok(sender.send(Frame::Fin).await?)
}

async fn receive_datagrams(
    flow: &UdpFlow,
    receiver: &mut FrameReceiver,
    received: &mut u64,
) -> Result<(), RelayError> {
    while let Some(datagram) = receiver.data().await? {
        *received += datagram.len() as u64;
        flow.send(&datagram, Instant::now());
    }
    Ok(())
}

/// Calls the netstack whenever a timer is due. Never returns.
pub async fn run_timers(netstack: &Netstack) {
    loop {
        let next = netstack.poll_timeout();
        let earlier = poll_fn(|cx| {
            netstack.register_timeout_waker(cx.waker());
            if netstack.poll_timeout() == next {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        match next {
            Some(at) => tokio::select! {
                () = earlier => {}
                () = tokio::time::sleep_until(at.into()) => {}
            },
            None => earlier.await,
        }
        netstack.handle_timeout(Instant::now());
    }
}

#[cfg(test)]
mod tests;
