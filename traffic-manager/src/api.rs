//! The gRPC services.

mod agents;
mod readers;
mod sessions;
mod tokens;

use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget};
use kvpn_tunnel::relay::{self, FrameReceiver, FrameSender, FrameStream};
use tracing::debug;

pub(crate) use agents::{AgentApi, Peer};
pub(crate) use sessions::SessionApi;
pub(crate) use tokens::Tokens;

/// How long the first message of a stream may take.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// How long a session, an agent or a reader may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// The `Open` that a caller's frames begin with.
async fn opening(receiver: &mut FrameReceiver) -> Result<OpenTarget, DialFailure> {
    let malformed = |detail: String| DialFailure::new(DialError::Prohibited, detail);
    match tokio::time::timeout(FIRST_MESSAGE, receiver.recv()).await {
        Ok(Some(Ok(Frame::Open(target)))) => Ok(target),
        Ok(Some(Ok(_))) => Err(malformed("the first frame is not `open`".into())),
        Ok(Some(Err(lost))) => Err(malformed(lost.to_string())),
        Ok(None) => Err(malformed("the stream ended before `open`".into())),
        Err(_) => Err(malformed("no `open` came in time".into())),
    }
}

/// Joins a flow to the stream that answers it, unless the flow ends before.
async fn join(frames: FrameStream, answer: impl Future<Output = Result<FrameStream, DialFailure>>) {
    let answer = tokio::select! {
        () = frames.sender.closed() => return,
        answer = answer => answer,
    };
    match answer {
        Ok(answer) => {
            if let Err(error) = relay::forward(frames, answer).await {
                debug!(%error, "a flow to a pod or a laptop ended");
            }
        }
        Err(failure) => refuse(&frames.sender, failure).await,
    }
}

/// Refuses a stream that answers a dial nobody waits for.
async fn refuse_answer(frames: FrameStream) {
    let failure = DialFailure::new(DialError::TunnelLost, "nobody waits for this dial");
    refuse(&frames.sender, failure).await;
}

/// Tells the caller of a flow that it does not come about.
async fn refuse(sender: &FrameSender, failure: DialFailure) {
    debug!(%failure, "dial failed");
    if let Err(lost) = sender.send(Frame::Failed(failure)).await {
        debug!(%lost, "nobody waits for the failure");
    }
}
