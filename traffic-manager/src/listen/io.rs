//! Connections that tell the gRPC services where calls come from.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use kvpn_tunnel::turns;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// How much a caller may send before it is known, in bytes. HTTP/2 alone would
/// let it fill the memory.
const UNKNOWN_LIMIT: usize = 64 << 10;

/// What calls should know of the connection that they come over.
pub(super) trait Tag: Clone + Send + Sync + Unpin + 'static {
    /// Whether the caller has shown who it is.
    fn is_known(&self) -> bool;
}

/// A byte stream with what calls that come over it should know, whose bytes are
/// paid for. It ends when `cut` completes, and when a caller sends too much before
/// it is known.
pub(super) struct Tagged<S, T> {
    stream: S,
    tag: T,
    /// Received before the caller was known.
    unknown: usize,
    is_known: bool,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_cut: bool,
}

impl<S, T> Tagged<S, T> {
    pub(super) fn new(stream: S, tag: T, cut: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            stream,
            tag,
            unknown: 0,
            is_known: false,
            cut: Box::pin(cut),
            is_cut: false,
        }
    }
}

impl<S, T: Tag> Connected for Tagged<S, T> {
    type ConnectInfo = T;

    fn connect_info(&self) -> T {
        self.tag.clone()
    }
}

impl<S: AsyncRead + Unpin, T: Tag> AsyncRead for Tagged<S, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_cut && self.cut.as_mut().poll(cx).is_ready() {
            self.is_cut = true;
        }
        if self.is_cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        turns::charge(cx, buf.filled().len() - before);
        if !self.is_known {
            self.is_known = self.tag.is_known();
            self.unknown += buf.filled().len() - before;
            self.is_cut = !self.is_known && self.unknown > UNKNOWN_LIMIT;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, T: Tag> AsyncWrite for Tagged<S, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        charge(cx, &written);
        written
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
        charge(cx, &written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

fn charge(cx: &mut Context<'_>, written: &Poll<io::Result<usize>>) {
    if let Poll::Ready(Ok(bytes)) = written {
        turns::charge(cx, *bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    #[derive(Clone, Default)]
    struct Caller(Arc<AtomicBool>);

    impl Tag for Caller {
        fn is_known(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn a_cut_ends_a_read_that_waits() {
        let (near, mut far) = tokio::io::duplex(64);
        let (cut, is_cut) = oneshot::channel::<()>();
        let mut tagged = Tagged::new(near, Caller::default(), async {
            let _ = is_cut.await;
        });
        far.write_all(b"x").await.unwrap();
        assert_eq!(tagged.read_u8().await.unwrap(), b'x');
        let waiting = tokio::spawn(async move { tagged.read_u8().await });
        cut.send(()).unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_caller_may_send_much_only_once_it_is_known() {
        let flood = vec![0; 2 * UNKNOWN_LIMIT];
        for (known, received) in [(true, flood.len()), (false, UNKNOWN_LIMIT + 1)] {
            let (near, mut far) = tokio::io::duplex(flood.len());
            far.write_all(&flood).await.unwrap();
            drop(far);
            let caller = Caller::default();
            caller.0.store(known, Ordering::Relaxed);
            let mut tagged = Tagged::new(near, caller, std::future::pending());
            let mut count = 0;
            let end = loop {
                // One at a time, so that the limit is met exactly.
                match tagged.read(&mut [0]).await {
                    Ok(0) => break Ok(()),
                    Ok(n) => count += n,
                    Err(error) => break Err(error.kind()),
                }
            };
            assert_eq!(end.is_ok(), known);
            assert_eq!(count, received);
        }
    }
}
