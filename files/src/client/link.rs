//! Requests and their answers, over one stream after another.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
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

/// How long a program waits for a file while nothing comes, before it is told of an error.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many times as long it waits while other answers come.
const LONGEST: u32 = 12;

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
    /// When bytes came last.
    heard: Arc<Mutex<Instant>>,
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
    /// Has programs wait no longer than that while nothing comes.
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
            heard: Arc::new(Mutex::new(Instant::now())),
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
            ended = send_all(Box::pin(writer), queue, |request| stream.wants(request)) => ended,
        }
    }

    /// Fails with EIO once nothing has come for as long as the deadline, or sooner where
    /// there has been no stream for long: a program's call may be several requests, one
    /// after the other. By a slow stream what was asked for before has to come first.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Errno>>,
    ) -> Result<T, Errno> {
        let down = (*lock(&self.down_since)).map_or(Duration::ZERO, |since| since.elapsed());
        let mut patience = self.deadline.saturating_sub(down).max(self.deadline / 10);
        let began = Instant::now();
        let mut work = pin!(work);
        loop {
            if let Ok(done) = timeout(patience, &mut work).await {
                return done;
            }
            let silence = self.present().map(|stream| lock(&stream.heard).elapsed());
            patience = self
                .deadline
                .saturating_sub(silence.unwrap_or(self.deadline));
            if patience.is_zero() || began.elapsed() > self.deadline * LONGEST {
                return Err(Errno::IO);
            }
        }
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
            Some(Answer::Error(number)) => Err(errno(number)),
            result => Ok(result),
        })
    }

    /// Closes what the server has open. There is no answer.
    pub(super) async fn release(&self, handle: u64) {
        let op = Some(Op::Release(FileRelease { handle }));
        // Whatever it has open is closed with the stream.
        let _ = self.requests.send(FilesRequest { id: 0, op }).await;
    }

    /// Whether somebody waits still for what is to be done, or did never.
    fn wants(&self, request: &FilesRequest) -> bool {
        request.id == 0 || lock(&self.waiting).answers.contains_key(&request.id)
    }

    pub(super) fn is_open(&self) -> bool {
        !lock(&self.waiting).is_over
    }

    async fn receive<R: AsyncRead + Unpin>(&self, mut incoming: Incoming<R>) -> io::Result<()> {
        let heard = || *lock(&self.heard) = Instant::now();
        while let Some(answer) = incoming.receive_hearing::<FilesAnswer>(heard).await? {
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

/// An error of the server's, which may say anything.
fn errno(number: i32) -> Errno {
    match number {
        1..4096 => Errno::from_raw_os_error(number),
        _ => Errno::IO,
    }
}

/// Bytes that answer a request for some.
pub(super) fn data(answer: Option<Answer>) -> Result<Bytes, Errno> {
    match answer {
        Some(Answer::Data(data)) => Ok(data),
        _ => Err(Errno::PROTO),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const DEADLINE: Duration = Duration::from_millis(300);

    fn stat() -> Op {
        Op::Stat(kvpn_proto::v1::FileStat::default())
    }

    /// A link, and the server's end of its stream.
    fn linked() -> (Link, tokio::io::DuplexStream) {
        let link = Link::new(DEADLINE);
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let carried = link.clone();
        tokio::spawn(async move { carried.carry(ours).await });
        (link, theirs)
    }

    #[tokio::test]
    async fn answer_may_take_long_while_its_bytes_come() {
        let (link, mut server) = linked();
        let answering = async {
            let answer = FilesAnswer {
                id: 1,
                result: Some(Answer::Data(vec![7; 20].into())),
            };
            for byte in answer.encode_length_delimited_to_vec() {
                server.write_all(&[byte]).await.unwrap();
                tokio::time::sleep(DEADLINE / 10).await;
            }
        };
        let began = Instant::now();
        let (answer, ()) = tokio::join!(link.in_time(link.ask(stat())), answering);
        assert_eq!(data(answer.unwrap().1).unwrap().len(), 20);
        assert!(began.elapsed() > DEADLINE * 2);
    }

    #[tokio::test]
    async fn silent_stream_is_an_error_in_time() {
        let (link, _server) = linked();
        let began = Instant::now();
        let answer = link.in_time(link.ask(stat())).await;
        assert_eq!(answer.unwrap_err(), Errno::IO);
        assert!(began.elapsed() < DEADLINE * 3);
    }

    #[tokio::test]
    async fn request_that_nobody_waits_for_is_not_sent() {
        let (link, mut server) = linked();
        let stream = link.stream().await.unwrap();
        // Queued, but the stream's writer has had no turn.
        let mut given_up = Box::pin(stream.ask(stat()));
        assert!(poll_once(given_up.as_mut()).is_pending());
        drop(given_up);
        stream.release(9).await;
        let expected = FilesRequest {
            id: 0,
            op: Some(Op::Release(FileRelease { handle: 9 })),
        };
        let expected = expected.encode_length_delimited_to_vec();
        let mut sent = vec![0; expected.len()];
        server.read_exact(&mut sent).await.unwrap();
        assert_eq!(sent, expected);
    }

    fn poll_once<F: Future>(work: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
        work.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    }

    #[test]
    fn error_that_is_none_of_linux_is_eio() {
        assert_eq!(errno(2), Errno::NOENT);
        for number in [0, -2, 4096, i32::MAX, i32::MIN] {
            assert_eq!(errno(number), Errno::IO);
        }
    }
}
