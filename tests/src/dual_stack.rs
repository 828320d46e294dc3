//! Sockets on a port of every address of both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Listens on a port.
pub fn listen(port: u16) -> Result<TcpListener> {
    listen_at(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// Listens on a port of one address; of every one, if it is the unspecified of IPv6.
pub fn listen_at(address: IpAddr, port: u16) -> Result<TcpListener> {
    let socket = bound(Type::STREAM, SocketAddr::new(address, port))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into()).context("listen")
}

/// Takes datagrams on a port.
pub fn bind(port: u16) -> Result<UdpSocket> {
    bind_at(Ipv6Addr::UNSPECIFIED.into(), port)
}

/// Takes datagrams on a port of one address, as [`listen_at`] listens.
pub fn bind_at(address: IpAddr, port: u16) -> Result<UdpSocket> {
    let socket = bound(Type::DGRAM, SocketAddr::new(address, port))?;
    UdpSocket::from_std(socket.into()).context("take datagrams")
}

/// Any address of this host of the family of another address, to bind to.
pub fn any_of(other: IpAddr) -> IpAddr {
    match other {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn bound(kind: Type, address: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket
        .bind(&address.into())
        .with_context(|| format!("bind {address}"))?;
    Ok(socket)
}
