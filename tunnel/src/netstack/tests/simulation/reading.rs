//! What packets on the wire say.

use std::time::Instant;

use kvpn_proto::flow::Protocol;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet};

use crate::flow::FiveTuple;
use crate::packet::{self, Checksum, Ignored, Reassembler, Segment, Transport};

/// The packet, if it is whole, or becomes so with this fragment.
pub(super) fn whole(bytes: &[u8], fragments: &mut Reassembler, now: Instant) -> Option<Vec<u8>> {
    match packet::parse(bytes, Checksum::Complete) {
        Err(Ignored::Fragment) => fragments.push(bytes, now),
        Ok(_) | Err(_) => Some(bytes.to_vec()),
    }
}

pub(super) fn segment_of(bytes: &[u8]) -> Option<(FiveTuple, Segment)> {
    let packet = packet::parse(bytes, Checksum::Complete).ok()?;
    match packet.transport {
        Transport::Tcp(segment) => Some((packet.five_tuple, segment)),
        Transport::Udp(_) => None,
    }
}

/// The host's TCP port that an ICMP "destination unreachable" is about, and its
/// code.
pub(super) fn unreachable_of(bytes: &[u8]) -> Option<(u16, u8)> {
    let (kind, code, quoted) = if bytes[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(bytes).ok()?;
        let icmp = (ip.next_header() == IpProtocol::Icmp).then(|| ip.payload())?;
        let icmp = Icmpv4Packet::new_checked(icmp).ok()?;
        assert!(icmp.verify_checksum());
        (
            u8::from(icmp.msg_type()),
            icmp.msg_code(),
            icmp.data().to_vec(),
        )
    } else {
        let ip = Ipv6Packet::new_checked(bytes).ok()?;
        let payload = (ip.next_header() == IpProtocol::Icmpv6).then(|| ip.payload())?;
        let icmp = Icmpv6Packet::new_checked(payload).ok()?;
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        (
            u8::from(icmp.msg_type()),
            icmp.msg_code(),
            icmp.payload().to_vec(),
        )
    };
    assert_eq!(kind, if bytes[0] >> 4 == 4 { 3 } else { 1 });
    let quoted = packet::parse(&quoted, Checksum::Complete).expect("the whole SYN");
    assert_eq!(quoted.five_tuple.protocol, Protocol::Tcp);
    Some((quoted.five_tuple.host.port(), code))
}
