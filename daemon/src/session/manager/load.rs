//! How busy a connection is: the flows that it carries, and the bytes that it
//! has carried lately.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use kvpn_tunnel::turns;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long bytes count: for this long at least, for twice this long at most.
const PERIOD: Duration = Duration::from_millis(500);

/// From how many bytes on a connection counts as busier than another.
const STEP: u64 = 1 << 20;

/// What a connection carries.
#[derive(Debug)]
pub(super) struct Load {
    start: Instant,
    flows: AtomicUsize,
    recent: Mutex<Recent>,
}

/// Bytes of this period and of the one before.
#[derive(Debug, Default)]
struct Recent {
    period: u128,
    now: u64,
    before: u64,
}

/// The place of one flow on a connection; dropping it makes room.
#[derive(Debug)]
pub(super) struct Taken(Arc<Load>);

impl Load {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            flows: AtomicUsize::new(0),
            recent: Mutex::default(),
        }
    }

    /// Counts a flow for as long as the answer lives.
    pub(super) fn take(self: &Arc<Self>) -> Taken {
        self.flows.fetch_add(1, Ordering::Relaxed);
        Taken(Arc::clone(self))
    }

    /// Counts bytes, of either direction.
    pub(super) fn carried(&self, bytes: usize, now: Instant) {
        self.recent(now, |recent| recent.now += bytes as u64);
    }

    /// The smaller, the better for a new flow: first by the bytes of late, in
    /// coarse steps, then by the number of flows. What flows have carried that are
    /// over tells nothing.
    pub(super) fn rank(&self, now: Instant) -> (u64, usize) {
        let flows = self.flows.load(Ordering::Relaxed);
        if flows == 0 {
            return (0, 0);
        }
        let bytes = self.recent(now, |recent| recent.now + recent.before);
        (bytes / STEP, flows)
    }

    fn recent<T>(&self, now: Instant, use_it: impl FnOnce(&mut Recent) -> T) -> T {
        let elapsed = now.saturating_duration_since(self.start);
        let period = elapsed.as_millis() / PERIOD.as_millis();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if period > recent.period {
            let was_last = period == recent.period + 1;
            recent.before = if was_last { recent.now } else { 0 };
            recent.now = 0;
            recent.period = period;
        }
        use_it(&mut recent)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.flows.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A byte stream whose bytes are counted and paid for, and whose end is noticed:
/// whoever speaks on it drops it then.
pub(super) struct Counted<S> {
    stream: S,
    load: Arc<Load>,
    _end: DropGuard,
}

impl<S> Counted<S> {
    /// `end` is cancelled when the stream is dropped.
    pub(super) fn new(stream: S, load: Arc<Load>, end: CancellationToken) -> Self {
        Self {
            stream,
            load,
            _end: end.drop_guard(),
        }
    }

    fn count(
        &self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.load.carried(*bytes, Instant::now());
            turns::charge(cx, *bytes);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            let bytes = buf.filled().len() - before;
            self.load.carried(bytes, Instant::now());
            turns::charge(cx, bytes);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn bytes_are_forgotten_within_two_periods() {
        let start = Instant::now();
        let load = Arc::new(Load::new(start));
        let taken = load.take();
        load.carried(8 << 20, start);
        assert_eq!(load.rank(start), (8, 1));
        assert_eq!(load.rank(start + PERIOD), (8, 1));
        assert_eq!(load.rank(start + 2 * PERIOD), (0, 1));
        load.carried(3 << 20, start + 2 * PERIOD);
        assert_eq!(load.rank(start + 2 * PERIOD), (3, 1));
        assert_eq!(load.rank(start + 9 * PERIOD), (0, 1));
        load.carried(3 << 20, start + 9 * PERIOD);
        drop(taken);
        assert_eq!(load.rank(start + 9 * PERIOD), (0, 0), "what flows are over");
    }

    #[test]
    fn a_trickle_makes_no_connection_busy() {
        let start = Instant::now();
        let load = Arc::new(Load::new(start));
        let _taken = load.take();
        load.carried(100 << 10, start);
        assert_eq!(load.rank(start), (0, 1));
    }

    #[test]
    fn a_flow_counts_until_its_place_is_dropped() {
        let start = Instant::now();
        let load = Arc::new(Load::new(start));
        let taken = load.take();
        assert_eq!(load.rank(start), (0, 1));
        drop(taken);
        assert_eq!(load.rank(start), (0, 0));
    }

    #[tokio::test]
    async fn bytes_of_both_directions_count_and_the_end_is_noticed() {
        let load = Arc::new(Load::new(Instant::now()));
        let end = CancellationToken::new();
        let _taken = load.take();
        let (near, mut far) = tokio::io::duplex(4 << 20);
        let mut counted = Counted::new(near, load.clone(), end.clone());
        counted.write_all(&vec![0; 1 << 20]).await.unwrap();
        far.write_all(&vec![0; 1 << 20]).await.unwrap();
        counted.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        assert_eq!(load.rank(Instant::now()).0, 2);
        assert!(!end.is_cancelled());
        drop(counted);
        assert!(end.is_cancelled());
    }
}
