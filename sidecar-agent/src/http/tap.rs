//! Copies of what is sent to a server, for those who look on.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use super::End;

/// How much of a copy may wait, in bytes.
const ROOM: usize = 1 << 20;

/// What a piece takes besides its bytes.
const OF_PIECE: usize = 64;

/// How long nothing is answered before the end of a copy is passed on.
const QUIET: Duration = if cfg!(test) {
    Duration::from_millis(50)
} else {
    Duration::from_secs(1)
};

/// How much of an answer is thrown away at once, in bytes.
const ANSWER: usize = 4 << 10;

/// How long a copy may go on after the last piece, and its answers.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Takes a copy; so do its clones, which are one. Nobody waits for it: a copy for which
/// there is no room is given up, and cut off, as it must not look whole.
#[derive(Clone)]
pub(crate) struct Tap(Arc<Shared>);

struct Shared {
    /// Pieces, and at the end of a whole copy nothing.
    pieces: mpsc::UnboundedSender<Option<Bytes>>,
    state: Arc<State>,
    /// The last who feeds it is gone.
    _gone: DropGuard,
}

#[derive(Default)]
struct State {
    /// Bytes.
    waiting: AtomicUsize,
    given_up: CancellationToken,
}

/// A connection for a copy, and what carries its bytes meanwhile.
pub(crate) type Connected = (End, BoxFuture<'static, ()>);

impl Tap {
    /// Copies to where `connecting` leads, once there is something. Such a copy ends with
    /// its answers if `is_answered`. What is to be run with it comes besides, and tells
    /// whether the copy was taken.
    pub(crate) fn new(
        connecting: impl Future<Output = io::Result<Connected>>,
        is_answered: bool,
    ) -> (Self, impl Future<Output = bool>) {
        let (sender, pieces) = mpsc::unbounded_channel();
        let state = Arc::<State>::default();
        let gone = CancellationToken::new();
        let carrying = Carrying {
            connecting,
            pieces,
            state: Arc::clone(&state),
            is_answered,
        };
        let is_over = gone.clone();
        let run = async move {
            let state = Arc::clone(&carrying.state);
            let too_late = async {
                is_over.cancelled().await;
                sleep(AFTERWARDS).await;
            };
            let is_taken = tokio::select! {
                carried = carrying.run() => match carried {
                    Ok(()) | Err(Untaken::CutOff) => true,
                    Err(Untaken::Io(error)) => {
                        debug!(%error, "A copy was not taken");
                        false
                    }
                },
                () = too_late => {
                    debug!("A copy did not end in time");
                    state.waiting.load(Ordering::Relaxed) == 0
                }
                () = state.given_up.cancelled() => {
                    debug!("A copy is given up");
                    false
                }
            };
            state.given_up.cancel();
            is_taken
        };
        let tap = Self(Arc::new(Shared {
            pieces: sender,
            state,
            _gone: gone.drop_guard(),
        }));
        (tap, run)
    }

    /// Whether it still takes something.
    pub(super) fn is_open(&self) -> bool {
        !self.0.state.given_up.is_cancelled()
    }

    /// Whether both are the same copy.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Nothing follows, and the copy is whole.
    pub(super) fn finish(&self) {
        // Who has ended needs not be told.
        let _ = self.0.pieces.send(None);
    }

    fn feed(&self, bytes: &[u8]) {
        let state = &self.0.state;
        if state.given_up.is_cancelled() {
            return;
        }
        let length = bytes.len() + OF_PIECE;
        if state.waiting.fetch_add(length, Ordering::Relaxed) + length > ROOM {
            state.given_up.cancel();
            return;
        }
        let _ = self.0.pieces.send(Some(Bytes::copy_from_slice(bytes)));
    }
}

/// Why a copy was not taken as a whole.
#[derive(Debug, thiserror::Error)]
enum Untaken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("what is copied was cut off")]
    CutOff,
}

/// What carries a copy.
struct Carrying<C> {
    connecting: C,
    pieces: mpsc::UnboundedReceiver<Option<Bytes>>,
    state: Arc<State>,
    is_answered: bool,
}

impl<C: Future<Output = io::Result<Connected>>> Carrying<C> {
    /// Carries it to its end, and throws the answers away.
    async fn run(mut self) -> Result<(), Untaken> {
        let Some(first) = self.next().await else {
            return Ok(());
        };
        let (mut end, relay) = self.connecting.await?;
        let answered = Notify::new();
        let reader = &mut end.reader;
        let mut answers = pin!(async {
            let mut thrown_away = vec![0; ANSWER];
            while reader.read(&mut thrown_away).await? > 0 {
                answered.notify_one();
            }
            Ok::<_, Untaken>(())
        });
        let writer = &mut end.writer;
        let (pieces, state) = (&mut self.pieces, &self.state);
        let mut copied = pin!(async {
            let mut piece = first;
            loop {
                writer.write_all(&piece).await?;
                let length = piece.len() + OF_PIECE;
                state.waiting.fetch_sub(length, Ordering::Relaxed);
                piece = match pieces.recv().await {
                    Some(Some(piece)) => piece,
                    Some(None) => {
                        // A client ends when it has its answers, and servers drop what
                        // they have not answered by then.
                        while timeout(QUIET, answered.notified()).await.is_ok() {}
                        return Ok(writer.shutdown().await?);
                    }
                    None => return Err(Untaken::CutOff),
                };
            }
        });
        let mut relay = relay;
        let (mut has_copied, mut has_answered) = (false, false);
        while !(has_copied && has_answered) {
            tokio::select! {
                () = &mut relay => break,
                outcome = &mut copied, if !has_copied => {
                    outcome?;
                    has_copied = true;
                }
                outcome = &mut answers, if !has_answered => {
                    outcome?;
                    if self.is_answered {
                        break;
                    }
                    has_answered = true;
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<Bytes> {
        self.pieces.recv().await.flatten()
    }
}

/// What is written to a server, with those who get a copy of it.
pub(crate) struct Tee {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub(super) taps: Vec<Tap>,
}

impl Tee {
    /// Without copies.
    pub(super) fn new(writer: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self {
            writer: Box::new(writer),
            taps: Vec::new(),
        }
    }
}

impl AsyncWrite for Tee {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.writer).poll_write(cx, bytes))?;
        for tap in &self.taps {
            tap.feed(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.writer).poll_shutdown(cx))?;
        for tap in self.taps.drain(..) {
            tap.finish();
        }
        Poll::Ready(Ok(()))
    }
}
