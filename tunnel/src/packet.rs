//! IP packets: reading those of the host, making those that no socket makes.
//!
//! Fragments, broken checksums, IPv6 extension headers and addresses that are
//! not unicast are refused here, so that the rest need not think of them.

mod build;

use std::net::{IpAddr, SocketAddr};

use kvpn_proto::flow::Protocol;
use smoltcp::wire::{IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::flow::{FiveTuple, is_routable};

pub use build::{Unreachable, reset, udp, unreachable};

/// A packet that the host sent towards the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub five_tuple: FiveTuple,
    pub transport: Transport<'a>,
    /// The IP packet, without what may trail it.
    pub bytes: &'a [u8],
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    Tcp(Segment),
    /// A datagram's payload.
    Udp(&'a [u8]),
}

/// What is to be known of a TCP segment to find out whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub syn: bool,
    pub fin: bool,
    pub rst: bool,
    pub sequence: u32,
    pub acknowledgement: Option<u32>,
    /// Length in sequence space: SYN and FIN count.
    pub length: u32,
}

impl Segment {
    /// Tells whether it asks for a new connection.
    pub fn opens(&self) -> bool {
        self.syn && !self.rst && !self.fin && self.acknowledgement.is_none()
    }

    /// The sequence number after it.
    pub fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.length)
    }
}

/// Why a packet is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    #[error("malformed packet")]
    Malformed,
    #[error("wrong checksum")]
    Checksum,
    #[error("fragment")]
    Fragment,
    #[error("neither TCP nor UDP")]
    Protocol,
    #[error("an address that is not unicast or not beyond the link")]
    Address,
}

impl From<smoltcp::wire::Error> for Ignored {
    fn from(_: smoltcp::wire::Error) -> Self {
        Self::Malformed
    }
}

/// Reads an IP packet of the host.
pub fn parse(packet: &[u8]) -> Result<Packet<'_>, Ignored> {
    if packet.is_empty() {
        // smoltcp looks at the first octet unasked.
        return Err(Ignored::Malformed);
    }
    match IpVersion::of_packet(packet)? {
        IpVersion::Ipv4 => parse_v4(packet),
        IpVersion::Ipv6 => parse_v6(packet),
    }
}

fn parse_v4(bytes: &[u8]) -> Result<Packet<'_>, Ignored> {
    let packet = Ipv4Packet::new_checked(bytes)?;
    if !packet.verify_checksum() {
        return Err(Ignored::Checksum);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Ignored::Fragment);
    }
    parse_transport(
        packet.src_addr().into(),
        packet.dst_addr().into(),
        packet.next_header(),
        packet.payload(),
        &bytes[..packet.total_len().into()],
    )
}

fn parse_v6(bytes: &[u8]) -> Result<Packet<'_>, Ignored> {
    let packet = Ipv6Packet::new_checked(bytes)?;
    if packet.next_header() == IpProtocol::Ipv6Frag {
        return Err(Ignored::Fragment);
    }
    parse_transport(
        packet.src_addr().into(),
        packet.dst_addr().into(),
        packet.next_header(),
        packet.payload(),
        &bytes[..packet.total_len()],
    )
}

fn parse_transport<'a>(
    host: IpAddr,
    cluster: IpAddr,
    protocol: IpProtocol,
    payload: &'a [u8],
    bytes: &'a [u8],
) -> Result<Packet<'a>, Ignored> {
    if !is_routable(host) || !is_routable(cluster) {
        return Err(Ignored::Address);
    }
    let (protocol, host_port, cluster_port, transport) = if protocol == IpProtocol::Tcp {
        let tcp = TcpPacket::new_checked(payload)?;
        if !tcp.verify_checksum(&host.into(), &cluster.into()) {
            return Err(Ignored::Checksum);
        }
        let segment = Segment {
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            sequence: tcp.seq_number().0.cast_unsigned(),
            acknowledgement: tcp.ack().then(|| tcp.ack_number().0.cast_unsigned()),
            length: tcp.segment_len() as u32,
        };
        let transport = Transport::Tcp(segment);
        (Protocol::Tcp, tcp.src_port(), tcp.dst_port(), transport)
    } else if protocol == IpProtocol::Udp {
        let udp = UdpPacket::new_checked(payload)?;
        // RFC 8200 section 8.1: over IPv6 the checksum is not optional.
        if udp.checksum() == 0 && host.is_ipv6()
            || !udp.verify_checksum(&host.into(), &cluster.into())
        {
            return Err(Ignored::Checksum);
        }
        let transport = Transport::Udp(udp.payload());
        (Protocol::Udp, udp.src_port(), udp.dst_port(), transport)
    } else {
        return Err(Ignored::Protocol);
    };
    if host_port == 0 || cluster_port == 0 {
        return Err(Ignored::Malformed);
    }
    Ok(Packet {
        five_tuple: FiveTuple {
            protocol,
            host: SocketAddr::new(host, host_port),
            cluster: SocketAddr::new(cluster, cluster_port),
        },
        transport,
        bytes,
    })
}

#[cfg(test)]
mod tests;
