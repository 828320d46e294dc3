//! HTTP connections of which each request may go elsewhere.

pub(crate) mod end;
mod http1;
mod http2;

use std::io;

use bytes::BytesMut;
use kvpn_proto::filter::Head;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, split};

use http1::NotHttp;
pub(crate) use http1::serve;

/// How much is read at once, in bytes.
const READ: usize = 16 << 10;

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

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
    /// Who gets a request.
    fn choose(&self, head: &impl Head) -> Server;
    /// Who gets what is no HTTP.
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
    /// Nothing of it has come.
    #[error("the server ended the connection without an answer")]
    NoAnswer,
    #[error("the server ended the connection before its answer did")]
    Cut,
    #[error("HTTP/2: {0}")]
    Http2(#[from] h2::Error),
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

/// A connection to a server, with who it is.
type Connection = (Server, End);
