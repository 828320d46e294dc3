//! What the server in the pod offers, and where.

use std::net::{IpAddr, SocketAddr};

/// What a connection to the server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The server sends for as long as it can.
    Source,
    /// The server reads for as long as it can.
    Sink,
    /// What comes goes back.
    Echo,
    /// The server never reads.
    Stall,
    /// One byte comes, goes back, and the server ends the connection.
    Once,
}

impl Service {
    pub const ALL: [Self; 5] = [
        Self::Source,
        Self::Sink,
        Self::Echo,
        Self::Stall,
        Self::Once,
    ];

    /// The TCP port that offers it.
    pub fn port(self) -> u16 {
        match self {
            Self::Source => 7001,
            Self::Sink => 7002,
            Self::Echo => 7003,
            Self::Stall => 7004,
            Self::Once => 7005,
        }
    }

    /// The path on the pipe's port that upgrades to it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Source => "/source",
            Self::Sink => "/sink",
            Self::Echo => "/echo",
            Self::Stall => "/stall",
            Self::Once => "/once",
        }
    }

    pub fn at(self, address: IpAddr) -> SocketAddr {
        (address, self.port()).into()
    }
}

/// UDP port that counts datagrams of each sender, and tells the count to who
/// sends [`COUNT`].
pub const UDP: u16 = 7006;

/// Asks for the count so far, which comes as eight bytes, most significant first.
pub const COUNT: &[u8] = b"count";

/// Port of HTTPS that upgrades to the services.
pub const PIPE: u16 = 7443;

/// Namespace of the server, and name of its Deployment and Service.
pub const NAMESPACE: &str = "bench";
pub const NAME: &str = "bench";

/// Name of the Deployment whose files are measured.
pub const FILES: &str = "files";

/// The Service's name in the path of `services/proxy`, for a connection over TLS
/// as the traffic manager's.
pub const PROXY_NAME: &str = "https:bench:443";
