//! The two ports.

mod agents;
mod io;
mod sessions;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use kvpn_tunnel::socket::{read_much, tune};
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub(crate) use agents::serve_agents;
pub(crate) use sessions::serve_sessions;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long to wait when the system has no room for another connection.
const OUT_OF_ROOM: Duration = Duration::from_millis(100);

/// How many connections may wait for the gRPC server to take them.
const QUEUED_CONNECTIONS: usize = 64;

/// Listens on a port of every address, of both families where there are two.
pub(crate) async fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
    match both {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("listen on port {port}")),
    }
}

/// Accepts connections until the shutdown.
async fn accept(
    listener: TcpListener,
    shutdown: CancellationToken,
    mut on_connection: impl FnMut(TcpStream, SocketAddr),
) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => on_connection(socket, peer),
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(OUT_OF_ROOM).await;
            }
        }
    }
}

/// Shakes hands. `None` when the other side does not.
async fn handshake(
    tls: &TlsAcceptor,
    socket: TcpStream,
    peer: SocketAddr,
) -> Option<TlsStream<BufReader<TcpStream>>> {
    tune(&socket);
    match tokio::time::timeout(HANDSHAKE, tls.accept(read_much(socket))).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            debug!(%peer, %error, "no TLS handshake");
            None
        }
        Err(_) => {
            debug!(%peer, "the TLS handshake took too long");
            None
        }
    }
}
