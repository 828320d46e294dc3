//! Moves the bytes of one flow between a byte stream or a datagram socket and
//! the gRPC stream that carries the flow.
//!
//! End of file travels as `Fin`, an error as `Reset`; a stream that ends
//! without either is lost. Whoever holds the byte stream aborts it when the
//! relay returns an error, so that a reset stays a reset from end to end.

mod datagram_socket;
mod datagrams;
mod dial;
mod forward;
mod frames;
mod meter;
mod queue;
mod splice;

use std::io;

use kvpn_proto::flow::DialFailure;

pub use datagram_socket::{DatagramSocket, can_ping, dial_echo, dial_udp};
pub use datagrams::splice_datagrams;
pub use dial::dial_tcp;
pub use forward::forward;
pub use frames::{FrameReceiver, FrameSender, FrameStream, StreamLost};
pub(crate) use frames::{incoming, outgoing};
pub use meter::FlowMeter;
pub(crate) use queue::Outgoing;
pub use splice::{abort_on_close, splice, splice_tcp};

/// The most bytes that one `Data` frame carries: what fits one HTTP/2 frame.
pub const MAX_DATA: usize = crate::grpc::MAX_FRAME as usize;

/// What a finished flow has moved, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// From the byte stream into the tunnel.
    pub sent: u64,
    /// From the tunnel into the byte stream.
    pub received: u64,
}

/// Why a flow did not end in order. The byte stream should be aborted.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The other end reset the flow.
    #[error("the flow was reset by the other end")]
    Reset,
    /// The other end could not dial.
    #[error(transparent)]
    Failed(DialFailure),
    #[error(transparent)]
    Lost(#[from] StreamLost),
    /// The other end breaks the protocol.
    #[error("unexpected frame: {0}")]
    Unexpected(&'static str),
    /// The byte stream failed; the other end was told with `Reset`.
    #[error("the local end failed: {0}")]
    Local(#[source] io::Error),
}

#[cfg(test)]
pub(crate) mod tests;
