//! IP packets: reading those of the host, making those that no socket makes.
//!
//! Broken checksums and addresses that are not unicast are refused here, so that
//! the rest need not think of them. Fragments are put together and IPv6
//! extension headers taken out before a packet is read.
//!
//! # Don't fragment
//!
//! A packet that must not be fragmented is sent on like that, and when it does
//! not fit a path in the cluster the host hears so and learns the path's MTU, as
//! from a router. But the host's device takes packets far longer than any wire
//! does. Linux forbids to fragment nearly every datagram, and cuts those itself
//! that are longer than its device's MTU; over IPv6 there is nobody else to do
//! it. So only packets that Ethernet would have carried in one piece
//! ([`MAX_WIRE`]) are taken at their word: the probes and packets of QUIC, whose
//! senders must learn what fits. Longer ones the host would have cut itself had
//! it known the wire, so the traffic manager's kernel cuts them; what the host
//! did cut may be cut again.

mod build;
mod extensions;
mod fragments;
mod icmp;
mod partial;

use std::net::{IpAddr, SocketAddr};

use kvpn_proto::flow::Protocol;
use smoltcp::wire::{IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::flow::{FiveTuple, is_routable};

pub(crate) use extensions::without_extensions;
pub(crate) use fragments::{Reassembler, fragments};
pub use icmp::{EchoId, EchoRequest, IcmpError, echo_reply, icmp_error, parse_echo};
pub use partial::{TCP_CHECKSUM_OFFSET, tcp_offset};
pub(crate) use partial::{acknowledged, fill_partial_checksum};

pub(crate) use build::{acknowledgement, keep_alive};
pub use build::{reset, udp};

/// The longest packet that Ethernet carries, in bytes.
pub const MAX_WIRE: usize = 1_500;

/// How far a packet's transport checksum has been computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Complete,
    /// Its field holds the sum of the pseudo-header, and the packet has crossed
    /// no wire yet: a kernel computes the rest should it ever need it
    /// (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    Partial,
}

/// A packet that the host sent towards the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub five_tuple: FiveTuple,
    pub transport: Transport<'a>,
    pub hop_limit: u8,
    /// As the packet says; always so over IPv6.
    pub dont_fragment: bool,
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

    /// Tells whether it asks for a connection after one of the same five-tuple
    /// that is in TIME-WAIT. Unless it is a copy of the SYN that opened that
    /// one, the host has closed it (RFC 9293 section 3.10.7.4; the device does
    /// not reorder, so its sequence number need not be beyond the old ones).
    pub fn opens_another(&self, opened_by: u32) -> bool {
        self.opens() && self.sequence != opened_by
    }

    /// Tells whether it does nothing but acknowledge what was acknowledged before.
    pub fn repeats(&self, acknowledged: Option<u32>) -> bool {
        self.length == 0
            && !self.rst
            && acknowledged.is_some()
            && self.acknowledgement == acknowledged
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

/// Reads an IP packet of the host; a partial checksum cannot be verified.
pub fn parse(packet: &[u8], checksum: Checksum) -> Result<Packet<'_>, Ignored> {
    if packet.is_empty() {
        // smoltcp looks at the first octet unasked.
        return Err(Ignored::Malformed);
    }
    match IpVersion::of_packet(packet)? {
        IpVersion::Ipv4 => parse_v4(packet, checksum),
        IpVersion::Ipv6 => parse_v6(packet, checksum),
    }
}

fn parse_v4(bytes: &[u8], checksum: Checksum) -> Result<Packet<'_>, Ignored> {
    let packet = Ipv4Packet::new_checked(bytes)?;
    if !packet.verify_checksum() {
        return Err(Ignored::Checksum);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Ignored::Fragment);
    }
    let header = Header {
        host: packet.src_addr().into(),
        cluster: packet.dst_addr().into(),
        protocol: packet.next_header(),
        hop_limit: packet.hop_limit(),
        dont_fragment: packet.dont_frag(),
    };
    let whole = &bytes[..packet.total_len().into()];
    parse_transport(&header, packet.payload(), whole, checksum)
}

fn parse_v6(bytes: &[u8], checksum: Checksum) -> Result<Packet<'_>, Ignored> {
    let packet = Ipv6Packet::new_checked(bytes)?;
    if packet.next_header() == IpProtocol::Ipv6Frag {
        return Err(Ignored::Fragment);
    }
    let header = Header {
        host: packet.src_addr().into(),
        cluster: packet.dst_addr().into(),
        protocol: packet.next_header(),
        hop_limit: packet.hop_limit(),
        dont_fragment: true,
    };
    let whole = &bytes[..packet.total_len()];
    parse_transport(&header, packet.payload(), whole, checksum)
}

/// What the IP headers of both versions tell.
struct Header {
    host: IpAddr,
    cluster: IpAddr,
    protocol: IpProtocol,
    hop_limit: u8,
    dont_fragment: bool,
}

fn parse_transport<'a>(
    header: &Header,
    payload: &'a [u8],
    bytes: &'a [u8],
    checksum: Checksum,
) -> Result<Packet<'a>, Ignored> {
    let is_partial = checksum == Checksum::Partial;
    let Header {
        host,
        cluster,
        protocol,
        hop_limit,
        dont_fragment,
    } = *header;
    if !is_routable(host) || !is_routable(cluster) {
        return Err(Ignored::Address);
    }
    let (protocol, host_port, cluster_port, transport) = if protocol == IpProtocol::Tcp {
        let tcp = TcpPacket::new_checked(payload)?;
        if !is_partial && !tcp.verify_checksum(&host.into(), &cluster.into()) {
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
        let is_missing = udp.checksum() == 0 && host.is_ipv6();
        if !is_partial && (is_missing || !udp.verify_checksum(&host.into(), &cluster.into())) {
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
        hop_limit,
        dont_fragment,
        bytes,
    })
}

#[cfg(test)]
mod tests;
