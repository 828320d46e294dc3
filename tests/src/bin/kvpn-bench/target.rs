//! The ways to the server.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::bench::ports::Service;

use crate::pipe::Pipe;

/// How long a connection may take to open, and how long nothing may come or go.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the server.
pub(crate) trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// Where the server is.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// At the pod's address, by whatever routes there are.
    Pod(IpAddr),
    /// Behind the API server.
    Pipe(Pipe),
}

impl Target {
    /// Opens a connection for a purpose.
    pub(crate) fn open(&self, service: Service) -> Result<Box<dyn Stream>> {
        match self {
            Self::Pod(address) => Ok(Box::new(connect(service.at(*address))?)),
            Self::Pipe(pipe) => pipe.open(service),
        }
    }
}

/// Connects, with deadlines for everything.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends a byte, and waits for it to come back.
pub(crate) fn exchange(stream: &mut impl Stream) -> Result<()> {
    stream.write_all(b"x").context("send")?;
    let mut byte = [0];
    stream.read_exact(&mut byte).context("receive")?;
    ensure!(byte == *b"x", "another byte came back");
    Ok(())
}
