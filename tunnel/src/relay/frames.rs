//! The two directions of a flow's gRPC stream, in domain terms.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use kvpn_proto::flow::Frame;
use kvpn_proto::v1;
use tokio::sync::mpsc;
use tonic::Status;

use super::RelayError;

/// Frames that wait between a splice and the gRPC stream. Few, so that a slow
/// reader slows its own flow and memory stays bounded.
const QUEUED_FRAMES: usize = 4;

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
    frames: mpsc::Sender<v1::Frame>,
}

impl FrameSender {
    pub async fn send(&self, frame: Frame) -> Result<(), StreamLost> {
        self.frames
            .send(frame.into())
            .await
            .map_err(|_| StreamLost::new("the stream was cancelled"))
    }

    /// Completes when nobody takes the frames any more.
    pub async fn closed(&self) {
        self.frames.closed().await;
    }

    /// Sends `Reset` without waiting. When there is no room for it the end of
    /// the stream, which follows, says the same.
    pub fn reset(self) {
        // Full or closed: see above.
        let _ = self.frames.try_send(Frame::Reset.into());
    }
}

/// Receives frames.
pub struct FrameReceiver {
    stream: Pin<Box<dyn Stream<Item = Result<v1::Frame, Status>> + Send>>,
}

impl FrameReceiver {
    /// Waits for the next frame. `None` when the stream ended without an error.
    pub async fn recv(&mut self) -> Option<Result<Frame, StreamLost>> {
        let frame = match self.stream.next().await? {
            Ok(frame) => Frame::try_from(frame).map_err(StreamLost::from),
            Err(status) => Err(StreamLost::new(format!(
                "{:?}: {}",
                status.code(),
                status.message()
            ))),
        };
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
            Frame::Failed(_) => Err(RelayError::Unexpected("failed")),
        }
    }
}

impl fmt::Debug for FrameReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReceiver").finish_non_exhaustive()
    }
}

/// The caller's frames, to be given to `client.tunnel(..)`.
#[derive(Debug)]
pub struct Outgoing {
    frames: mpsc::Receiver<v1::Frame>,
}

impl Stream for Outgoing {
    type Item = v1::Frame;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<v1::Frame>> {
        self.frames.poll_recv(cx)
    }
}

/// The callee's frames, to be returned as the response's stream.
#[derive(Debug)]
pub struct OutgoingResponse {
    frames: mpsc::Receiver<v1::Frame>,
}

impl Stream for OutgoingResponse {
    type Item = Result<v1::Frame, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.poll_recv(cx).map(|frame| frame.map(Ok))
    }
}

/// The caller's side of sending.
pub fn outgoing() -> (FrameSender, Outgoing) {
    let (tx, frames) = mpsc::channel(QUEUED_FRAMES);
    (FrameSender { frames: tx }, Outgoing { frames })
}

/// The callee's side of sending.
pub fn outgoing_response() -> (FrameSender, OutgoingResponse) {
    let (tx, frames) = mpsc::channel(QUEUED_FRAMES);
    (FrameSender { frames: tx }, OutgoingResponse { frames })
}

/// Wraps the `tonic::Streaming` that came back (caller) or came in (callee).
pub fn incoming(
    stream: impl Stream<Item = Result<v1::Frame, Status>> + Send + 'static,
) -> FrameReceiver {
    FrameReceiver {
        stream: Box::pin(stream),
    }
}
