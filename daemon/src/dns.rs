//! Answers DNS questions for the host: the cluster's names from the cluster,
//! everything else from the host's own name servers.

mod asked;
mod handler;
mod names;
mod rewrite;
mod upstream;

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use hickory_server::Server;
use kvpn_tunnel::dns::Forwarder;
use tracing::debug;

use crate::session::manager::Manager;
pub(crate) use asked::AskedNames;
use handler::Handler;
use upstream::Upstream;

/// How long a TCP connection without questions is kept.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// How many answers may wait on a TCP connection.
const TCP_ANSWERS: usize = 16;

/// How long the server may take to let go of its sockets.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// A running name server; ends when dropped.
pub(crate) struct NameServer {
    server: Server<Handler>,
}

impl NameServer {
    /// Ends it, and waits until its sockets are closed.
    pub(crate) async fn stop(mut self) {
        let stopped = tokio::time::timeout(STOP_DEADLINE, self.server.shutdown_gracefully());
        match stopped.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "The name server had ended before"),
            Err(_) => debug!("The name server does not end"),
        }
    }
}

/// Serves on sockets that are bound already. `upstreams` are the host's own
/// name servers.
pub(crate) fn serve(
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    upstreams: Vec<SocketAddr>,
    manager: Manager,
    names: AskedNames,
) -> io::Result<NameServer> {
    let mut own = Vec::new();
    for socket in &udp {
        own.push(socket.local_addr()?);
    }
    // A question to ourselves would go round for ever.
    let upstreams = upstreams
        .into_iter()
        .filter(|server| !own.contains(server))
        .collect();
    let upstream = Upstream::new(Forwarder::new(upstreams));
    let mut server = Server::new(Handler::new(manager, upstream, names));
    for socket in udp {
        socket.set_nonblocking(true)?;
        server.register_socket(tokio::net::UdpSocket::from_std(socket)?);
    }
    for listener in tcp {
        listener.set_nonblocking(true)?;
        server.register_listener(
            tokio::net::TcpListener::from_std(listener)?,
            TCP_IDLE,
            TCP_ANSWERS,
        );
    }
    Ok(NameServer { server })
}

#[cfg(test)]
mod tests;
