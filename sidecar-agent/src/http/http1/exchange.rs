//! One request and its response.

use std::io;
use std::ops::Range;
use std::pin::pin;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::body::Body;
use super::head::{self, NotHttp, RequestHead, ResponseHead};
use crate::http::{Broken, End, READ, Reader, Writer};
use crate::reports::Entry;

/// What follows a request and its response.
pub(super) enum Next {
    Request,
    End,
    /// Something else than HTTP, with that server.
    Other,
    /// An answer of which nobody here knows where it ends.
    Unknown,
}

/// Passes a request to a server, and its response back.
///
/// # Errors
/// [`Broken::NoAnswer`] when the server ended before it answered anything, and the request
/// has left the client's buffer.
pub(super) async fn exchange(
    client: &mut End,
    server: &mut End,
    head: &RequestHead,
    entry: &mut Entry,
) -> Result<Next, Broken> {
    let End {
        reader,
        writer,
        buffer,
    } = client;
    let (from, said) = (&mut server.reader, &mut server.buffer);
    let mut receive = pin!(answer(from, said, writer, head, entry));
    let mut answered = None;
    let sent = {
        let mut send = pin!(request(reader, buffer, &mut server.writer, head));
        loop {
            tokio::select! {
                // In this order, so that the head has left the buffer.
                biased;
                sent = &mut send => break sent,
                next = &mut receive, if answered.is_none() => match next {
                    // It wants no more of the request.
                    Ok(Next::End) => return Ok(Next::End),
                    Ok(next @ (Next::Request | Next::Other | Next::Unknown)) => {
                        answered = Some(next);
                    }
                    // Nobody can ask it again.
                    Err(Broken::NoAnswer) => return Err(Broken::Cut),
                    Err(error) => return Err(error),
                },
            }
        }
    };
    let is_cut = match sent {
        Ok(()) => false,
        // What it wants no more it may answer all the same. What is left of the
        // request must not be taken for the next one.
        Err(NotPassed::Write(_)) => true,
        Err(error) => return Err(error.of_request()),
    };
    let is_last = head.is_last || is_cut;
    let (next, is_last) = match answered {
        Some(next) => (next, is_last),
        None if is_cut => (receive.await?, true),
        None => {
            let mut watch = pin!(watch(reader, buffer, &mut server.writer));
            let mut has_ended = None;
            let next = loop {
                tokio::select! {
                    next = &mut receive => break next?,
                    ended = &mut watch, if has_ended.is_none() => has_ended = Some(ended?),
                }
            };
            (next, is_last || has_ended == Some(true))
        }
    };
    Ok(if is_last && matches!(next, Next::Request) {
        Next::End
    } else {
        next
    })
}

async fn request(
    reader: &mut Reader,
    buffer: &mut BytesMut,
    server: &mut Writer,
    head: &RequestHead,
) -> Result<(), NotPassed> {
    let Range { start, end } = head.left_out;
    let rest = head.length - end;
    if end > 0 {
        let written = server.write_all(&buffer[..start]).await;
        buffer.advance(end);
        if let Err(error) = written {
            buffer.advance(rest);
            return Err(NotPassed::Write(error));
        }
    }
    pass(rest, &mut Body::new(head.framing), reader, buffer, server).await
}

/// Watches a client that waits for its answer: the server may want to know that it has
/// left, or that it asks nothing more. Reads its next requests meanwhile, up to a limit.
/// Tells whether the server's connection was ended for it.
async fn watch(
    reader: &mut Reader,
    buffer: &mut BytesMut,
    server: &mut Writer,
) -> io::Result<bool> {
    while buffer.len() < head::LONGEST {
        buffer.reserve(READ);
        if reader.read_buf(buffer).await? > 0 {
            continue;
        }
        if buffer.is_empty() {
            let _ = server.shutdown().await;
            return Ok(true);
        }
        break;
    }
    Ok(false)
}

/// Passes the response to a request to the client.
async fn answer(
    reader: &mut Reader,
    buffer: &mut BytesMut,
    client: &mut Writer,
    to: &RequestHead,
    entry: &mut Entry,
) -> Result<Next, Broken> {
    let mut has_begun = false;
    loop {
        let head = loop {
            match ResponseHead::read(buffer, to) {
                Ok(Some(head)) => break head,
                Ok(None) if buffer.len() < head::LONGEST => {}
                Ok(None) | Err(NotHttp) => return Ok(Next::Unknown),
            }
            buffer.reserve(READ);
            match reader.read_buf(buffer).await {
                Ok(0) | Err(_) if !has_begun => return Err(Broken::NoAnswer),
                Ok(0) => return Err(Broken::Cut),
                Ok(_) => has_begun = true,
                Err(error) => return Err(error.into()),
            }
        };
        let is_switch = head.is_switch(to);
        if is_switch || !head.is_interim() {
            entry.answered(head.status);
        }
        if is_switch || head.is_interim() {
            client.write_all(&buffer[..head.length]).await?;
            client.flush().await?;
            buffer.advance(head.length);
            if is_switch {
                return Ok(Next::Other);
            }
            continue;
        }
        let mut body = Body::new(head.framing);
        let passed = pass(head.length, &mut body, reader, buffer, client).await;
        passed.map_err(NotPassed::of_answer)?;
        return Ok(if head.is_last {
            Next::End
        } else {
            Next::Request
        });
    }
}

/// Why a body did not pass.
enum NotPassed {
    Read(io::Error),
    Write(io::Error),
    Malformed(NotHttp),
    /// The connection ended before it.
    Cut,
}

impl NotPassed {
    fn of_request(self) -> Broken {
        match self {
            Self::Read(error) | Self::Write(error) => error.into(),
            Self::Malformed(error) => Broken::Body(error),
            Self::Cut => io::Error::from(io::ErrorKind::UnexpectedEof).into(),
        }
    }

    fn of_answer(self) -> Broken {
        match self {
            Self::Read(error) | Self::Write(error) => error.into(),
            Self::Malformed(error) => Broken::Answer(error),
            Self::Cut => Broken::Cut,
        }
    }
}

/// Passes a body on as it comes, behind a head of that length.
async fn pass(
    head: usize,
    body: &mut Body,
    reader: &mut Reader,
    buffer: &mut BytesMut,
    writer: &mut Writer,
) -> Result<(), NotPassed> {
    let mut head = head;
    loop {
        let length = body.pass(&buffer[head..]).map_err(NotPassed::Malformed)?;
        // At once, as each write is a packet.
        let length = std::mem::take(&mut head) + length;
        let written = writer.write_all(&buffer[..length]).await;
        buffer.advance(length);
        written.map_err(NotPassed::Write)?;
        if body.has_ended() {
            return writer.flush().await.map_err(NotPassed::Write);
        }
        // TLS may keep the end of what it was given.
        writer.flush().await.map_err(NotPassed::Write)?;
        buffer.reserve(READ);
        if reader.read_buf(buffer).await.map_err(NotPassed::Read)? == 0 {
            return if body.ends_with_connection() {
                Ok(())
            } else {
                Err(NotPassed::Cut)
            };
        }
    }
}
