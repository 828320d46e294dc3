//! Answers DNS questions for the host: the cluster's names from the cluster,
//! everything else from the host's own name servers.

mod asked;
mod cache;
pub(crate) mod explain;
mod fresh;
mod handler;
mod names;
mod rewrite;
pub(crate) mod rules;
mod upstream;

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use hickory_server::Server;
use kvpn_proto::v1::Resolver;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::lease::slot;
use crate::session::manager::Manager;
use crate::session::vnat::Vnat;
pub(crate) use asked::AskedNames;
use cache::Cache;
use handler::Handler;
use rules::NameRules;
use upstream::{Servers, Upstream};

/// How long a TCP connection without questions is kept.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// How many answers may wait on a TCP connection.
const TCP_ANSWERS: usize = 16;

/// How long the server may take to let go of its sockets.
const STOP_DEADLINE: Duration = Duration::from_secs(1);

/// A running name server; ends when dropped.
pub(crate) struct NameServer {
    server: Server<Handler>,
    _fresh: AbortOnDropHandle<std::convert::Infallible>,
}

/// What questions are answered by.
pub(crate) struct Sources {
    pub(crate) manager: Manager,
    pub(crate) rules: NameRules,
    /// Where subnets of the cluster are shown.
    pub(crate) vnat: Vnat,
    /// Remembers what was asked for.
    pub(crate) names: AskedNames,
    /// What on the host was told of the name server.
    pub(crate) resolver: Resolver,
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

/// Serves on sockets that are bound already. The file `upstreams` names the host's
/// own name servers, in the form of resolv.conf(5).
pub(crate) fn serve(
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    upstreams: PathBuf,
    sources: Sources,
) -> io::Result<NameServer> {
    let own: io::Result<Vec<_>> = udp.iter().map(UdpSocket::local_addr).collect();
    let own = own?.iter().map(SocketAddr::ip).collect();
    let left_out = match sources.resolver {
        // It knows of every connection, and asks each for its own names.
        Resolver::SystemdResolved => slot::addresses().collect(),
        // Another one may be who is to be asked next.
        Resolver::ResolvConf | Resolver::Unspecified => own,
    };
    let servers = Servers::new(upstreams, left_out);
    start(udp, tcp, Upstream::new(servers), sources)
}

fn start(
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    upstream: Upstream,
    sources: Sources,
) -> io::Result<NameServer> {
    let cache = Cache::default();
    let foreign = Cache::live();
    let fresh = tokio::spawn(fresh::keep_fresh(sources.manager.clone(), cache.clone()));
    let mut server = Server::new(Handler {
        manager: sources.manager,
        upstream,
        cache,
        foreign,
        rules: sources.rules,
        vnat: sources.vnat,
        names: sources.names,
        room: handler::room(),
    });
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
    Ok(NameServer {
        server,
        _fresh: AbortOnDropHandle::new(fresh),
    })
}

#[cfg(test)]
mod tests;
