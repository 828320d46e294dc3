//! Domain types of the tunnel, and how they travel.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::v1;

/// A transport protocol, spelt as Kubernetes spells it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carried {
    Tcp,
    Udp,
    /// Pings; they have no ports.
    Icmp,
}

impl Carried {
    /// As people write it, such as `TCP`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        }
    }
}

impl From<Protocol> for Carried {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

/// What a flow's `Open` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenTarget {
    /// Dial this address from inside the cluster.
    Destination {
        protocol: Protocol,
        address: SocketAddr,
    },
    /// This stream answers the dial of that id.
    Dial(String),
    /// Hand this connection to whoever holds the claim.
    Claimed {
        claim_id: String,
        source: SocketAddr,
    },
    /// Send ICMP echo requests to this address.
    Echo(IpAddr),
    /// Dial a TCP port of the localhost of a pod that the engagement covers.
    InPod { engagement_uid: String, port: u16 },
    /// Ask for the files of the container that the engagement may read.
    Files { engagement_uid: String },
}

/// A message of a flow, as the code sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Open(OpenTarget),
    Opened,
    Failed(DialFailure),
    Data(Bytes),
    /// A datagram that is to be lost rather than fragmented.
    Whole(Bytes),
    Fin,
    Reset,
}

/// Why a dial did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct DialFailure {
    pub error: DialError,
    /// For a person; carries no secret.
    pub detail: String,
}

/// Kinds of failed dials, as a kernel tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DialError {
    Refused,
    HostUnreachable,
    NetworkUnreachable,
    Prohibited,
    TimedOut,
    TunnelLost,
    /// A datagram did not fit the path, whose packets may have this many bytes.
    TooBig(u32),
}

impl DialError {
    /// One of each kind.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::HostUnreachable,
        Self::NetworkUnreachable,
        Self::Prohibited,
        Self::TimedOut,
        Self::TunnelLost,
        Self::TooBig(0),
    ];

    /// A stable word for the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::HostUnreachable => "host_unreachable",
            Self::NetworkUnreachable => "network_unreachable",
            Self::Prohibited => "prohibited",
            Self::TimedOut => "timed_out",
            Self::TunnelLost => "tunnel_lost",
            Self::TooBig(_) => "too_big",
        }
    }
}

impl DialFailure {
    pub fn new(error: DialError, detail: impl Into<String>) -> Self {
        Self {
            error,
            detail: detail.into(),
        }
    }
}

/// Classifies what `connect(2)` said.
impl From<&std::io::Error> for DialFailure {
    fn from(error: &std::io::Error) -> Self {
        // Permission denied is how Linux reports an ICMPv6 "prohibited" on TCP; an
        // ICMP "prohibited" it tells as "host unreachable".
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "std has many kinds and may add more"
        )]
        let kind = match error.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => {
                DialError::Refused
            }
            std::io::ErrorKind::NetworkUnreachable => DialError::NetworkUnreachable,
            std::io::ErrorKind::PermissionDenied => DialError::Prohibited,
            std::io::ErrorKind::TimedOut => DialError::TimedOut,
            _ => DialError::HostUnreachable,
        };
        Self::new(kind, error.to_string())
    }
}

/// A message from a peer that breaks the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("an address of {0} octets")]
    Address(usize),
    #[error("port {0} is not between 1 and 65535")]
    Port(u32),
    #[error("unknown {0}")]
    Unknown(&'static str),
}

impl From<Malformed> for tonic::Status {
    fn from(error: Malformed) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<SocketAddr> for v1::Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address: octets(address.ip()),
            port: address.port().into(),
        }
    }
}

impl TryFrom<v1::Endpoint> for SocketAddr {
    type Error = Malformed;

    fn try_from(endpoint: v1::Endpoint) -> Result<Self, Malformed> {
        Ok(Self::new(ip(&endpoint.address)?, port(endpoint.port)?))
    }
}

/// An address as messages have it.
pub fn octets(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

/// Reads an address from a message.
pub fn ip(octets: &[u8]) -> Result<IpAddr, Malformed> {
    let malformed = |_| Malformed::Address(octets.len());
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).map(IpAddr::from),
        length => return Err(Malformed::Address(length)),
    }
    .map_err(malformed)
}

/// Reads a port number from a message.
pub fn port(number: u32) -> Result<u16, Malformed> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or(Malformed::Port(number))
}

impl From<Protocol> for v1::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
        }
    }
}

impl TryFrom<v1::Protocol> for Protocol {
    type Error = Malformed;

    fn try_from(protocol: v1::Protocol) -> Result<Self, Malformed> {
        match protocol {
            v1::Protocol::Tcp => Ok(Self::Tcp),
            v1::Protocol::Udp => Ok(Self::Udp),
            v1::Protocol::Unspecified => Err(Malformed::Unknown("protocol")),
        }
    }
}

impl From<DialError> for v1::DialError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Refused => Self::Refused,
            DialError::HostUnreachable => Self::HostUnreachable,
            DialError::NetworkUnreachable => Self::NetworkUnreachable,
            DialError::Prohibited => Self::Prohibited,
            DialError::TimedOut => Self::TimedOut,
            DialError::TunnelLost => Self::TunnelLost,
            DialError::TooBig(_) => Self::TooBig,
        }
    }
}

impl From<DialFailure> for v1::DialFailed {
    fn from(failure: DialFailure) -> Self {
        Self {
            error: v1::DialError::from(failure.error).into(),
            detail: failure.detail,
            mtu: match failure.error {
                DialError::TooBig(mtu) => mtu,
                DialError::Refused
                | DialError::HostUnreachable
                | DialError::NetworkUnreachable
                | DialError::Prohibited
                | DialError::TimedOut
                | DialError::TunnelLost => 0,
            },
        }
    }
}

impl TryFrom<v1::DialFailed> for DialFailure {
    type Error = Malformed;

    fn try_from(failed: v1::DialFailed) -> Result<Self, Malformed> {
        let error = match failed.error() {
            v1::DialError::Refused => DialError::Refused,
            v1::DialError::HostUnreachable => DialError::HostUnreachable,
            v1::DialError::NetworkUnreachable => DialError::NetworkUnreachable,
            v1::DialError::Prohibited => DialError::Prohibited,
            v1::DialError::TimedOut => DialError::TimedOut,
            v1::DialError::TunnelLost => DialError::TunnelLost,
            v1::DialError::TooBig => DialError::TooBig(failed.mtu),
            v1::DialError::Unspecified => return Err(Malformed::Unknown("dial error")),
        };
        Ok(Self::new(error, failed.detail))
    }
}

impl From<OpenTarget> for v1::Open {
    fn from(target: OpenTarget) -> Self {
        use v1::open::Target;
        let target = match target {
            OpenTarget::Destination { protocol, address } => Target::Destination(v1::Destination {
                protocol: v1::Protocol::from(protocol).into(),
                endpoint: Some(address.into()),
            }),
            OpenTarget::Dial(id) => Target::DialId(id),
            OpenTarget::Claimed { claim_id, source } => Target::Claimed(v1::ClaimedConnection {
                claim_id,
                source: Some(source.into()),
            }),
            OpenTarget::Echo(address) => Target::Echo(v1::Echo {
                address: octets(address),
            }),
            OpenTarget::InPod {
                engagement_uid,
                port,
            } => Target::InPod(v1::InPod {
                engagement_uid,
                port: port.into(),
            }),
            OpenTarget::Files { engagement_uid } => Target::Files(v1::FilesOf { engagement_uid }),
        };
        Self {
            target: Some(target),
        }
    }
}

impl TryFrom<v1::Open> for OpenTarget {
    type Error = Malformed;

    fn try_from(open: v1::Open) -> Result<Self, Malformed> {
        use v1::open::Target;
        match open.target.ok_or(Malformed::Missing("target"))? {
            Target::Destination(destination) => Ok(Self::Destination {
                protocol: destination.protocol().try_into()?,
                address: destination
                    .endpoint
                    .ok_or(Malformed::Missing("endpoint"))?
                    .try_into()?,
            }),
            Target::DialId(id) => Ok(Self::Dial(id)),
            Target::Claimed(claimed) => Ok(Self::Claimed {
                claim_id: claimed.claim_id,
                source: claimed
                    .source
                    .ok_or(Malformed::Missing("source"))?
                    .try_into()?,
            }),
            Target::Echo(echo) => Ok(Self::Echo(ip(&echo.address)?)),
            Target::InPod(in_pod) => Ok(Self::InPod {
                engagement_uid: in_pod.engagement_uid,
                port: port(in_pod.port)?,
            }),
            Target::Files(files) => Ok(Self::Files {
                engagement_uid: files.engagement_uid,
            }),
        }
    }
}

impl From<Frame> for v1::Frame {
    fn from(frame: Frame) -> Self {
        use v1::frame::Kind;
        let kind = match frame {
            Frame::Open(target) => Kind::Open(target.into()),
            Frame::Opened => Kind::Opened(v1::Opened {}),
            Frame::Failed(failure) => Kind::Failed(failure.into()),
            Frame::Data(data) => Kind::Data(data),
            Frame::Whole(datagram) => Kind::Whole(datagram),
            Frame::Fin => Kind::Fin(v1::Fin {}),
            Frame::Reset => Kind::Reset(v1::Reset {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Frame> for Frame {
    type Error = Malformed;

    fn try_from(frame: v1::Frame) -> Result<Self, Malformed> {
        use v1::frame::Kind;
        match frame.kind.ok_or(Malformed::Missing("kind"))? {
            Kind::Open(open) => Ok(Self::Open(open.try_into()?)),
            Kind::Opened(v1::Opened {}) => Ok(Self::Opened),
            Kind::Failed(failed) => Ok(Self::Failed(failed.try_into()?)),
            Kind::Data(data) => Ok(Self::Data(data)),
            Kind::Whole(datagram) => Ok(Self::Whole(datagram)),
            Kind::Fin(v1::Fin {}) => Ok(Self::Fin),
            Kind::Reset(v1::Reset {}) => Ok(Self::Reset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let frames = [
            Frame::Open(OpenTarget::Destination {
                protocol: Protocol::Udp,
                address: "[fd00::7]:53".parse().unwrap(),
            }),
            Frame::Open(OpenTarget::Dial("d1".into())),
            Frame::Open(OpenTarget::Claimed {
                claim_id: "c1".into(),
                source: "10.1.2.3:4567".parse().unwrap(),
            }),
            Frame::Opened,
            Frame::Open(OpenTarget::Echo("fd00::7".parse().unwrap())),
            Frame::Open(OpenTarget::InPod {
                engagement_uid: "e1".into(),
                port: 9901,
            }),
            Frame::Open(OpenTarget::Files {
                engagement_uid: "e1".into(),
            }),
            Frame::Failed(DialFailure::new(DialError::Refused, "connection refused")),
            Frame::Failed(DialFailure::new(DialError::TooBig(1_450), "too long")),
            Frame::Data(Bytes::from_static(b"hello")),
            Frame::Whole(Bytes::from_static(b"hello")),
            Frame::Fin,
            Frame::Reset,
        ];
        for frame in frames {
            let wire = v1::Frame::from(frame.clone());
            assert_eq!(Frame::try_from(wire), Ok(frame));
        }
    }

    #[test]
    fn malformed_endpoints_are_refused() {
        let endpoint = |address: &'static [u8], port| v1::Endpoint {
            address: Bytes::from_static(address),
            port,
        };
        assert_eq!(
            SocketAddr::try_from(endpoint(&[1, 2, 3], 80)),
            Err(Malformed::Address(3))
        );
        assert_eq!(
            SocketAddr::try_from(endpoint(&[1, 2, 3, 4], 0)),
            Err(Malformed::Port(0))
        );
        assert_eq!(
            SocketAddr::try_from(endpoint(&[1, 2, 3, 4], 65_536)),
            Err(Malformed::Port(65_536))
        );
    }

    #[test]
    fn empty_frame_is_refused() {
        assert_eq!(
            Frame::try_from(v1::Frame { kind: None }),
            Err(Malformed::Missing("kind"))
        );
    }
}
