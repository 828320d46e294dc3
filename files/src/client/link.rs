//! Requests and their answers, over one stream after another.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvpn_proto::v1::files_answer::Result as Answer;
use kvpn_proto::v1::files_request::Op;
use kvpn_proto::v1::{FileRelease, FilesAnswer, FilesRequest};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::debug;

use super::table::lock;
use crate::wire::{Incoming, send_all};

/// How long a program waits for a file at most, before it is told of an error.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many requests wait for the stream to take them.
const QUEUE: usize = 64;

/// Where requests are sent; to nobody until a stream is there. Clones are the same.
#[derive(Clone, Debug)]
pub struct Link {
    streams: watch::Sender<Option<Stream>>,
    last_epoch: Arc<Mutex<u64>>,
    /// Since when there is no stream any more.
    down_since: Arc<Mutex<Option<Instant>>>,
    deadline: Duration,
}

/// One of the streams, the later ones of which have greater epochs.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) epoch: u64,
    requests: mpsc::Sender<FilesRequest>,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    answers: HashMap<u64, oneshot::Sender<FilesAnswer>>,
    is_over: bool,
}

/// The stream ended before there was an answer.
#[derive(Debug)]
pub(super) struct Lost;

impl Default for Link {
    fn default() -> Self {
        Self::new(DEADLINE)
    }
}

impl Link {
    /// Has programs wait no longer than that.
    pub fn new(deadline: Duration) -> Self {
        Self {
            streams: watch::Sender::new(None),
            last_epoch: Arc::default(),
            down_since: Arc::default(),
            deadline,
        }
    }

    /// Uses the stream in place of the one before, until it ends.
    pub async fn carry<S: AsyncRead + AsyncWrite>(&self, io: S) -> io::Result<()> {
        let (reader, writer) = split(io);
        let (requests, queue) = mpsc::channel(QUEUE);
        let epoch = {
            let mut last = lock(&self.last_epoch);
            *last += 1;
            *last
        };
        let stream = Stream {
            epoch,
            requests,
            waiting: Arc::default(),
        };
        // Also when this future is dropped.
        let _end = End {
            link: self,
            stream: &stream,
        };
        *lock(&self.down_since) = None;
        self.streams.send_replace(Some(stream.clone()));
        tokio::select! {
            ended = stream.receive(Incoming::new(Box::pin(reader))) => ended,
            ended = send_all(Box::pin(writer), queue) => ended,
        }
    }

    /// Fails with EIO after the deadline, or sooner where there has been no stream for
    /// long: a program's call may be several requests, one after the other.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Errno>>,
    ) -> Result<T, Errno> {
        let down = (*lock(&self.down_since)).map_or(Duration::ZERO, |since| since.elapsed());
        let patience = self.deadline.saturating_sub(down).max(self.deadline / 10);
        timeout(patience, work).await.unwrap_or(Err(Errno::IO))
    }

    /// The stream that there is, once there is one.
    pub(super) async fn stream(&self) -> Result<Stream, Errno> {
        let mut streams = self.streams.subscribe();
        let stream = streams.wait_for(|stream| stream.as_ref().is_some_and(Stream::is_open));
        let stream = stream.await.map_err(|_| Errno::IO)?;
        stream.clone().ok_or(Errno::IO)
    }

    /// The stream that there is now.
    pub(super) fn present(&self) -> Option<Stream> {
        self.streams.borrow().clone()
    }

    /// Asks, and asks again over the next stream when this one ends.
    pub(super) async fn ask(&self, op: Op) -> Result<(u64, Option<Answer>), Errno> {
        loop {
            let stream = self.stream().await?;
            match stream.ask(op.clone()).await {
                Ok(answer) => return Ok((stream.epoch, answer?)),
                Err(Lost) => tokio::task::yield_now().await,
            }
        }
    }

    /// Asks for what must not be done twice: when the stream ends nobody knows whether
    /// it was done.
    pub(super) async fn ask_once(&self, op: Op) -> Result<(u64, Option<Answer>), Errno> {
        let stream = self.stream().await?;
        match stream.ask(op).await {
            Ok(answer) => Ok((stream.epoch, answer?)),
            Err(Lost) => Err(Errno::IO),
        }
    }
}

impl Stream {
    pub(super) async fn ask(&self, op: Op) -> Result<Result<Option<Answer>, Errno>, Lost> {
        let (answer_tx, answer_rx) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if waiting.is_over {
                return Err(Lost);
            }
            waiting.last_id += 1;
            let id = waiting.last_id;
            waiting.answers.insert(id, answer_tx);
            id
        };
        let _forgotten = Forgotten { stream: self, id };
        let request = FilesRequest { id, op: Some(op) };
        self.requests.send(request).await.map_err(|_| Lost)?;
        let answer = answer_rx.await.map_err(|_| Lost)?;
        Ok(match answer.result {
            Some(Answer::Error(number)) => Err(Errno::from_raw_os_error(number)),
            result => Ok(result),
        })
    }

    /// Closes what the server has open. There is no answer.
    pub(super) async fn release(&self, handle: u64) {
        let op = Some(Op::Release(FileRelease { handle }));
        // Whatever it has open is closed with the stream.
        let _ = self.requests.send(FilesRequest { id: 0, op }).await;
    }

    pub(super) fn is_open(&self) -> bool {
        !lock(&self.waiting).is_over
    }

    async fn receive<R: AsyncRead + Unpin>(&self, mut incoming: Incoming<R>) -> io::Result<()> {
        while let Some(answer) = incoming.receive::<FilesAnswer>().await? {
            let waits = lock(&self.waiting).answers.remove(&answer.id);
            let unwanted = match waits {
                Some(waits) => waits.send(answer).err(),
                None => Some(answer),
            };
            // Whoever wanted it open has given up.
            if let Some(FilesAnswer {
                result: Some(Answer::Opened(opened)),
                ..
            }) = unwanted
            {
                debug!("A file was opened too late");
                let stream = self.clone();
                tokio::spawn(async move { stream.release(opened.handle).await });
            }
        }
        Ok(())
    }
}

/// Ends a stream for those who wait.
struct End<'a> {
    link: &'a Link,
    stream: &'a Stream,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        {
            let mut waiting = lock(&self.stream.waiting);
            waiting.is_over = true;
            waiting.answers.clear();
        }
        self.link.streams.send_if_modified(|present| {
            let is_ours = present
                .as_ref()
                .is_some_and(|p| p.epoch == self.stream.epoch);
            if is_ours {
                *present = None;
                *lock(&self.link.down_since) = Some(Instant::now());
            }
            is_ours
        });
    }
}

/// Forgets a request that nobody waits for any more.
struct Forgotten<'a> {
    stream: &'a Stream,
    id: u64,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        lock(&self.stream.waiting).answers.remove(&self.id);
    }
}

/// Bytes that answer a request for some.
pub(super) fn data(answer: Option<Answer>) -> Result<Bytes, Errno> {
    match answer {
        Some(Answer::Data(data)) => Ok(data),
        _ => Err(Errno::PROTO),
    }
}
