//! A datagram or ping socket and a frame stream, one datagram a frame.
//!
//! Neither direction waits for the other or for a slow reader: when too much
//! waits for the tunnel, the oldest is lost. What the network says of a datagram
//! travels as `Failed`, and the flow goes on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvpn_proto::flow::{DialFailure, Frame};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::turns;

use super::datagram_socket::{DatagramSocket, MAX_DATAGRAM};
use super::{FrameReceiver, FrameSender, FrameStream, RelayError, StreamLost, Transferred};

/// How many frames, and how many bytes of them, wait for the tunnel.
const MAX_QUEUED: usize = 256;
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// How many datagrams are taken before the tunnel gets its turn.
const BATCH: usize = 32;

/// How many errors of sent datagrams wait to be told.
const MAX_ERRORS: usize = 16;

thread_local! {
    /// Where datagrams arrive: most flows are short or silent, and none needs
    /// room of its own for the longest.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Copies between a connected socket and an already opened frame stream until
/// the other end says that it is done or nothing passed for `idle`.
pub async fn splice_datagrams(
    socket: DatagramSocket,
    frames: FrameStream,
    idle: Duration,
) -> Result<Transferred, RelayError> {
    let FrameStream {
        sender,
        mut receiver,
    } = frames;
    let mut moved = Transferred::default();
    let activity = Activity::new();
    let (errors_tx, errors_rx) = mpsc::channel(MAX_ERRORS);
    let outcome = tokio::select! {
        ended = into_tunnel(&socket, &sender, errors_rx, &activity, &mut moved.sent) => ended,
        ended = from_tunnel(&socket, &mut receiver, &errors_tx, &activity, &mut moved.received) => ended,
        () = activity.silence(idle) => sender.send(Frame::Fin).await.map_err(RelayError::from),
    };
    if let Err(error) = outcome {
        sender.reset();
        return Err(error);
    }
    let frames = FrameStream { sender, receiver };
    frames.finish().await;
    Ok(moved)
}

/// Ends only with an error.
async fn into_tunnel(
    socket: &DatagramSocket,
    sender: &FrameSender,
    mut errors: mpsc::Receiver<DialFailure>,
    activity: &Activity,
    sent: &mut u64,
) -> Result<(), RelayError> {
    let mut queue = Queue::default();
    loop {
        tokio::select! {
            biased;
            taken = send_front(sender, &queue), if !queue.frames.is_empty() => {
                taken?;
                let length = queue.pop();
                *sent += length as u64;
                turns::pay(length).await;
            }
            ready = socket.ready() => {
                if ready.map_err(RelayError::Local)?.is_error() {
                    queue.tell(socket.take_errors());
                }
                receive(socket, &mut queue);
                activity.note();
            }
            Some(failure) = errors.recv() => queue.push(Frame::Failed(failure)),
        }
    }
}

async fn send_front(sender: &FrameSender, queue: &Queue) -> Result<(), StreamLost> {
    match queue.frames.front() {
        Some(frame) => sender.send(frame.clone()).await,
        None => Ok(()),
    }
}

fn receive(socket: &DatagramSocket, queue: &mut Queue) {
    let mut scratch = SCRATCH.take();
    scratch.resize(MAX_DATAGRAM, 0);
    for _ in 0..BATCH {
        match socket.try_recv(&mut scratch) {
            Ok(Some(datagram)) => queue.push(Frame::Data(datagram)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => queue.tell(socket.explain(&error).0),
        }
    }
    SCRATCH.set(scratch);
}

async fn from_tunnel(
    socket: &DatagramSocket,
    receiver: &mut FrameReceiver,
    errors: &mpsc::Sender<DialFailure>,
    activity: &Activity,
    received: &mut u64,
) -> Result<(), RelayError> {
    loop {
        let frame = receiver
            .recv()
            .await
            .unwrap_or_else(|| Err(StreamLost::new("the stream ended early")))?;
        let (datagram, whole) = match frame {
            Frame::Data(datagram) => (datagram, false),
            Frame::Whole(datagram) => (datagram, true),
            Frame::Fin => return Ok(()),
            Frame::Reset => return Err(RelayError::Reset),
            Frame::Open(_) => return Err(RelayError::Unexpected("open")),
            Frame::Opened => return Err(RelayError::Unexpected("opened")),
            Frame::Failed(_) => return Err(RelayError::Unexpected("failed")),
        };
        activity.note();
        *received += datagram.len() as u64;
        turns::pay(datagram.len()).await;
        for failure in send(socket, &datagram, whole).await {
            // When there is no room the host has been told enough.
            let _ = errors.try_send(failure);
        }
    }
}

async fn send(socket: &DatagramSocket, datagram: &Bytes, whole: bool) -> Vec<DialFailure> {
    let Err(error) = socket.send(datagram, whole).await else {
        return Vec::new();
    };
    let (failures, earlier) = socket.explain(&error);
    if earlier {
        // This one has not been sent. Should it fail too, the next will tell.
        let again = socket.send(datagram, whole).await;
        tracing::trace!(?again, "datagram sent again");
    }
    failures
}

/// Frames that wait for the tunnel.
#[derive(Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, frame: Frame) {
        self.bytes += length(&frame);
        self.frames.push_back(frame);
        while self.frames.len() > MAX_QUEUED || self.bytes > MAX_QUEUED_BYTES {
            self.pop();
        }
    }

    fn tell(&mut self, failures: Vec<DialFailure>) {
        for failure in failures {
            self.push(Frame::Failed(failure));
        }
    }

    /// Removes the oldest; returns its length.
    fn pop(&mut self) -> usize {
        let length = self.frames.pop_front().as_ref().map_or(0, length);
        self.bytes -= length;
        length
    }
}

fn length(frame: &Frame) -> usize {
    match frame {
        Frame::Data(data) | Frame::Whole(data) => data.len(),
        Frame::Open(_) | Frame::Opened | Frame::Failed(_) | Frame::Fin | Frame::Reset => 0,
    }
}

/// When something passed last.
struct Activity {
    start: Instant,
    /// In milliseconds since `start`.
    latest: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            latest: AtomicU64::new(0),
        }
    }

    fn note(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.latest.store(elapsed, Ordering::Relaxed);
    }

    /// Completes when nothing has passed for so long.
    async fn silence(&self, idle: Duration) {
        loop {
            let latest = Duration::from_millis(self.latest.load(Ordering::Relaxed));
            let expiry = self.start + latest + idle;
            if Instant::now() >= expiry {
                return;
            }
            sleep_until(expiry).await;
        }
    }
}

#[cfg(test)]
mod tests;
