//! Frames between a flow and the gRPC stream that carries it.
//!
//! Bounded by bytes: a slow reader slows its own flow, while many small frames
//! may wait, and then travel together. An empty queue holds next to no memory.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use kvpn_proto::flow::Frame;

/// How much waits, in bytes of data and in frames, before a sender waits too.
const MAX_BYTES: usize = 1 << 20;
const MAX_FRAMES: usize = 64;

/// For how many frames an empty queue keeps its memory.
const KEPT: usize = 4;

/// The sending end, of one task. Dropping it ends the queue.
#[derive(Debug)]
pub(super) struct Sender(Arc<Mutex<Queue>>);

/// The receiving end. Dropping it closes the queue.
#[derive(Debug)]
pub(crate) struct Outgoing(Arc<Mutex<Queue>>);

/// Nobody takes the frames any more.
#[derive(Debug)]
pub(super) struct Closed;

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    bytes: usize,
    has_sender: bool,
    is_closed: bool,
    sender: Option<Waker>,
    receiver: Option<Waker>,
}

pub(super) fn queue() -> (Sender, Outgoing) {
    let queue = Arc::new(Mutex::new(Queue {
        has_sender: true,
        ..Queue::default()
    }));
    (Sender(queue.clone()), Outgoing(queue))
}

impl Sender {
    /// Queues a frame once there is room. Loses nothing when it is dropped
    /// before it is done.
    pub(super) async fn send(&self, frame: Frame) -> Result<(), Closed> {
        let mut frame = Some(frame);
        poll_fn(|cx| self.poll_send(cx, &mut frame)).await
    }

    /// Queues a frame, whether there is room or not.
    pub(super) fn push(&self, frame: Frame) {
        let mut queue = lock(&self.0);
        if !queue.is_closed {
            queue.push(frame);
            wake(queue, |queue| queue.receiver.take());
        }
    }

    pub(super) async fn closed(&self) {
        poll_fn(|cx| {
            let mut queue = lock(&self.0);
            if queue.is_closed {
                return Poll::Ready(());
            }
            register(&mut queue.sender, cx);
            Poll::Pending
        })
        .await;
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        frame: &mut Option<Frame>,
    ) -> Poll<Result<(), Closed>> {
        let mut queue = lock(&self.0);
        if queue.is_closed {
            return Poll::Ready(Err(Closed));
        }
        if !queue.has_room() {
            register(&mut queue.sender, cx);
            return Poll::Pending;
        }
        if let Some(frame) = frame.take() {
            queue.push(frame);
        }
        wake(queue, |queue| queue.receiver.take());
        Poll::Ready(Ok(()))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.has_sender = false;
        wake(queue, |queue| queue.receiver.take());
    }
}

impl Outgoing {
    /// Completes once there is a frame, or the sender is gone.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = lock(&self.0);
        if !queue.frames.is_empty() || !queue.has_sender {
            return Poll::Ready(());
        }
        register(&mut queue.receiver, cx);
        Poll::Pending
    }

    /// The next frame; `None` when the sender is gone.
    pub(crate) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut queue = lock(&self.0);
        let had_room = queue.has_room();
        if let Some(frame) = queue.pop() {
            if !had_room && queue.has_room() {
                wake(queue, |queue| queue.sender.take());
            }
            return Poll::Ready(Some(frame));
        }
        if !queue.has_sender {
            return Poll::Ready(None);
        }
        register(&mut queue.receiver, cx);
        Poll::Pending
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let mut queue = lock(&self.0);
        queue.is_closed = true;
        let unsent = std::mem::take(&mut queue.frames);
        wake(queue, |queue| queue.sender.take());
        drop(unsent);
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        self.bytes < MAX_BYTES && self.frames.len() < MAX_FRAMES
    }

    fn push(&mut self, frame: Frame) {
        self.bytes += data(&frame).map_or(0, Bytes::len);
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Frame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= data(&frame).map_or(0, Bytes::len);
        if self.frames.is_empty() && self.frames.capacity() > KEPT {
            self.frames = VecDeque::new();
        }
        Some(frame)
    }
}

fn data(frame: &Frame) -> Option<&Bytes> {
    match frame {
        Frame::Data(data) | Frame::Whole(data) => Some(data),
        Frame::Open(_) | Frame::Opened | Frame::Failed(_) | Frame::Fin | Frame::Reset => None,
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

/// Wakes whom it concerns, without the lock.
fn wake(mut queue: MutexGuard<'_, Queue>, whom: impl FnOnce(&mut Queue) -> Option<Waker>) {
    let waker = whom(&mut queue);
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn recv(frames: &mut Outgoing) -> Option<Frame> {
        poll_fn(|cx| frames.poll_recv(cx)).await
    }

    fn of(length: usize) -> Frame {
        Frame::Data(vec![7; length].into())
    }

    /// Whether sending that frame would wait. It is not sent then.
    fn waits(sender: &Sender, frame: Frame) -> bool {
        let mut frame = Some(frame);
        let cx = &mut Context::from_waker(Waker::noop());
        sender.poll_send(cx, &mut frame).is_pending()
    }

    #[tokio::test]
    async fn frames_come_in_order_and_the_end_after_them() {
        let (sender, mut frames) = queue();
        sender.push(Frame::Opened);
        sender.send(of(3)).await.unwrap();
        drop(sender);
        assert_eq!(recv(&mut frames).await, Some(Frame::Opened));
        assert_eq!(recv(&mut frames).await, Some(of(3)));
        assert_eq!(recv(&mut frames).await, None);
    }

    #[tokio::test]
    async fn a_queue_is_ready_with_a_frame_or_at_the_end() {
        let (sender, mut frames) = queue();
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(frames.poll_ready(cx).is_pending());
        sender.push(Frame::Opened);
        assert!(frames.poll_ready(cx).is_ready());
        assert_eq!(recv(&mut frames).await, Some(Frame::Opened));
        assert!(frames.poll_ready(cx).is_pending());
        drop(sender);
        assert!(frames.poll_ready(cx).is_ready());
    }

    #[tokio::test]
    async fn many_bytes_and_many_frames_make_the_sender_wait() {
        for (length, fitting) in [(MAX_BYTES / 2, 2), (0, MAX_FRAMES)] {
            let (sender, mut frames) = queue();
            for _ in 0..fitting {
                assert!(!waits(&sender, of(length)));
            }
            assert!(waits(&sender, of(length)));
            recv(&mut frames).await;
            assert!(!waits(&sender, of(length)));
        }
    }

    #[tokio::test]
    async fn what_is_pushed_finds_room_in_a_full_queue() {
        let (sender, mut frames) = queue();
        sender.send(of(MAX_BYTES)).await.unwrap();
        sender.push(Frame::Reset);
        assert_eq!(recv(&mut frames).await, Some(of(MAX_BYTES)));
        assert_eq!(recv(&mut frames).await, Some(Frame::Reset));
    }

    #[tokio::test]
    async fn a_waiting_sender_goes_on_when_there_is_room() {
        let (sender, mut frames) = queue();
        sender.send(of(MAX_BYTES)).await.unwrap();
        let waiting = tokio::spawn(async move { sender.send(of(1)).await.is_ok() });
        tokio::task::yield_now().await;
        assert_eq!(recv(&mut frames).await, Some(of(MAX_BYTES)));
        assert_eq!(recv(&mut frames).await, Some(of(1)));
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn a_queue_that_nobody_reads_is_closed() {
        let (sender, frames) = queue();
        sender.send(of(MAX_BYTES)).await.unwrap();
        let waiting = tokio::spawn(async move {
            let outcome = sender.send(of(1)).await;
            sender.closed().await;
            outcome.is_err()
        });
        tokio::task::yield_now().await;
        drop(frames);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn an_empty_queue_keeps_little_memory() {
        let (sender, mut frames) = queue();
        for _ in 0..MAX_FRAMES {
            sender.send(of(1)).await.unwrap();
        }
        for _ in 0..MAX_FRAMES {
            recv(&mut frames).await;
        }
        assert_eq!(lock(&sender.0).bytes, 0);
        assert!(lock(&sender.0).frames.capacity() <= KEPT);
    }
}
