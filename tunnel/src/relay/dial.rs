//! Opening the real socket of a flow.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure};
use tokio::net::{TcpStream, UdpSocket};

/// Connects, with `TCP_NODELAY`. After `deadline` the failure is
/// [`DialError::TimedOut`].
pub async fn dial_tcp(address: SocketAddr, deadline: Duration) -> Result<TcpStream, DialFailure> {
    let connected = tokio::time::timeout(deadline, TcpStream::connect(address)).await;
    let socket = connected
        .map_err(|_| {
            DialFailure::new(
                DialError::TimedOut,
                format!("{address} did not answer within {} s", deadline.as_secs()),
            )
        })?
        .map_err(|error| failure(address, &error))?;
    socket
        .set_nodelay(true)
        .map_err(|error| failure(address, &error))?;
    Ok(socket)
}

/// Makes a socket that speaks to `address` only.
pub async fn dial_udp(address: SocketAddr) -> Result<UdpSocket, DialFailure> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let connected = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        Ok(socket)
    };
    connected
        .await
        .map_err(|error: io::Error| failure(address, &error))
}

fn failure(address: SocketAddr, error: &io::Error) -> DialFailure {
    let DialFailure { error, detail } = error.into();
    DialFailure::new(error, format!("{address}: {detail}"))
}
