//! Byte streams of which one that is dropped without a shutdown is cut off, and not
//! just at its end: what is left half must not look whole.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kvpn_tunnel::relay;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpStream;
use tracing::debug;

/// How long a connection is silent before the other side is asked whether it is there.
const ALIVE: Duration = Duration::from_secs(60);

/// A TCP connection; cut off means RST.
pub(crate) struct Tcp(TcpStream);

impl Tcp {
    pub(crate) fn new(socket: TcpStream) -> Self {
        relay::abort_on_close(&socket, true);
        let keepalive = TcpKeepalive::new().with_time(ALIVE).with_interval(ALIVE);
        if let Err(error) = SockRef::from(&socket).set_tcp_keepalive(&keepalive) {
            debug!(%error, "The end of a silent client will not be noticed");
        }
        Self(socket)
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_shutdown(cx))?;
        relay::abort_on_close(&self.0, false);
        Poll::Ready(Ok(()))
    }
}

/// One end of a pipe within this process; cut off, the other end's reader fails.
pub(crate) struct Pipe {
    stream: DuplexStream,
    /// Whether this end has sent all it had to.
    is_whole: Arc<AtomicBool>,
    /// The same of the other.
    is_other_whole: Arc<AtomicBool>,
}

impl Pipe {
    /// Both ends, with room for so many bytes each way.
    pub(crate) fn new(room: usize) -> (Self, Self) {
        let (one, other) = duplex(room);
        let (is_one, is_other) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let end = |stream, is_whole: &Arc<AtomicBool>, is_other_whole: &Arc<AtomicBool>| Self {
            stream,
            is_whole: Arc::clone(is_whole),
            is_other_whole: Arc::clone(is_other_whole),
        };
        (end(one, &is_one, &is_other), end(other, &is_other, &is_one))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let is_end = before > 0 && buffer.remaining() == before;
        if is_end && !self.is_other_whole.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Before the other end can see the end.
        self.is_whole.store(true, Ordering::Release);
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn read_to_end(mut end: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        end.read_to_end(&mut read).await.map(|_| read)
    }

    #[tokio::test]
    async fn pipe_that_is_dropped_is_cut_off() {
        let (mut one, other) = Pipe::new(64);
        one.write_all(b"all").await.unwrap();
        one.shutdown().await.unwrap();
        drop(one);
        assert_eq!(read_to_end(other).await.unwrap(), b"all");

        let (mut one, other) = Pipe::new(64);
        one.write_all(b"hal").await.unwrap();
        drop(one);
        let error = read_to_end(other).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn connection_that_is_dropped_is_reset() {
        for is_whole in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let dialled = TcpStream::connect(listener.local_addr().unwrap());
            let (dialled, accepted) = tokio::join!(dialled, listener.accept());
            // In halves, as it is used.
            let (reader, mut writer) = tokio::io::split(Tcp::new(accepted.unwrap().0));
            writer.write_all(b"x").await.unwrap();
            if is_whole {
                writer.shutdown().await.unwrap();
            }
            drop((reader, writer));
            assert_eq!(read_to_end(dialled.unwrap()).await.is_ok(), is_whole);
        }
    }
}
