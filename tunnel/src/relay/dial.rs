//! Opening the real socket of a flow.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure};
use tokio::net::TcpStream;

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

/// What a failed operation on a flow's socket means.
pub(super) fn failure(address: SocketAddr, error: &io::Error) -> DialFailure {
    let DialFailure { error, detail } = error.into();
    DialFailure::new(error, format!("{address}: {detail}"))
}
