//! Moves the bytes of one flow between a byte stream or a datagram socket and
//! the gRPC stream that carries the flow.
//!
//! End of file travels as `Fin`, an error as `Reset`; a stream that ends
//! without either is lost. Whoever holds the byte stream aborts it when the
//! relay returns an error, so that a reset stays a reset from end to end.

mod dial;
mod forward;
mod frames;
mod splice;
mod udp;

use std::io;

use kvpn_proto::flow::Malformed;

pub use dial::{dial_tcp, dial_udp};
pub use forward::forward;
pub use frames::{
    FrameReceiver, FrameSender, FrameStream, Outgoing, OutgoingResponse, StreamLost, incoming,
    outgoing, outgoing_response,
};
pub use splice::{abort_on_close, splice, splice_tcp};
pub use udp::splice_udp;

/// The most bytes that one `Data` frame carries: with its headers it fits one
/// HTTP/2 frame.
pub const MAX_DATA: usize = crate::grpc::MAX_FRAME as usize - 64;

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
    #[error(transparent)]
    Lost(#[from] StreamLost),
    /// The other end breaks the protocol.
    #[error("unexpected frame: {0}")]
    Unexpected(&'static str),
    /// The byte stream failed; the other end was told with `Reset`.
    #[error("the local end failed: {0}")]
    Local(#[source] io::Error),
}

impl From<Malformed> for StreamLost {
    fn from(error: Malformed) -> Self {
        Self::new(error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests;
