//! The agent's listening sockets: one for each address family, on one port.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

const BACKLOG: i32 = 1024;

// A port that is free for IPv4 may be taken for IPv6.
const ATTEMPTS: u32 = 16;

/// Sockets that accept redirected connections.
pub(crate) struct Listeners {
    port: u16,
    v4: TcpListener,
    /// `None` where the node has no IPv6.
    v6: Option<TcpListener>,
}

impl Listeners {
    /// Listens on a port that the kernel chooses.
    pub(crate) fn bind() -> io::Result<Self> {
        let (v4, v6) = in_both_families(listen, TcpListener::local_addr)?;
        let port = v4.local_addr()?.port();
        Ok(Self { port, v4, v6 })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn into_inner(self) -> impl Iterator<Item = TcpListener> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }
}

/// Opens a socket for each address family, on one port that the kernel chooses. There is
/// none for IPv6 where the node has none.
pub(super) fn in_both_families<S>(
    open: impl Fn(SocketAddr) -> io::Result<S>,
    address: impl Fn(&S) -> io::Result<SocketAddr>,
) -> io::Result<(S, Option<S>)> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let v4 = open((Ipv4Addr::UNSPECIFIED, 0).into())?;
        let port = address(&v4)?.port();
        let v6 = match open((Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(v6) => Some(v6),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < ATTEMPTS => {
                continue;
            }
            Err(error) if no_ipv6(&error) => None,
            Err(error) => return Err(error),
        };
        return Ok((v4, v6));
    }
}

// Two sockets rather than one for both families: the original destination of
// an IPv4 connection cannot be asked of an IPv6 socket.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

fn no_ipv6(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(nix::errno::Errno::from_raw);
    matches!(
        number,
        Some(nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::EADDRNOTAVAIL)
    )
}
