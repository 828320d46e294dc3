//! UDP flows and pings of the host, over frame streams.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use kvpn_proto::flow::{DialError, DialFailure, Frame};
use tokio::time::timeout;

use crate::netstack::{Datagram, EchoFlow, UdpFlow};
use crate::relay::{FrameReceiver, FrameSender, FrameStream, RelayError, StreamLost, Transferred};
use crate::turns;

/// How long the far side may take to answer the dial.
const DIAL_DEADLINE: Duration = Duration::from_secs(15);

/// After which silence of the host a ping is over.
const ECHO_IDLE: Duration = Duration::from_secs(30);

/// A flow of datagrams, whichever they are.
trait DatagramFlow {
    /// `None` when the flow is over.
    fn recv(&self) -> impl Future<Output = Option<Datagram>> + Send;

    fn send(&self, payload: &[u8]);

    /// Tells the host that a datagram did not arrive.
    fn unreachable(&self, error: DialError);
}

impl DatagramFlow for UdpFlow {
    async fn recv(&self) -> Option<Datagram> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    fn send(&self, payload: &[u8]) {
        self.send(payload, Instant::now());
    }

    fn unreachable(&self, error: DialError) {
        self.unreachable(error, Instant::now());
    }
}

impl DatagramFlow for EchoFlow {
    async fn recv(&self) -> Option<Datagram> {
        if let Ok(request) = timeout(ECHO_IDLE, poll_fn(|cx| self.poll_recv(cx))).await {
            return Some(request);
        }
        self.close();
        // One may have come just now.
        match poll_fn(|cx| Poll::Ready(self.poll_recv(cx))).await {
            Poll::Ready(request) => Some(request),
            Poll::Pending => None,
        }
    }

    fn send(&self, payload: &[u8]) {
        self.reply(payload);
    }

    fn unreachable(&self, error: DialError) {
        self.unreachable(error, Instant::now());
    }
}

/// Copies between a UDP flow and a frame stream whose `Open` has been sent,
/// until it falls silent. The host's datagrams do not wait for the answer to the
/// dial; `opened` is called when it comes. The host hears "unreachable" of
/// what does not arrive, and when the flow could not be opened or is lost.
pub async fn splice_udp(
    flow: &UdpFlow,
    frames: FrameStream,
    opened: impl FnOnce(),
) -> Result<Transferred, RelayError> {
    let outcome = copy(flow, frames, opened).await;
    if let Err(error) = &outcome
        && let Some(why) = reason(error)
    {
        flow.unreachable(why, Instant::now());
    }
    outcome
}

/// Copies between a ping and a frame stream as [`splice_udp`] does. A ping that the
/// far side may not send stays unanswered: nobody in the cluster has prohibited it.
pub async fn splice_echo(flow: &EchoFlow, frames: FrameStream) -> Result<Transferred, RelayError> {
    let outcome = copy(flow, frames, || ()).await;
    if let Err(error) = &outcome
        && let Some(why) = reason(error)
        && why != DialError::Prohibited
    {
        flow.unreachable(why, Instant::now());
    }
    outcome
}

/// What the host should hear when a flow breaks.
fn reason(error: &RelayError) -> Option<DialError> {
    match error {
        RelayError::Reset => Some(DialError::Refused),
        RelayError::Failed(failure) => Some(failure.error),
        RelayError::Lost(_) => Some(DialError::TunnelLost),
        RelayError::Unexpected(_) | RelayError::Local(_) => None,
    }
}

/// Neither direction waits for the other: while the far end takes nothing, the
/// flow's queue loses the oldest datagrams, and answers still arrive.
async fn copy(
    flow: &impl DatagramFlow,
    frames: FrameStream,
    opened: impl FnOnce(),
) -> Result<Transferred, RelayError> {
    let FrameStream {
        sender,
        mut receiver,
    } = frames;
    let mut moved = Transferred::default();
    tokio::select! {
        ended = into_tunnel(flow, &sender, &mut moved.sent) => ended?,
        ended = from_tunnel(flow, &mut receiver, opened, &mut moved.received) => ended?,
    }
    let frames = FrameStream { sender, receiver };
    frames.finish().await;
    Ok(moved)
}

async fn into_tunnel(
    flow: &impl DatagramFlow,
    sender: &FrameSender,
    sent: &mut u64,
) -> Result<(), RelayError> {
    while let Some(Datagram { payload, whole }) = flow.recv().await {
        *sent += payload.len() as u64;
        let frame = match whole {
            true => Frame::Whole(payload),
            false => Frame::Data(payload),
        };
        if sender.send(frame).await.is_err() {
            // The other direction knows why, and ends the flow.
            return std::future::pending().await;
        }
    }
    Ok(sender.send(Frame::Fin).await?)
}

async fn from_tunnel(
    flow: &impl DatagramFlow,
    receiver: &mut FrameReceiver,
    opened: impl FnOnce(),
    received: &mut u64,
) -> Result<(), RelayError> {
    let answered = timeout(DIAL_DEADLINE, next(receiver)).await;
    match answered.unwrap_or_else(|_| Err(unanswered()))? {
        Frame::Opened => opened(),
        Frame::Failed(failure) => return Err(RelayError::Failed(failure)),
        Frame::Reset => return Err(RelayError::Reset),
        Frame::Open(_) | Frame::Data(_) | Frame::Whole(_) | Frame::Fin => {
            return Err(RelayError::Unexpected("no answer to the dial"));
        }
    }
    loop {
        match next(receiver).await? {
            Frame::Data(datagram) | Frame::Whole(datagram) => {
                *received += datagram.len() as u64;
                flow.send(&datagram);
                turns::pay(datagram.len()).await;
            }
            Frame::Failed(failure) => flow.unreachable(failure.error),
            Frame::Fin => return Ok(()),
            Frame::Reset => return Err(RelayError::Reset),
            Frame::Open(_) => return Err(RelayError::Unexpected("open")),
            Frame::Opened => return Err(RelayError::Unexpected("opened")),
        }
    }
}

async fn next(receiver: &mut FrameReceiver) -> Result<Frame, RelayError> {
    let frame = receiver.recv().await;
    Ok(frame.unwrap_or_else(|| Err(StreamLost::new("the stream ended early")))?)
}

fn unanswered() -> RelayError {
    RelayError::Failed(DialFailure::new(DialError::TimedOut, "no answer in time"))
}
