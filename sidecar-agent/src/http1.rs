//! HTTP/1 connections of which each request may go elsewhere. The bytes of requests
//! and responses pass as they are; only their heads are read (RFC 9112).

pub(crate) mod body;
pub(crate) mod end;
pub(crate) mod head;

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;
use tracing::debug;

use body::Body;
use head::{NotHttp, RequestHead, ResponseHead};

/// How much is read at once, in bytes.
const READ: usize = 16 << 10;

/// How long a client may be silent at first, before the server is asked whether it
/// begins.
const SILENCE: Duration = Duration::from_millis(30);

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// One end of a connection, with what was read of it and not passed on yet.
pub(crate) struct End {
    reader: Reader,
    writer: Writer,
    buffer: BytesMut,
}

/// Who gets a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    App,
    /// The holder of the claim of this id.
    Holder(String),
}

/// Says who gets what, and gives the way to them.
pub(crate) trait Servers {
    /// Who gets a request.
    fn choose(&self, head: &RequestHead) -> Server;
    /// Who gets what is no HTTP/1.
    fn other(&self) -> Server;
    /// A new connection.
    async fn connect(&self, server: &Server) -> io::Result<End>;
}

/// Why a connection did not end in order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the server's answer is {0}")]
    Answer(NotHttp),
    #[error("the body of a request is {0}")]
    Body(NotHttp),
    #[error("the server ended the connection before its answer did")]
    NoAnswer,
}

/// What follows a request and its response.
enum Next {
    Request,
    End,
    /// Something else than HTTP, with that server.
    Other,
    /// An answer of which nobody here knows where it ends.
    Unknown,
}

impl End {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (reader, writer) = split(stream);
        Self {
            reader: Box::new(reader),
            writer: Box::new(writer),
            buffer: BytesMut::new(),
        }
    }

    /// Reads more; gives how much, and 0 at the end.
    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ);
        self.reader.read_buf(&mut self.buffer).await
    }
}

/// Serves a client until its connection ends.
///
/// # Errors
/// What did not end in order; the client's connection should be aborted.
pub(crate) async fn serve(client: End, servers: &impl Servers) -> Result<(), Broken> {
    let mut client = client;
    // A server may be the first to speak.
    let mut kept = match timeout(SILENCE, client.fill()).await {
        Ok(read) => read.map(|_| None)?,
        // A request may be for somebody who can be had.
        Err(_) => connect(servers, servers.other()).await.ok(),
    };
    let mut is_first = true;
    loop {
        match next(&mut client, &mut kept).await? {
            Came::Request(head) => {
                let chosen = servers.choose(&head);
                let (server, mut end) = take(&mut kept, servers, chosen).await?;
                is_first = false;
                match exchange(&mut client, &mut end, &head).await? {
                    Next::Request => kept = Some((server, end)),
                    Next::End => {
                        kept = Some((server, end));
                        break;
                    }
                    Next::Other => return Ok(splice(client, end).await?),
                    // The client may know better where its answer ends.
                    Next::Unknown if server == Server::App => {
                        return Ok(splice(client, end).await?);
                    }
                    Next::Unknown => return Err(Broken::Answer(NotHttp)),
                }
            }
            // Such as that it has waited for too long.
            Came::Other if !is_first && has_spoken(&kept) => {
                if let Some((_, end)) = &kept {
                    client.writer.write_all(&end.buffer).await?;
                }
                break;
            }
            Came::Other => {
                let (_, end) = match kept {
                    Some(spoke) if !spoke.1.buffer.is_empty() => spoke,
                    mut kept => take(&mut kept, servers, servers.other()).await?,
                };
                return Ok(splice(client, end).await?);
            }
            Came::End => break,
        }
    }
    if let Some((_, mut end)) = kept {
        // It has answered everything.
        let _ = end.writer.shutdown().await;
    }
    client.writer.shutdown().await?;
    Ok(())
}

/// A connection to a server, with who it is.
type Connection = (Server, End);

/// What comes next on a client's connection.
enum Came {
    Request(RequestHead),
    /// No HTTP/1, or a server that says something in its turn.
    Other,
    End,
}

/// The connection that is kept, if it is to that server; else a new one.
async fn take(
    kept: &mut Option<Connection>,
    servers: &impl Servers,
    server: Server,
) -> io::Result<Connection> {
    match kept.take() {
        Some(kept) if kept.0 == server => Ok(kept),
        Some(_) | None => connect(servers, server).await,
    }
}

/// A new connection, to the app when the holder of a claim cannot be had.
async fn connect(servers: &impl Servers, server: Server) -> io::Result<Connection> {
    match servers.connect(&server).await {
        Ok(end) => Ok((server, end)),
        Err(error) if server == Server::App => Err(error),
        Err(error) => {
            debug!(%error, ?server, "The app answers instead");
            let app = Server::App;
            let end = servers.connect(&app).await?;
            Ok((app, end))
        }
    }
}

/// Whether the server has said something that nobody asked for.
fn has_spoken(kept: &Option<Connection>) -> bool {
    kept.as_ref().is_some_and(|(_, end)| !end.buffer.is_empty())
}

/// Waits for what comes next. When the connection to the app that is kept ends
/// meanwhile, so does the client's.
async fn next(client: &mut End, kept: &mut Option<Connection>) -> io::Result<Came> {
    if has_spoken(kept) {
        return Ok(Came::Other);
    }
    loop {
        match RequestHead::read(&client.buffer) {
            Ok(Some(head)) => return Ok(Came::Request(head)),
            Ok(None) if client.buffer.len() < head::LONGEST => {}
            Ok(None) | Err(NotHttp) => return Ok(Came::Other),
        }
        let unasked = async {
            match kept {
                Some((_, end)) => end.fill().await.unwrap_or(0),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A server that has ended is not to be asked.
            biased;
            read = unasked => match kept.take() {
                Some((Server::App, _)) if read == 0 && client.buffer.is_empty() => {
                    return Ok(Came::End);
                }
                Some(_) if read == 0 => {}
                spoke => {
                    *kept = spoke;
                    return Ok(Came::Other);
                }
            },
            read = client.fill() => match read? {
                0 if client.buffer.is_empty() => return Ok(Came::End),
                0 => return Ok(Came::Other),
                _ => {}
            },
        }
    }
}

/// Passes a request to a server, and its response back.
async fn exchange(client: &mut End, server: &mut End, head: &RequestHead) -> Result<Next, Broken> {
    let End {
        reader,
        writer,
        buffer,
    } = client;
    let End {
        reader: server_reader,
        writer: server_writer,
        buffer: server_buffer,
    } = server;
    let send = async {
        let written = server_writer.write_all(&buffer[..head.length]).await;
        buffer.advance(head.length);
        written.map_err(NotPassed::Write)?;
        let mut body = Body::new(head.framing);
        pass(&mut body, reader, buffer, server_writer).await
    };
    let receive = answer(server_reader, server_buffer, writer, head);
    let (mut send, mut receive) = (std::pin::pin!(send), std::pin::pin!(receive));
    let mut sent = None;
    let next = loop {
        tokio::select! {
            outcome = &mut send, if sent.is_none() => match outcome {
                // What it wants no more it may answer all the same.
                Ok(()) | Err(NotPassed::Write(_)) => sent = Some(outcome),
                Err(error) => return Err(error.of_request()),
            },
            next = &mut receive => break next?,
        }
    };
    if matches!(next, Next::End) {
        return Ok(next);
    }
    let sent = match sent {
        Some(sent) => sent,
        None => send.await,
    };
    sent.map_err(NotPassed::of_request)?;
    Ok(next)
}

/// Passes the response to a request to the client.
async fn answer(
    reader: &mut Reader,
    buffer: &mut BytesMut,
    client: &mut Writer,
    to: &RequestHead,
) -> Result<Next, Broken> {
    loop {
        let head = loop {
            match ResponseHead::read(buffer, to) {
                Ok(Some(head)) => break head,
                Ok(None) if buffer.len() < head::LONGEST => {}
                Ok(None) | Err(NotHttp) => return Ok(Next::Unknown),
            }
            buffer.reserve(READ);
            if reader.read_buf(buffer).await? == 0 {
                return Err(Broken::NoAnswer);
            }
        };
        client.write_all(&buffer[..head.length]).await?;
        buffer.advance(head.length);
        if head.is_switch(to) {
            return Ok(Next::Other);
        }
        if head.is_interim() {
            client.flush().await?;
            continue;
        }
        let mut body = Body::new(head.framing);
        let passed = pass(&mut body, reader, buffer, client).await;
        passed.map_err(NotPassed::of_answer)?;
        return Ok(if head.is_last || to.is_last {
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
            Self::Cut => Broken::NoAnswer,
        }
    }
}

/// Passes a body on as it comes.
async fn pass(
    body: &mut Body,
    reader: &mut Reader,
    buffer: &mut BytesMut,
    writer: &mut Writer,
) -> Result<(), NotPassed> {
    loop {
        let length = body.pass(buffer).map_err(NotPassed::Malformed)?;
        let written = writer.write_all(&buffer[..length]).await;
        written.map_err(NotPassed::Write)?;
        buffer.advance(length);
        if body.has_ended() {
            return writer.flush().await.map_err(NotPassed::Write);
        }
        buffer.reserve(READ);
        if reader.read_buf(buffer).await.map_err(NotPassed::Read)? == 0 {
            return if body.ends_with_connection() {
                writer.flush().await.map_err(NotPassed::Write)
            } else {
                Err(NotPassed::Cut)
            };
        }
    }
}

/// Passes everything in both directions.
async fn splice(client: End, server: End) -> io::Result<()> {
    let one = copy(client.reader, client.buffer, server.writer);
    let other = copy(server.reader, server.buffer, client.writer);
    tokio::try_join!(one, other).map(drop)
}

async fn copy(mut reader: Reader, buffer: BytesMut, mut writer: Writer) -> io::Result<()> {
    writer.write_all(&buffer).await?;
    drop(buffer);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

#[cfg(test)]
mod tests;
