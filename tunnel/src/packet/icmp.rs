//! ICMP: errors about packets of the host, echo requests and their replies.

use std::net::IpAddr;

use kvpn_proto::flow::DialError;
use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpAddress, IpProtocol, IpVersion,
    Ipv4Packet, Ipv6Packet,
};

use super::Ignored;
use super::build::ip;
use crate::flow::is_routable;

const HEADER: usize = 8;

/// Where the sequence number begins, after type, code, checksum, identifier.
const SEQUENCE: usize = 6;

/// The longest ICMP error (RFC 1812 section 4.3.2.3).
const MAX_ICMPV4_ERROR: usize = 576;

/// The longest ICMPv6 error (RFC 4443 section 2.4).
const MAX_ICMPV6_ERROR: usize = 1_280;

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    NetworkUnreachable,
    HostUnreachable,
    PortUnreachable,
    Prohibited,
    /// The path's packets may have this many bytes.
    TooBig(u32),
    HopLimit,
}

impl IcmpError {
    /// What the host's kernel should hear after a failed dial.
    pub fn from_dial_error(error: DialError) -> Self {
        match error {
            DialError::Refused => Self::PortUnreachable,
            DialError::NetworkUnreachable => Self::NetworkUnreachable,
            DialError::Prohibited => Self::Prohibited,
            DialError::TooBig(mtu) => Self::TooBig(mtu),
            DialError::HostUnreachable | DialError::TimedOut | DialError::TunnelLost => {
                Self::HostUnreachable
            }
        }
    }

    /// Type, code and the second word (RFC 792, RFC 1191, RFC 1812 section
    /// 5.2.7.1).
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::NetworkUnreachable => (3, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::PortUnreachable => (3, 3, 0),
            Self::TooBig(mtu) => (3, 4, mtu.min(u16::MAX.into())),
            Self::Prohibited => (3, 13, 0),
            Self::HopLimit => (11, 0, 0),
        }
    }

    /// Type, code and the second word (RFC 4443 section 3).
    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::NetworkUnreachable => (1, 0, 0),
            Self::Prohibited => (1, 1, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::PortUnreachable => (1, 4, 0),
            Self::TooBig(mtu) => (2, 0, mtu),
            Self::HopLimit => (3, 0, 0),
        }
    }
}

/// An error for the sender of a packet, quoting its start.
pub fn icmp_error(from: IpAddr, to: IpAddr, why: IcmpError, offending: &[u8]) -> Option<Vec<u8>> {
    let (longest, (kind, code, word)) = match from {
        IpAddr::V4(_) => (MAX_ICMPV4_ERROR - 20, why.v4()),
        IpAddr::V6(_) => (MAX_ICMPV6_ERROR - 40, why.v6()),
    };
    let quoted = &offending[..offending.len().min(longest - HEADER)];
    icmp(from, to, HEADER + quoted.len(), |buffer| {
        buffer[..4].copy_from_slice(&[kind, code, 0, 0]);
        buffer[4..HEADER].copy_from_slice(&word.to_be_bytes());
        buffer[HEADER..].copy_from_slice(quoted);
    })
}

/// Which pings belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EchoId {
    /// The host's own address.
    pub host: IpAddr,
    /// Whom the host pings.
    pub cluster: IpAddr,
    pub identifier: u16,
}

/// An echo request of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoRequest<'a> {
    pub id: EchoId,
    /// Sequence number and payload.
    pub data: &'a [u8],
    pub hop_limit: u8,
    pub dont_fragment: bool,
    /// The IP packet, without what may trail it.
    pub bytes: &'a [u8],
}

/// Reads an echo request that is neither a fragment nor behind extension
/// headers.
pub fn parse_echo(packet: &[u8]) -> Result<EchoRequest<'_>, Ignored> {
    if packet.is_empty() {
        return Err(Ignored::Malformed);
    }
    match IpVersion::of_packet(packet)? {
        IpVersion::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet)?;
            if ip.more_frags() || ip.frag_offset() != 0 {
                return Err(Ignored::Fragment);
            }
            if ip.next_header() != IpProtocol::Icmp {
                return Err(Ignored::Protocol);
            }
            let message = ip.payload();
            let icmp = Icmpv4Packet::new_checked(message)?;
            if icmp.msg_type() != Icmpv4Message::EchoRequest || icmp.msg_code() != 0 {
                return Err(Ignored::Protocol);
            }
            if !ip.verify_checksum() || !icmp.verify_checksum() {
                return Err(Ignored::Checksum);
            }
            Ok(EchoRequest {
                id: echo_id(ip.src_addr().into(), ip.dst_addr().into(), message)?,
                data: &message[SEQUENCE..],
                hop_limit: ip.hop_limit(),
                dont_fragment: ip.dont_frag(),
                bytes: &packet[..ip.total_len().into()],
            })
        }
        IpVersion::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet)?;
            if ip.next_header() != IpProtocol::Icmpv6 {
                return Err(Ignored::Protocol);
            }
            let message = ip.payload();
            let icmp = Icmpv6Packet::new_checked(message)?;
            if icmp.msg_type() != Icmpv6Message::EchoRequest || icmp.msg_code() != 0 {
                return Err(Ignored::Protocol);
            }
            if !icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()) {
                return Err(Ignored::Checksum);
            }
            Ok(EchoRequest {
                id: echo_id(ip.src_addr().into(), ip.dst_addr().into(), message)?,
                data: &message[SEQUENCE..],
                hop_limit: ip.hop_limit(),
                dont_fragment: true,
                bytes: &packet[..ip.total_len()],
            })
        }
    }
}

fn echo_id(host: IpAddr, cluster: IpAddr, message: &[u8]) -> Result<EchoId, Ignored> {
    if message.len() < HEADER {
        return Err(Ignored::Malformed);
    }
    if !is_routable(host) || !is_routable(cluster) {
        return Err(Ignored::Address);
    }
    Ok(EchoId {
        host,
        cluster,
        identifier: u16::from_be_bytes([message[4], message[5]]),
    })
}

/// The reply of the one who was pinged; `data` is sequence number and payload.
pub fn echo_reply(id: &EchoId, data: &[u8]) -> Option<Vec<u8>> {
    let kind = match id.cluster {
        IpAddr::V4(_) => Icmpv4Message::EchoReply.into(),
        IpAddr::V6(_) => Icmpv6Message::EchoReply.into(),
    };
    icmp(id.cluster, id.host, SEQUENCE + data.len(), |buffer| {
        buffer[..4].copy_from_slice(&[kind, 0, 0, 0]);
        buffer[4..SEQUENCE].copy_from_slice(&id.identifier.to_be_bytes());
        buffer[SEQUENCE..].copy_from_slice(data);
    })
}

fn icmp(from: IpAddr, to: IpAddr, length: usize, emit: impl FnOnce(&mut [u8])) -> Option<Vec<u8>> {
    let protocol = match from {
        IpAddr::V4(_) => IpProtocol::Icmp,
        IpAddr::V6(_) => IpProtocol::Icmpv6,
    };
    let (from, to) = (from.into(), to.into());
    ip(from, to, protocol, length, |buffer| {
        emit(buffer);
        match (from, to) {
            (IpAddress::Ipv6(from), IpAddress::Ipv6(to)) => {
                Icmpv6Packet::new_unchecked(buffer).fill_checksum(&from, &to);
            }
            (IpAddress::Ipv4(_) | IpAddress::Ipv6(_), _) => {
                Icmpv4Packet::new_unchecked(buffer).fill_checksum();
            }
        }
    })
}
