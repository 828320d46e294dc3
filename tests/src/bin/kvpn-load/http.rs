//! HTTP/1.1 by hand, so that the bytes on the connection are under control.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use kvpn_tests::pattern;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::target::{Target, connect};

/// How long nothing may come.
pub(crate) const SILENCE: Duration = Duration::from_secs(30);

const PIECE: usize = 64 * 1024;

/// A connection with what has been read of it and not been used.
#[derive(Debug)]
pub(crate) struct Reply<R> {
    stream: R,
    rest: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reply<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream,
            rest: Vec::new(),
        }
    }

    /// Reads the head of an answer, which must be `200` and of known length.
    pub(crate) async fn length(&mut self) -> Result<u64> {
        let end = loop {
            if let Some(at) = self.rest.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            let mut piece = vec![0; 4096];
            let size = read(&mut self.stream, &mut piece).await?;
            ensure!(size > 0, "the connection ended before the answer");
            self.rest.extend_from_slice(&piece[..size]);
        };
        let head = String::from_utf8_lossy(&self.rest[..end]).to_ascii_lowercase();
        self.rest.drain(..end);
        ensure!(head.starts_with("http/1.1 200"), "answered {head:?}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"));
        length
            .with_context(|| format!("no length in {head:?}"))?
            .trim()
            .parse()
            .context("read the length")
    }

    /// Reads some of the body; nothing at its end.
    pub(crate) async fn some(&mut self, limit: usize) -> Result<Vec<u8>> {
        if !self.rest.is_empty() {
            let size = self.rest.len().min(limit);
            return Ok(self.rest.drain(..size).collect());
        }
        let mut piece = vec![0; limit];
        let size = read(&mut self.stream, &mut piece).await?;
        piece.truncate(size);
        Ok(piece)
    }

    /// Reads a body of a pattern to the end of the connection, pausing after each
    /// piece.
    pub(crate) async fn pattern(&mut self, seed: u64, size: u64, pause: Duration) -> Result<()> {
        let mut offset = 0;
        loop {
            let piece = self.some(PIECE).await?;
            if piece.is_empty() {
                ensure!(offset == size, "{offset} bytes came of {size}");
                return Ok(());
            }
            ensure!(
                pattern::matches(seed, offset, &piece),
                "wrong bytes between {offset} and {}",
                offset + piece.len() as u64
            );
            offset += piece.len() as u64;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

/// Sends a request that has no body.
pub(crate) async fn get(stream: &mut TcpStream, path: &str, keep: bool) -> Result<()> {
    let keep = if keep { "keep-alive" } else { "close" };
    let head = format!("GET {path} HTTP/1.1\r\nHost: load\r\nConnection: {keep}\r\n\r\n");
    stream
        .write_all(head.as_bytes())
        .await
        .context("send a request")
}

/// Gets a small page on a connection of its own. The server ends it first.
pub(crate) async fn page(stream: &mut TcpStream) -> Result<()> {
    get(stream, "/load", false).await?;
    let mut reply = Reply::new(stream);
    let length = reply.length().await?;
    let mut body = Vec::new();
    loop {
        let piece = reply.some(PIECE).await?;
        if piece.is_empty() {
            break;
        }
        body.extend(piece);
    }
    let size = body.len() as u64;
    ensure!(size == length, "{size} bytes came of {length}");
    let answer: Value = serde_json::from_slice(&body).context("read the answer")?;
    ensure!(answer["path"] == "/load", "answered {answer}");
    Ok(())
}

/// Gets a pattern and checks it.
pub(crate) async fn download(address: SocketAddr, size: u64, pause: Duration) -> Result<()> {
    let mut stream = connect(address).await?;
    get(&mut stream, &format!("/bytes/{size}"), false).await?;
    let mut reply = Reply::new(stream);
    let length = reply.length().await?;
    ensure!(length == size, "{length} bytes announced of {size}");
    reply.pattern(0, size, pause).await
}

/// Sends a pattern and checks what comes back, both at once.
pub(crate) async fn echo(address: SocketAddr, seed: u64, size: u64) -> Result<()> {
    let stream = connect(address).await?;
    let (reader, writer) = stream.into_split();
    let send = tokio::spawn(upload(writer, "PUT", "/echo", seed, size));
    let mut reply = Reply::new(reader);
    let received = async {
        reply.length().await?;
        reply.pattern(seed, size, Duration::ZERO).await
    };
    let received = received.await;
    // It has ended, or fails as its connection has.
    let sent = send.await.context("send")?;
    received.and(sent.map(drop))
}

/// Sends a pattern in a request's body; gives back the connection.
pub(crate) async fn upload<W: AsyncWrite + Unpin>(
    mut writer: W,
    method: &str,
    path: &str,
    seed: u64,
    size: u64,
) -> Result<W> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: load\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    );
    writer.write_all(head.as_bytes()).await.context("send")?;
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < size {
        let length = (size - offset).min(PIECE as u64);
        let part = &mut piece[..length as usize];
        pattern::fill(seed, offset, part);
        match timeout(SILENCE, writer.write_all(part)).await {
            Ok(written) => written.with_context(|| format!("send after {offset} bytes"))?,
            Err(_) => bail!("stuck after {offset} bytes"),
        }
        offset += length;
    }
    Ok(writer)
}

/// Echoes as many bodies at once.
pub(crate) async fn echo_all(target: &Target, flows: u64, size: u64) -> Result<Value> {
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for flow in 0..flows {
        let address = target.address(flow).await?;
        tasks.spawn(async move {
            let echoed = echo(address, flow + 1, size).await;
            echoed.with_context(|| format!("flow {flow} to {address}"))
        });
    }
    while let Some(echoed) = tasks.join_next().await {
        echoed.context("echo")??;
    }
    Ok(json!({"flows": flows, "bytes": flows * size, "seconds": begin.elapsed().as_secs_f64()}))
}

async fn read<R: AsyncRead + Unpin>(stream: &mut R, buffer: &mut [u8]) -> Result<usize> {
    match timeout(SILENCE, stream.read(buffer)).await {
        Ok(size) => size.context("receive"),
        Err(_) => bail!("nothing came for {} s", SILENCE.as_secs()),
    }
}
