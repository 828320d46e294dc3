//! The sockets that the session answers DNS questions on. Port 53 needs a
//! privilege, so they are bound here.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

/// The port of DNS.
const PORT: u16 = 53;

/// Binds UDP and TCP on the address; neither socket blocks.
pub(super) fn bind(address: IpAddr) -> io::Result<(OwnedFd, OwnedFd)> {
    let udp = UdpSocket::bind((address, PORT))?;
    udp.set_nonblocking(true)?;
    let tcp = TcpListener::bind((address, PORT))?;
    tcp.set_nonblocking(true)?;
    Ok((udp.into(), tcp.into()))
}
