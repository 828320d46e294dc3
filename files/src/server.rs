//! Answers requests for files, in the container or wherever its root can be opened.
//!
//! The process's umask applies to what is created: whoever serves sets it to 0, since
//! the client's kernel has applied that of the program already.

mod attributes;
mod exports;
mod handles;
mod listing;
mod operations;

use std::io;
use std::sync::Arc;

use kvpn_proto::v1::files_request::Op;
use kvpn_proto::v1::{FilesAnswer, FilesRequest, files_answer};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, split};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, trace};

pub use exports::{Exports, NotExported, Volume};
use operations::Files;

use crate::wire::{Incoming, send_all};

/// How many requests of one stream are worked on at once. Each has an answer of
/// some hundred kilobytes at most.
const WORKERS: usize = 16;

/// How many answers wait for the stream.
const QUEUE: usize = 16;

/// Serves until the stream ends; what it has opened is closed then.
pub async fn serve<S>(io: S, exports: Arc<Exports>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = split(io);
    let (answers, queue) = mpsc::channel(QUEUE);
    let sending = send_all(Box::pin(writer), queue, |_| true);
    let receiving = receive(Incoming::new(Box::pin(reader)), exports, answers);
    // The answers to what came last are still sent.
    let (received, sent) = tokio::join!(receiving, sending);
    received.and(sent)
}

async fn receive<R: AsyncRead + Unpin>(
    mut incoming: Incoming<R>,
    exports: Arc<Exports>,
    answers: mpsc::Sender<FilesAnswer>,
) -> io::Result<()> {
    let files = Arc::new(Files::new(exports));
    let workers = Arc::new(Semaphore::new(WORKERS));
    loop {
        // While the stream does not take answers, nothing more is read from it.
        let seat = workers.clone().acquire_owned().await;
        let seat = seat.map_err(io::Error::other)?;
        let request = tokio::select! {
            request = incoming.receive::<FilesRequest>() => request?,
            () = answers.closed() => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        let Some(request) = request else {
            return Ok(());
        };
        let (files, answers) = (files.clone(), answers.clone());
        // File systems block.
        tokio::task::spawn_blocking(move || {
            if let Some(answer) = answer(&files, request)
                && answers.blocking_send(answer).is_err()
            {
                debug!("Nobody waits for an answer about a file any more");
            }
            drop(seat);
        });
    }
}

fn answer(files: &Files, request: FilesRequest) -> Option<FilesAnswer> {
    let id = request.id;
    let done = match request.op {
        Some(Op::Release(release)) => {
            files.release(release.handle);
            return None;
        }
        Some(op) => files.perform(op),
        None => Err(Errno::NOSYS),
    };
    let result = match done {
        Ok(result) => result,
        Err(errno) => {
            trace!(id, %errno, "Refused");
            Some(files_answer::Result::Error(errno.raw_os_error()))
        }
    };
    Some(FilesAnswer { id, result })
}

#[cfg(test)]
mod tests;
