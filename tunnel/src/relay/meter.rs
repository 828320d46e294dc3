//! Counts what flows move, where their frames pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvpn_proto::flow::{DialError, Frame};

use super::FrameStream;

/// What a flow has moved, or all flows that share the meter.
#[derive(Debug, Default)]
pub struct FlowMeter {
    sent: AtomicU64,
    received: AtomicU64,
    sent_fin: AtomicBool,
    received_fin: AtomicBool,
    /// In the order of [`DialError::ALL`].
    failures: [AtomicU64; DialError::ALL.len()],
}

impl FlowMeter {
    /// Bytes that went into the tunnel.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that came out of the tunnel.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether this end sends no more.
    pub fn has_sent_fin(&self) -> bool {
        self.sent_fin.load(Ordering::Relaxed)
    }

    /// Whether the other end sends no more.
    pub fn has_received_fin(&self) -> bool {
        self.received_fin.load(Ordering::Relaxed)
    }

    /// How often this end has said that the flow, or a datagram of it, failed in
    /// that way.
    pub fn failures(&self, error: DialError) -> u64 {
        let count = self.failure(error);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    fn failure(&self, error: DialError) -> Option<&AtomicU64> {
        let mut kinds = DialError::ALL.into_iter();
        let index = kinds.position(|kind| kind.as_str() == error.as_str())?;
        self.failures.get(index)
    }

    pub(super) fn count_sent(&self, step: Step) {
        if let Step::Failed(error) = step
            && let Some(count) = self.failure(error)
        {
            count.fetch_add(1, Ordering::Relaxed);
        }
        count(step, &self.sent, &self.sent_fin);
    }

    pub(super) fn count_received(&self, step: Step) {
        count(step, &self.received, &self.received_fin);
    }
}

impl FrameStream {
    /// Has the frames that pass from now on counted.
    pub fn metered(mut self, meter: &Arc<FlowMeter>) -> Self {
        self.sender.meter = Some(Arc::clone(meter));
        self.receiver.meter = Some(Arc::clone(meter));
        self
    }
}

/// What a frame means to a meter.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Data(usize),
    Fin,
    Failed(DialError),
    Other,
}

impl Step {
    pub(super) fn of(frame: &Frame) -> Self {
        match frame {
            Frame::Data(data) | Frame::Whole(data) => Self::Data(data.len()),
            Frame::Fin => Self::Fin,
            Frame::Failed(failure) => Self::Failed(failure.error),
            Frame::Open(_) | Frame::Opened | Frame::Reset => Self::Other,
        }
    }
}

fn count(step: Step, bytes: &AtomicU64, fin: &AtomicBool) {
    match step {
        Step::Data(length) => {
            bytes.fetch_add(length as u64, Ordering::Relaxed);
        }
        Step::Fin => fin.store(true, Ordering::Relaxed),
        Step::Failed(_) | Step::Other => {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kvpn_proto::flow::DialFailure;

    use super::*;
    use crate::relay::{incoming, outgoing};

    #[tokio::test]
    async fn frames_count_once_they_are_taken() {
        let meter = Arc::new(FlowMeter::default());
        let (sender, mut taken) = outgoing();
        let arriving = [Ok(Frame::Data(Bytes::from_static(b"abc"))), Ok(Frame::Fin)];
        let receiver = incoming(futures::stream::iter(arriving));
        let mut frames = FrameStream { sender, receiver }.metered(&meter);

        let data = Frame::Data(Bytes::from_static(b"hello"));
        frames.sender.send(data).await.unwrap();
        assert_eq!((meter.sent(), meter.received()), (5, 0));
        let first = std::future::poll_fn(|cx| taken.poll_recv(cx)).await;
        assert!(first.is_some());
        let failure = DialFailure::new(DialError::TimedOut, "no answer");
        frames.sender.send(Frame::Failed(failure)).await.unwrap();
        assert_eq!(meter.failures(DialError::TimedOut), 1);
        assert_eq!(meter.failures(DialError::Refused), 0);
        drop(taken);
        let late = Frame::Data(Bytes::from_static(b"lost"));
        assert!(frames.sender.send(late).await.is_err());
        assert_eq!(meter.sent(), 5);
        assert!(!meter.has_sent_fin());

        while let Some(Ok(_)) = frames.receiver.recv().await {}
        assert_eq!(meter.received(), 3);
        assert!(meter.has_received_fin());
    }
}
