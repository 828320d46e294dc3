//! Packets towards the host, from the address that it wanted to reach.

use std::net::IpAddr;

use kvpn_proto::flow::DialError;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UDP_HEADER_LEN, UdpPacket, UdpRepr,
};

use super::Segment;
use crate::flow::FiveTuple;

const HOP_LIMIT: u8 = 64;
const ICMP_HEADER: usize = 8;

/// The longest ICMP error (RFC 1812 section 4.3.2.3).
const MAX_ICMPV4_ERROR: usize = 576;

/// The longest ICMPv6 error (RFC 4443 section 2.4).
const MAX_ICMPV6_ERROR: usize = 1_280;

const MAX_PACKET: usize = 65_535;

/// What an ICMP "destination unreachable" says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// What the host's kernel should hear after a failed dial.
    pub fn from_dial_error(error: DialError) -> Self {
        match error {
            DialError::Refused => Self::Port,
            DialError::NetworkUnreachable => Self::Network,
            DialError::Prohibited => Self::Prohibited,
            DialError::HostUnreachable | DialError::TimedOut | DialError::TunnelLost => Self::Host,
        }
    }

    /// Code of an ICMP message of type 3 (RFC 792, RFC 1812 section 5.2.7.1).
    fn icmpv4_code(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::Host => 1,
            Self::Port => 3,
            Self::Prohibited => 13,
        }
    }

    /// Code of an ICMPv6 message of type 1 (RFC 4443 section 3.1).
    fn icmpv6_code(self) -> u8 {
        match self {
            Self::Network => 0,
            Self::Prohibited => 1,
            Self::Host => 3,
            Self::Port => 4,
        }
    }
}

/// A datagram from the flow's cluster end; `None` when it does not fit.
pub fn udp(five_tuple: &FiveTuple, payload: &[u8]) -> Option<Vec<u8>> {
    let header = UdpRepr {
        src_port: five_tuple.cluster.port(),
        dst_port: five_tuple.host.port(),
    };
    let (from, to) = addresses(five_tuple);
    let length = UDP_HEADER_LEN + payload.len();
    ip(from, to, IpProtocol::Udp, length, |buffer| {
        header.emit(
            &mut UdpPacket::new_unchecked(buffer),
            &from,
            &to,
            payload.len(),
            |room| room.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

/// The RST that answers a segment which belongs to no connection (RFC 9293
/// section 3.10.7.1); `None` when that is an RST itself.
pub fn reset(five_tuple: &FiveTuple, segment: &Segment) -> Option<Vec<u8>> {
    if segment.rst {
        return None;
    }
    let sequence = |number: u32| TcpSeqNumber(number.cast_signed());
    let (seq_number, ack_number) = match segment.acknowledgement {
        Some(acknowledged) => (sequence(acknowledged), None),
        None => (sequence(0), Some(sequence(segment.end()))),
    };
    let header = TcpRepr {
        src_port: five_tuple.cluster.port(),
        dst_port: five_tuple.host.port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = addresses(five_tuple);
    ip(from, to, IpProtocol::Tcp, header.buffer_len(), |buffer| {
        header.emit(
            &mut TcpPacket::new_unchecked(buffer),
            &from,
            &to,
            &ChecksumCapabilities::default(),
        );
    })
}

/// Destination unreachable, from the flow's cluster end, quoting the start of
/// the packet that did not arrive.
pub fn unreachable(five_tuple: &FiveTuple, why: Unreachable, offending: &[u8]) -> Option<Vec<u8>> {
    let (from, to) = addresses(five_tuple);
    let (protocol, longest, kind, code) = match five_tuple.cluster.ip() {
        IpAddr::V4(_) => (
            IpProtocol::Icmp,
            MAX_ICMPV4_ERROR - 20,
            3,
            why.icmpv4_code(),
        ),
        IpAddr::V6(_) => (
            IpProtocol::Icmpv6,
            MAX_ICMPV6_ERROR - 40,
            1,
            why.icmpv6_code(),
        ),
    };
    let quoted = &offending[..offending.len().min(longest - ICMP_HEADER)];
    let length = ICMP_HEADER + quoted.len();
    ip(from, to, protocol, length, |buffer| {
        buffer[..ICMP_HEADER].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
        buffer[ICMP_HEADER..].copy_from_slice(quoted);
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

fn addresses(five_tuple: &FiveTuple) -> (IpAddress, IpAddress) {
    (five_tuple.cluster.ip().into(), five_tuple.host.ip().into())
}

fn ip(
    from: IpAddress,
    to: IpAddress,
    protocol: IpProtocol,
    length: usize,
    emit: impl FnOnce(&mut [u8]),
) -> Option<Vec<u8>> {
    let header = IpRepr::new(from, to, protocol, length, HOP_LIMIT);
    if header.buffer_len() > MAX_PACKET {
        return None;
    }
    let mut packet = vec![0; header.buffer_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    emit(&mut packet[header.header_len()..]);
    Some(packet)
}
