//! Two frame streams.

use kvpn_proto::flow::Frame;

use crate::turns;

use super::{FrameReceiver, FrameSender, FrameStream, RelayError, StreamLost};

/// Forwards frames both ways between two streams, whatever they say, until
/// both directions have ended or one frame ended both. When one stream is
/// reset or lost, so is the other. After `Opened`, `Failed` is about one datagram.
pub async fn forward(a: FrameStream, b: FrameStream) -> Result<(), RelayError> {
    let (mut from_a, mut from_b) = (a.receiver, b.receiver);
    let outcome = tokio::try_join!(pump(&mut from_a, &b.sender), pump(&mut from_b, &a.sender),);
    let a = FrameStream {
        sender: a.sender,
        receiver: from_a,
    };
    let b = FrameStream {
        sender: b.sender,
        receiver: from_b,
    };
    let error = match outcome {
        Ok(((), ())) | Err(Ended::Failed) => {
            tokio::join!(a.finish(), b.finish());
            return Ok(());
        }
        Err(Ended::Reset) => RelayError::Reset,
        Err(Ended::Lost(lost)) => lost.into(),
    };
    a.sender.reset();
    b.sender.reset();
    Err(error)
}

/// Why both directions end at once.
enum Ended {
    Reset,
    Failed,
    Lost(StreamLost),
}

impl From<StreamLost> for Ended {
    fn from(lost: StreamLost) -> Self {
        Self::Lost(lost)
    }
}

async fn pump(from: &mut FrameReceiver, to: &FrameSender) -> Result<(), Ended> {
    let mut is_opened = false;
    loop {
        let frame = tokio::select! {
            () = to.closed() => return Err(StreamLost::new("the stream was cancelled").into()),
            frame = from.recv() => frame
                .unwrap_or_else(|| Err(StreamLost::new("the stream ended early")))?,
        };
        match &frame {
            Frame::Data(data) | Frame::Whole(data) => {
                let length = data.len();
                to.send(frame).await?;
                turns::pay(length).await;
            }
            Frame::Open(_) => to.send(frame).await?,
            Frame::Opened => {
                is_opened = true;
                to.send(frame).await?;
            }
            Frame::Failed(_) if is_opened => to.send(frame).await?,
            Frame::Fin => return Ok(to.send(frame).await?),
            Frame::Reset => return Err(Ended::Reset),
            Frame::Failed(_) => {
                to.send(frame).await?;
                return Err(Ended::Failed);
            }
        }
    }
}
