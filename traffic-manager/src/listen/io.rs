//! Connections that tell the gRPC services where calls come from.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// A byte stream with what calls that come over it should know. It ends when
/// `cut` completes.
pub(super) struct Tagged<S, T> {
    stream: S,
    tag: T,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_cut: bool,
}

impl<S, T> Tagged<S, T> {
    pub(super) fn new(stream: S, tag: T, cut: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            stream,
            tag,
            cut: Box::pin(cut),
            is_cut: false,
        }
    }
}

impl<S, T: Clone + Send + Sync + 'static> Connected for Tagged<S, T> {
    type ConnectInfo = T;

    fn connect_info(&self) -> T {
        self.tag.clone()
    }
}

impl<S: AsyncRead + Unpin, T: Unpin> AsyncRead for Tagged<S, T> {
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
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, T: Unpin> AsyncWrite for Tagged<S, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_cut_ends_a_read_that_waits() {
        let (near, mut far) = tokio::io::duplex(64);
        let (cut, is_cut) = oneshot::channel::<()>();
        let mut tagged = Tagged::new(near, 7, async {
            let _ = is_cut.await;
        });
        assert_eq!(tagged.connect_info(), 7);
        far.write_all(b"x").await.unwrap();
        assert_eq!(tagged.read_u8().await.unwrap(), b'x');
        let waiting = tokio::spawn(async move { tagged.read_u8().await });
        cut.send(()).unwrap();
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
