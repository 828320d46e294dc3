//! What holds for any packet: what is built is read as it was meant, and what
//! is damaged is refused or read as something else, but never panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kvpn_proto::flow::Protocol;
use proptest::prelude::*;

use super::*;

/// Two addresses of one family that flows may have.
fn ends() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    let v4 = any::<[u8; 4]>().prop_map(|octets| IpAddr::from(Ipv4Addr::from(octets)));
    let v6 = any::<[u8; 16]>().prop_map(|octets| IpAddr::from(Ipv6Addr::from(octets)));
    let routable = |ip: &IpAddr| is_routable(*ip);
    let v4 = v4.prop_filter("for flows", routable).boxed();
    let v6 = v6.prop_filter("for flows", routable).boxed();
    prop_oneof![(v4.clone(), v4), (v6.clone(), v6)]
}

fn five_tuples(protocol: Protocol) -> impl Strategy<Value = FiveTuple> {
    (ends(), 1_u16.., 1_u16..).prop_map(move |((host, cluster), from, to)| FiveTuple {
        protocol,
        host: SocketAddr::new(host, from),
        cluster: SocketAddr::new(cluster, to),
    })
}

fn segments() -> impl Strategy<Value = Segment> {
    let flags = any::<(bool, bool, bool)>();
    let numbers = (any::<u32>(), any::<Option<u32>>(), 0_u32..70_000);
    (flags, numbers).prop_map(
        |((syn, fin, rst), (sequence, acknowledgement, length))| Segment {
            syn,
            fin,
            rst,
            sequence,
            acknowledgement,
            length,
        },
    )
}

/// The same flow as the other end sees it.
fn swapped(tuple: &FiveTuple) -> FiveTuple {
    FiveTuple {
        protocol: tuple.protocol,
        host: tuple.cluster,
        cluster: tuple.host,
    }
}

proptest! {
    #[test]
    fn datagrams_are_read_as_they_were_built(
        tuple in five_tuples(Protocol::Udp),
        payload in prop::collection::vec(any::<u8>(), 0..3_000),
        trailing in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let built = udp(&tuple, &payload).unwrap();
        let bytes = [built.clone(), trailing].concat();
        for checksum in [Checksum::Complete, Checksum::Partial] {
            let packet = super::super::parse(&bytes, checksum).unwrap();
            prop_assert_eq!(packet.five_tuple, swapped(&tuple));
            prop_assert_eq!(packet.transport, Transport::Udp(&payload));
            prop_assert_eq!(packet.bytes, &built[..]);
        }
    }

    #[test]
    fn damage_to_a_datagram_is_noticed_or_harmless(
        tuple in five_tuples(Protocol::Udp),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let mut bytes = udp(&tuple, &payload).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Over IPv6 the header is under no checksum, but for what it says of the
        // ends; over IPv4 a checksum of 0 is none.
        if let Ok(packet) = parse(&bytes)
            && packet.five_tuple.host.is_ipv6()
        {
            prop_assert_eq!(packet.five_tuple, swapped(&tuple));
            prop_assert_eq!(packet.transport, Transport::Udp(&payload));
        }
    }

    #[test]
    fn resets_are_acceptable_to_who_sent_the_segment(
        tuple in five_tuples(Protocol::Tcp),
        segment in segments(),
    ) {
        let built = reset(&tuple, &segment);
        prop_assert_eq!(built.is_none(), segment.rst);
        let Some(built) = built else { return Ok(()) };
        let packet = parse(&built).unwrap();
        prop_assert_eq!(packet.five_tuple, swapped(&tuple));
        let Transport::Tcp(answer) = packet.transport else {
            return Err(TestCaseError::fail("not TCP"));
        };
        prop_assert!(answer.rst && !answer.syn && !answer.fin);
        // RFC 9293 section 3.10.7.1.
        match segment.acknowledgement {
            Some(acknowledged) => prop_assert_eq!(answer.sequence, acknowledged),
            None => {
                prop_assert_eq!(answer.sequence, 0);
                prop_assert_eq!(answer.acknowledgement, Some(segment.end()));
            }
        }
        // A reset is never answered with another.
        prop_assert_eq!(reset(&packet.five_tuple, &answer), None);
    }

    #[test]
    fn echo_replies_are_for_their_requests(
        (host, cluster) in ends(),
        identifier: u16,
        data in prop::collection::vec(any::<u8>(), 2..2_000),
    ) {
        let id = EchoId { host, cluster, identifier };
        let mut bytes = echo_reply(&id, &data).unwrap();
        // Made a request again, it comes from the one who was asked.
        let icmp = if host.is_ipv4() { 20 } else { 40 };
        bytes[icmp] = if host.is_ipv4() { 8 } else { 128 };
        if host.is_ipv4() {
            smoltcp::wire::Icmpv4Packet::new_unchecked(&mut bytes[icmp..]).fill_checksum();
        } else if let (IpAddr::V6(from), IpAddr::V6(to)) = (cluster, host) {
            smoltcp::wire::Icmpv6Packet::new_unchecked(&mut bytes[icmp..])
                .fill_checksum(&from, &to);
        }
        let request = parse_echo(&bytes).unwrap();
        prop_assert_eq!((request.id.host, request.id.cluster), (cluster, host));
        prop_assert_eq!(request.id.identifier, identifier);
        prop_assert_eq!(request.data, &data[..]);
    }
}
