//! Sockets on a port of every address of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Listens on a port.
pub fn listen(port: u16) -> Result<TcpListener> {
    let socket = bound(Type::STREAM, port)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into()).context("listen")
}

/// Takes datagrams on a port.
pub fn bind(port: u16) -> Result<UdpSocket> {
    let socket = bound(Type::DGRAM, port)?;
    UdpSocket::from_std(socket.into()).context("take datagrams")
}

/// Any address of this host of the family of another address, to bind to.
pub fn any_of(other: IpAddr) -> IpAddr {
    match other {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn bound(kind: Type, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, None)?;
    socket.set_only_v6(false)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket
        .bind(&address.into())
        .with_context(|| format!("bind port {port}"))?;
    Ok(socket)
}
