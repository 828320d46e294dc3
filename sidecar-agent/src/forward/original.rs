//! Where a redirected connection was meant to go.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

/// The address and port that the client connected to; `None` when that was the
/// listener itself, so that the connection was not redirected.
pub(super) fn destination(socket: &TcpStream, listener: u16) -> Option<SocketAddr> {
    let original = match socket.local_addr().ok()? {
        SocketAddr::V4(_) => original_v4(socket)?,
        SocketAddr::V6(local) => original_v6(socket, local.scope_id())?,
    };
    (original.port() != listener).then_some(original)
}

fn original_v4(socket: &TcpStream) -> Option<SocketAddr> {
    let raw = getsockopt(socket, sockopt::OriginalDst).ok()?;
    let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
    Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
}

fn original_v6(socket: &TcpStream, scope_id: u32) -> Option<SocketAddr> {
    let raw = getsockopt(socket, sockopt::Ip6tOriginalDst).ok()?;
    let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
    Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, scope_id).into())
}
