//! HTTP connections of which each request may go elsewhere.

pub(crate) mod end;
mod http1;
mod http2;
pub(crate) mod joined;
pub(crate) mod tap;

use std::io;

use bytes::BytesMut;
use kvpn_proto::filter::Head;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};

use http1::NotHttp;
pub(crate) use http1::{Served, serve};
use tap::{Tap, Tee};

use crate::reports::Entry;

/// How much is read at once, in bytes.
const READ: usize = 16 << 10;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Tee;

/// One end of a connection, with what was read of it and not passed on yet.
pub(crate) struct End {
    reader: Reader,
    writer: Writer,
    buffer: BytesMut,
}

/// Who gets a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    App,
    /// The holder of the claim of this id.
    Holder(String),
}

/// Says who gets what, and gives the way to them.
pub(crate) trait Servers {
    /// Whether it is known that the client is the first to speak.
    fn is_clients_word(&self) -> bool;
    /// Whether the TLS of a client that begins with it is to be ended.
    fn ends_tls(&self) -> bool;
    /// Who gets a request.
    fn choose(&self, head: &impl Head) -> Server;
    /// Who gets what is no HTTP.
    fn other(&self) -> Server;
    /// Counts a request that goes there.
    fn note(&self, server: &Server, head: &impl Head) -> Entry;
    /// Counts what is no HTTP and goes there.
    fn note_other(&self, server: &Server) -> Entry;
    /// Whether nobody answers when that server does not.
    fn fails_closed(&self, server: &Server) -> bool;
    /// A new connection.
    async fn connect(&self, server: &Server) -> io::Result<End>;
    /// Who gets a copy of a request: the holders of claims of these ids.
    fn copied(&self, head: &impl Head) -> Vec<String>;
    /// Who gets a copy of what is no HTTP.
    fn other_copied(&self) -> Vec<String>;
    /// A new copy for the holder of a claim, unless that cannot be had. One whose answers
    /// are awaited ends with them.
    fn tap(&self, claim_id: &str, is_answered: bool) -> Option<Tap>;
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
    /// Nothing of it has come.
    #[error("the server ended the connection without an answer")]
    NoAnswer,
    #[error("the server ended the connection before its answer did")]
    Cut,
    /// So nobody may answer.
    #[error("nobody can look into the client's TLS")]
    Blind,
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
}

impl End {
    pub(crate) fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (reader, writer) = split(stream);
        Self {
            reader: Box::new(reader),
            writer: Tee::new(writer),
            buffer: BytesMut::new(),
        }
    }

    /// Ends it in order; nothing of it is awaited.
    pub(crate) async fn end(mut self) {
        let _ = self.writer.shutdown().await;
    }

    /// Reads more; gives how much, and 0 at the end.
    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ);
        self.reader.read_buf(&mut self.buffer).await
    }
}

/// A connection to a server, with who it is.
type Connection = (Server, End);

/// Serves a client whose bytes are not looked at.
///
/// # Errors
/// What did not end in order; the client's connection should be aborted.
pub(crate) async fn serve_whole(
    client: End,
    server: Server,
    servers: &impl Servers,
) -> io::Result<()> {
    let mut entry = servers.note_other(&server);
    let mut end = match servers.connect(&server).await {
        Err(error) if servers.fails_closed(&server) => {
            entry.has_failed();
            return Err(error);
        }
        Err(_) if server != Server::App => {
            entry.has_failed();
            let app = servers.connect(&Server::App).await?;
            entry.taken_by(&Server::App);
            app
        }
        connected => {
            let end = connected?;
            entry.taken_by(&server);
            end
        }
    };
    entry.tell();
    end.writer.taps = taps_of_all(servers);
    splice(client, end).await
}

/// New copies for those who get one of everything.
fn taps_of_all(servers: &impl Servers) -> Vec<Tap> {
    let copied = servers.other_copied().into_iter();
    copied.filter_map(|id| servers.tap(&id, false)).collect()
}

/// Passes everything in both directions.
async fn splice(client: End, server: End) -> io::Result<()> {
    let one = pass_all(client.reader, client.buffer, server.writer);
    let other = pass_all(server.reader, server.buffer, client.writer);
    tokio::try_join!(one, other).map(drop)
}

async fn pass_all(mut reader: Reader, buffer: BytesMut, mut writer: Writer) -> io::Result<()> {
    writer.write_all(&buffer).await?;
    writer.flush().await?;
    drop(buffer);
    copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}
