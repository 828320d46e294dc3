//! The two directions of a flow's gRPC stream, in domain terms.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kvpn_proto::flow::Frame;

use super::RelayError;
use super::meter::{FlowMeter, Step};
use super::queue::{self, Outgoing};

/// Both directions of one flow's gRPC stream.
#[derive(Debug)]
pub struct FrameStream {
    pub sender: FrameSender,
    pub receiver: FrameReceiver,
}

impl FrameStream {
    /// Ends a flow whose last frame has been sent, and waits until the other
    /// end has done so too. A caller that lets go earlier cancels the call, and
    /// what is still on its way is thrown away.
    ///
    /// Has no deadline: the other end may have to wait for a reader that is
    /// slow, but alive. When the other end is dead, the connection's keep-alive
    /// ends the wait.
    pub async fn finish(self) {
        let Self {
            sender,
            mut receiver,
        } = self;
        drop(sender);
        while let Some(Ok(_)) = receiver.recv().await {}
    }
}

/// The gRPC stream is gone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tunnel was lost: {detail}")]
pub struct StreamLost {
    detail: String,
}

impl StreamLost {
    pub fn new(detail: impl Into<String>) -> Self {
        Self {
            detail: detail.into(),
        }
    }
}

/// Sends frames, waiting while the other end does not keep up. Dropping it ends
/// the stream.
#[derive(Debug)]
pub struct FrameSender {
    frames: queue::Sender,
    pub(super) meter: Option<Arc<FlowMeter>>,
}

impl FrameSender {
    pub async fn send(&self, frame: Frame) -> Result<(), StreamLost> {
        let step = Step::of(&frame);
        self.frames
            .send(frame)
            .await
            .map_err(|_| StreamLost::new("the stream was cancelled"))?;
        if let Some(meter) = &self.meter {
            meter.count_sent(step);
        }
        Ok(())
    }

    /// Completes when nobody takes the frames any more.
    pub async fn closed(&self) {
        self.frames.closed().await;
    }

    /// Sends `Reset`, without waiting for room.
    pub fn reset(self) {
        self.frames.push(Frame::Reset);
    }

    /// Puts the first frame into the empty queue.
    pub(crate) fn begin(&self, open: Frame) {
        self.frames.push(open);
    }
}

/// Receives frames.
pub struct FrameReceiver {
    stream: Pin<Box<dyn Stream<Item = Result<Frame, StreamLost>> + Send>>,
    pub(super) meter: Option<Arc<FlowMeter>>,
}

impl FrameReceiver {
    /// Waits for the next frame. `None` when the stream ended without an error.
    pub async fn recv(&mut self) -> Option<Result<Frame, StreamLost>> {
        let frame = self.stream.next().await?;
        if let (Some(meter), Ok(frame)) = (&self.meter, &frame) {
            meter.count_received(Step::of(frame));
        }
        Some(frame)
    }

    /// Waits for the next data of a flow that is open. `None` after its `Fin`;
    /// anything but data and `Fin` is an error.
    pub(crate) async fn data(&mut self) -> Result<Option<Bytes>, RelayError> {
        let frame = self
            .recv()
            .await
            .unwrap_or_else(|| Err(StreamLost::new("the stream ended early")))?;
        match frame {
            Frame::Data(data) => Ok(Some(data)),
            Frame::Fin => Ok(None),
            Frame::Reset => Err(RelayError::Reset),
            Frame::Open(_) => Err(RelayError::Unexpected("open")),
            Frame::Opened => Err(RelayError::Unexpected("opened")),
            Frame::Whole(_) => Err(RelayError::Unexpected("whole")),
            Frame::Failed(_) => Err(RelayError::Unexpected("failed")),
        }
    }
}

impl fmt::Debug for FrameReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReceiver").finish_non_exhaustive()
    }
}

/// The sending side of a stream.
pub(crate) fn outgoing() -> (FrameSender, Outgoing) {
    let (frames, outgoing) = queue::queue();
    let meter = None;
    (FrameSender { frames, meter }, outgoing)
}

/// The receiving side of a stream.
pub(crate) fn incoming(
    stream: impl Stream<Item = Result<Frame, StreamLost>> + Send + 'static,
) -> FrameReceiver {
    FrameReceiver {
        stream: Box::pin(stream),
        meter: None,
    }
}
