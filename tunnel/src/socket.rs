//! Options of the TCP sockets that carry the tunnel, on both ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, BufReader};
use tracing::debug;

/// How much may wait unsent in the kernel, in bytes: enough to keep a fast path
/// busy, too little to hold up what is written next.
const UNSENT: u32 = 512 << 10;

/// From which round trip on a peer is far.
const FAR: Duration = Duration::from_millis(5);

/// Keeps its speed on a path that loses a packet now and then, where the usual
/// algorithms take every loss for congestion.
const FAR_CONGESTION_CONTROL: [&[u8]; 1] = [b"bbr"];

/// What is measured to be faster within a machine or a data centre, where bbr
/// takes its own pauses for the path's.
const NEAR_CONGESTION_CONTROL: [&[u8]; 2] = [b"cubic", b"reno"];

/// How much is read at once, in bytes. TLS alone would read record by record, and
/// the kernel would acknowledge each.
const READ: usize = 128 << 10;

/// A socket under TLS, read in large pieces.
pub fn read_much<S: AsyncRead>(socket: S) -> BufReader<S> {
    BufReader::with_capacity(READ, socket)
}

/// Sets what a connected socket of a tunnel should have. What the kernel does not
/// offer is left as it is.
pub fn tune(socket: &impl AsFd) {
    let is_far = round_trip(socket).is_some_and(|round_trip| round_trip >= FAR);
    let socket = SockRef::from(socket);
    let choices = match is_far {
        true => FAR_CONGESTION_CONTROL.as_slice(),
        false => &NEAR_CONGESTION_CONTROL,
    };
    let chosen = choices
        .iter()
        .map(|name| socket.set_tcp_congestion(name))
        .find(Result::is_ok);
    for (option, outcome) in [
        ("TCP_NODELAY", socket.set_tcp_nodelay(true)),
        ("TCP_NOTSENT_LOWAT", socket.set_tcp_notsent_lowat(UNSENT)),
        (
            "TCP_CONGESTION",
            chosen.unwrap_or_else(|| Err(io::ErrorKind::Unsupported.into())),
        ),
    ] {
        if let Err(error) = outcome {
            debug!(option, %error, "Socket option cannot be set");
        }
    }
}

/// How long a packet takes there and back, as the handshake told.
#[expect(unsafe_code, reason = "no crate wraps this option")]
fn round_trip(socket: &impl AsFd) -> Option<Duration> {
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: a structure of integers, for which zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and the kernel writes `length` bytes at most.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    (result == 0).then(|| Duration::from_micros(info.tcpi_rtt.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn socket_sends_at_once_and_keeps_little_unsent() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        tune(&socket);
        let socket = SockRef::from(&socket);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT);
    }

    #[test]
    fn a_peer_on_this_machine_is_near() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // A machine that is busy may take its time once.
        let is_near = (0..10).any(|_| {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            tune(&socket);
            let chosen = SockRef::from(&socket).tcp_congestion().unwrap();
            let chosen = chosen.split(|octet| *octet == 0).next().unwrap();
            round_trip(&socket).unwrap() < FAR && NEAR_CONGESTION_CONTROL.contains(&chosen)
        });
        assert!(is_near);
    }
}
