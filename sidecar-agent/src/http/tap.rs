//! Copies of what is sent to a server, for those who look on.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt, copy, sink};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;
use tracing::debug;

use super::End;

/// How many pieces of a copy may wait, of some 16 KiB at the most each.
const PIECES: usize = 32;

/// How long who looks on may go on answering after the last piece.
const ANSWERS: Duration = Duration::from_secs(10);

/// Takes a copy; so do its clones, which are one. Nobody waits for it: a copy for which there is no room is given up, and
/// cut off, as it must not look whole.
#[derive(Clone)]
pub(crate) struct Tap {
    /// None once it has been given up.
    pieces: Option<mpsc::Sender<Bytes>>,
    task: AbortHandle,
}

impl Tap {
    /// Copies to where the connection leads. `spawn` has it run.
    pub(crate) fn new<C>(connecting: C, spawn: impl FnOnce(Carrying<C>) -> JoinHandle<()>) -> Self
    where
        C: Future<Output = io::Result<End>>,
    {
        let (pieces, waiting) = mpsc::channel(PIECES);
        let task = spawn(Carrying {
            connecting,
            pieces: waiting,
        });
        Self {
            pieces: Some(pieces),
            task: task.abort_handle(),
        }
    }

    /// Whether it still takes something.
    pub(super) fn is_open(&self) -> bool {
        self.pieces.as_ref().is_some_and(|it| !it.is_closed())
    }

    fn feed(&mut self, bytes: &[u8]) {
        let Some(pieces) = &self.pieces else {
            return;
        };
        if pieces.try_send(Bytes::copy_from_slice(bytes)).is_err() {
            debug!("A copy is given up");
            self.pieces = None;
            self.task.abort();
        }
    }
}

/// What carries a copy.
pub(crate) struct Carrying<C> {
    connecting: C,
    pieces: mpsc::Receiver<Bytes>,
}

impl<C: Future<Output = io::Result<End>>> Carrying<C> {
    /// Carries it to its end, and throws the answers away.
    pub(crate) async fn run(self) {
        let Self {
            connecting,
            mut pieces,
        } = self;
        let carry = async {
            let mut end = connecting.await?;
            let mut nowhere = sink();
            let mut answers = pin!(copy(&mut end.reader, &mut nowhere));
            let writer = &mut end.writer;
            let mut copied = pin!(async {
                while let Some(piece) = pieces.recv().await {
                    writer.write_all(&piece).await?;
                }
                writer.shutdown().await
            });
            let mut has_answered = false;
            loop {
                tokio::select! {
                    copied = &mut copied => break copied?,
                    answered = &mut answers, if !has_answered => {
                        answered?;
                        has_answered = true;
                    }
                }
            }
            if !has_answered {
                let _ = timeout(ANSWERS, answers).await;
            }
            Ok::<_, io::Error>(())
        };
        if let Err(error) = carry.await {
            debug!(%error, "A copy was not taken");
        }
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
        for tap in &mut self.taps {
            tap.feed(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
