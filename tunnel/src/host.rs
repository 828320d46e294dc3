//! The netstack's flows on tokio, with the system's clock.

mod datagrams;

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{MissedTickBehavior, interval};

pub use datagrams::{splice_echo, splice_udp};

use crate::netstack::{Netstack, TcpFlow};
use crate::relay::{self, FrameStream, RelayError, Transferred};
use crate::turns;

/// After which silence the host is asked whether it still knows a connection, and
/// how often that is looked at.
const SILENCE: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_secs(60);

/// What a question costs of a turn, in bytes. Its answer comes at once, and those of
/// one turn are read in one.
const QUESTION: usize = 12 << 10;

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
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let take = |data: &[u8]| {
            let length = data.len().min(buffer.remaining());
            buffer.put_slice(&data[..length]);
            length
        };
        self.flow.poll_read(cx, take, Instant::now()).map_ok(drop)
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

/// Asks the host now and then whether it still knows the connections on which it
/// is silent. Never returns.
pub async fn run_keep_alives(netstack: &Netstack) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        for five_tuple in netstack.silent(SILENCE, Instant::now()) {
            netstack.ask(&five_tuple);
            turns::pay(QUESTION).await;
        }
    }
}

#[cfg(test)]
mod tests;
