//! Options of the TCP sockets that carry the tunnel, on both ends.

use std::os::fd::AsFd;

use socket2::SockRef;
use tracing::debug;

/// How much may wait unsent in the kernel, in bytes: enough to keep a fast path
/// busy, too little to hold up what is written next.
const UNSENT: u32 = 512 << 10;

/// Keeps its speed on a path that loses a packet now and then, where the usual
/// algorithms take every loss for congestion.
const CONGESTION_CONTROL: &[u8] = b"bbr";

/// Sets what a tunnel's socket should have. What the kernel does not offer is
/// left as it is.
pub fn tune(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    for (option, outcome) in [
        ("TCP_NODELAY", socket.set_tcp_nodelay(true)),
        ("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(UNSENT)),
        (
            "TCP_CONGESTION",
            socket.set_tcp_congestion(CONGESTION_CONTROL),
        ),
    ] {
        if let Err(error) = outcome {
            debug!(option, %error, "Socket option cannot be set");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn socket_sends_at_once_and_keeps_little_unsent() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        tune(&socket);
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT);
    }
}
