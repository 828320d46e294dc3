//! A body of any size that takes no memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use kvpn_tests::pattern;

/// Size of a piece.
const PIECE: u64 = 64 * 1024;

/// The bytes of [`kvpn_tests::pattern`] with seed 0.
#[derive(Debug)]
pub(crate) struct Pattern {
    size: u64,
    sent: u64,
}

impl Pattern {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, sent: 0 }
    }

    pub(crate) fn boxed(self) -> super::answer::Body {
        BodyExt::boxed(self.map_err(|never| match never {}))
    }
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let size = PIECE.min(self.size - self.sent);
        if size == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; size as usize];
        pattern::fill(0, self.sent, &mut piece);
        self.sent += size;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.size
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size - self.sent)
    }
}
