//! The server in the pod.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kvpn_tests::bench::ports::{COUNT, PIPE, Service, UDP};
use kvpn_tests::dual_stack::{bind, listen};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

use crate::say;

/// Bytes that are read or written at once.
const PIECE: usize = 256 << 10;

/// Bytes of datagrams that wait to be counted, if the machine allows it.
const DATAGRAMS: usize = 4 << 20;

/// How long a connection that is not read from is kept.
const STALL: Duration = Duration::from_secs(120);

/// The longest head of a request.
const MAX_HEAD: usize = 64 << 10;

/// Serves until SIGTERM.
pub(crate) fn run() -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start")?;
    runtime.block_on(serve())?;
    Ok(json!({"served": true}))
}

async fn serve() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    for service in Service::ALL {
        let listener = listen(service.port())?;
        tokio::spawn(accept(listener, move |stream| answer(stream, service)));
    }
    let tls = TlsAcceptor::from(Arc::new(tls()?));
    tokio::spawn(accept(listen(PIPE)?, move |stream| {
        upgrade(tls.clone(), stream)
    }));
    let socket = bind(UDP)?;
    // The machine's own limit is as good.
    drop(SockRef::from(&socket).set_recv_buffer_size(DATAGRAMS));
    tokio::spawn(count(socket));
    say("ready");
    terminate.recv().await;
    Ok(())
}

async fn accept<F, Answer>(listener: TcpListener, answer: impl Fn(TcpStream) -> F)
where
    F: Future<Output = Answer> + Send + 'static,
    Answer: Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Fails only when the other side has gone already.
                drop(stream.set_nodelay(true));
                tokio::spawn(answer(stream));
            }
            // No descriptor is left; some come free.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Does what the connection is for, until its end.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    service: Service,
) -> std::io::Result<()> {
    match service {
        Service::Source => {
            let piece = vec![0x6b; PIECE];
            loop {
                stream.write_all(&piece).await?;
            }
        }
        Service::Sink => {
            let mut piece = vec![0; PIECE];
            while stream.read(&mut piece).await? > 0 {}
            Ok(())
        }
        Service::Echo => {
            while let Some(byte) = read_byte(&mut stream).await? {
                stream.write_all(&[byte]).await?;
                stream.flush().await?;
            }
            Ok(())
        }
        Service::Stall => {
            tokio::time::sleep(STALL).await;
            Ok(())
        }
        Service::Once => {
            if let Some(byte) = read_byte(&mut stream).await? {
                stream.write_all(&[byte]).await?;
                stream.shutdown().await?;
            }
            Ok(())
        }
    }
}

/// A byte; none at the end.
async fn read_byte<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Option<u8>> {
    let mut byte = [0];
    let size = stream.read(&mut byte).await?;
    Ok((size > 0).then_some(byte[0]))
}

/// Answers a request of HTTP/1.1 over TLS by becoming what its path says.
async fn upgrade(tls: TlsAcceptor, stream: TcpStream) -> std::io::Result<()> {
    let mut stream = tls.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        let Some(byte) = read_byte(&mut stream).await? else {
            return Ok(());
        };
        head.push(byte);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split_whitespace().nth(1).unwrap_or_default();
    let service = Service::ALL
        .into_iter()
        .find(|service| service.path() == path);
    let Some(service) = service else {
        let refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        return stream.write_all(refusal).await;
    };
    let switch =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: kvpn\r\n\r\n";
    stream.write_all(switch).await?;
    stream.flush().await?;
    answer(stream, service).await
}

/// Counts datagrams of each sender, and tells who asks.
async fn count(socket: UdpSocket) {
    let mut counts: HashMap<SocketAddr, u64> = HashMap::new();
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is about an earlier answer, whose receiver is gone.
        let Ok((size, sender)) = socket.recv_from(&mut datagram).await else {
            continue;
        };
        if datagram[..size] == *COUNT {
            let count = counts.get(&sender).copied().unwrap_or_default();
            drop(socket.send_to(&count.to_be_bytes(), sender).await);
        } else {
            *counts.entry(sender).or_default() += 1;
        }
    }
}

/// A certificate of its own, which the API server does not ask about.
fn tls() -> Result<ServerConfig> {
    let made = rcgen::generate_simple_self_signed(["bench".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .context("prepare TLS")
}
