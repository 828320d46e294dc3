//! Both directions of one end as one stream of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::End;

/// An end whose buffer is read first.
pub(crate) struct Joined(End);

impl Joined {
    pub(crate) fn new(end: End) -> Self {
        Self(end)
    }
}

impl AsyncRead for Joined {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let buffer = &mut self.0.buffer;
        if buffer.is_empty() {
            return Pin::new(&mut self.0.reader).poll_read(cx, into);
        }
        let length = buffer.len().min(into.remaining());
        into.put_slice(&buffer[..length]);
        buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Joined {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.writer).poll_shutdown(cx)
    }
}
