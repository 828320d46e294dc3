//! Parameters of every tunnel connection, on both ends.
//!
//! A flow that nobody reads must not stop the others: its stream window fills,
//! while the connection's window is as good as endless. Pings notice a path
//! that swallows packets. `TCP_NODELAY` is for whoever opens the socket.

mod flows;
mod messages;

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

pub use flows::{TunnelClient, TunnelHandler, TunnelServer};

/// How much one flow may have under way, in bytes.
pub const STREAM_WINDOW: u32 = 4 << 20;

/// How much all flows may have under way: the largest that HTTP/2 allows
/// (RFC 9113 section 6.9.1).
pub const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// The largest HTTP/2 frame, in bytes.
pub const MAX_FRAME: u32 = 256 << 10;

/// How often the peer is asked whether it is there, also while idle.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How long the peer may take to answer.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_STREAMS: u32 = 1 << 20;
const MAX_RESET_STREAMS: usize = 1 << 16;

/// The client's end, for `connect_with_connector`; `name` is the authority
/// that requests carry, such as `traffic-manager`.
///
/// # Panics
/// When `name` is not a host name.
pub fn client_endpoint(name: &str) -> Endpoint {
    Endpoint::from_shared(format!("http://{name}"))
        .expect("the authority is a host name")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .http2_max_local_error_reset_streams(MAX_RESET_STREAMS)
        .tcp_nodelay(true)
}

/// The server's end.
pub fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_STREAMS)
        // Flows are cancelled in bursts, when a browser closes for example;
        // the default takes twenty of them for an attack and hangs up.
        .http2_max_pending_accept_reset_streams(Some(MAX_RESET_STREAMS))
        .http2_max_local_error_reset_streams(Some(MAX_RESET_STREAMS))
        .tcp_nodelay(true)
}

#[cfg(test)]
mod tests;
