mod properties;

use std::net::SocketAddr;

use kvpn_proto::flow::Protocol;
use proptest::prelude::*;

use super::*;

fn five_tuple(protocol: Protocol, host: &str, cluster: &str) -> FiveTuple {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    FiveTuple {
        protocol,
        host: address(host),
        cluster: address(cluster),
    }
}

/// A datagram of the host, made as one for the host with its ends swapped.
fn datagram(host: &str, cluster: &str, payload: &[u8]) -> Vec<u8> {
    udp(&five_tuple(Protocol::Udp, cluster, host), payload).unwrap()
}

fn parse(packet: &[u8]) -> Result<Packet<'_>, Ignored> {
    super::parse(packet, Checksum::Complete)
}

#[test]
fn datagrams_are_read() {
    for (host, cluster) in [
        ("198.18.0.1:5000", "10.0.0.1:53"),
        ("[fd6b::1]:5000", "[fd00::1]:53"),
    ] {
        let mut bytes = datagram(host, cluster, b"hello");
        let length = bytes.len();
        bytes.extend_from_slice(b"trailing");
        let packet = parse(&bytes).unwrap();
        assert_eq!(packet.five_tuple, five_tuple(Protocol::Udp, host, cluster));
        assert_eq!(packet.transport, Transport::Udp(b"hello"));
        assert_eq!(packet.bytes.len(), length);
    }
}

#[test]
fn addresses_that_are_not_for_flows_are_ignored() {
    for (host, cluster) in [
        ("198.18.0.1:5000", "224.0.0.251:5353"),
        ("198.18.0.1:5000", "255.255.255.255:67"),
        ("198.18.0.1:5000", "169.254.169.254:80"),
        ("198.18.0.1:5000", "127.0.0.1:80"),
        ("0.0.0.0:68", "10.0.0.1:67"),
        ("[fd6b::1]:5000", "[ff02::fb]:5353"),
        ("[fe80::1]:5000", "[fd00::1]:53"),
    ] {
        let bytes = datagram(host, cluster, b"x");
        assert_eq!(parse(&bytes), Err(Ignored::Address), "{host} {cluster}");
    }
}

#[test]
fn changed_bytes_fail_the_checksum() {
    for (host, cluster) in [
        ("198.18.0.1:5000", "10.0.0.1:53"),
        ("[fd6b::1]:5000", "[fd00::1]:53"),
    ] {
        let mut bytes = datagram(host, cluster, b"hello");
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(parse(&bytes), Err(Ignored::Checksum));
    }
    let mut bytes = datagram("198.18.0.1:5000", "10.0.0.1:53", b"hello");
    bytes[8] ^= 1;
    assert_eq!(parse(&bytes), Err(Ignored::Checksum), "IPv4 header");
}

#[test]
fn missing_checksum_is_allowed_over_v4_only() {
    let mut bytes = datagram("198.18.0.1:5000", "10.0.0.1:53", b"hello");
    bytes[26..28].fill(0);
    assert!(parse(&bytes).is_ok());
    let mut bytes = datagram("[fd6b::1]:5000", "[fd00::1]:53", b"hello");
    bytes[46..48].fill(0);
    assert_eq!(parse(&bytes), Err(Ignored::Checksum));
}

#[test]
fn fragments_are_ignored() {
    for flags in [[0x20, 0], [0, 1]] {
        let mut bytes = datagram("198.18.0.1:5000", "10.0.0.1:53", b"hello");
        bytes[6..8].copy_from_slice(&flags);
        Ipv4Packet::new_unchecked(&mut bytes).fill_checksum();
        assert_eq!(parse(&bytes), Err(Ignored::Fragment));
    }
    let mut bytes = datagram("[fd6b::1]:5000", "[fd00::1]:53", b"hello");
    bytes[6] = 44;
    assert_eq!(parse(&bytes), Err(Ignored::Fragment));
}

#[test]
fn other_protocols_are_ignored() {
    for (host, cluster) in [("198.18.0.1", "10.0.0.1"), ("fd6b::1", "fd00::1")] {
        let (host, cluster) = (host.parse().unwrap(), cluster.parse().unwrap());
        let icmp = icmp_error(host, cluster, IcmpError::HostUnreachable, b"quoted").unwrap();
        assert_eq!(parse(&icmp), Err(Ignored::Protocol));
        assert_eq!(parse_echo(&icmp), Err(Ignored::Protocol));
    }
}

#[test]
fn truncated_packets_are_malformed() {
    for (host, cluster) in [
        ("198.18.0.1:5000", "10.0.0.1:53"),
        ("[fd6b::1]:5000", "[fd00::1]:53"),
    ] {
        let bytes = datagram(host, cluster, b"hello");
        for length in 0..bytes.len() {
            assert_eq!(parse(&bytes[..length]), Err(Ignored::Malformed), "{length}");
        }
    }
}

#[test]
fn quotes_of_large_packets_are_cut_to_the_smallest_mtu() {
    let large = vec![7; 9_000];
    for (cluster, host, length) in [
        ("10.0.0.1", "198.18.0.1", 576),
        ("fd00::1", "fd6b::1", 1_280),
    ] {
        let (cluster, host) = (cluster.parse().unwrap(), host.parse().unwrap());
        let icmp = icmp_error(cluster, host, IcmpError::HostUnreachable, &large).unwrap();
        assert_eq!(icmp.len(), length);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = parse(&bytes);
        let _ = parse_echo(&bytes);
        let _ = without_extensions(&bytes);
    }

    #[test]
    fn no_bytes_with_a_likely_start_make_the_parser_panic(
        start in prop::sample::select(vec![0x45_u8, 0x46, 0x4f, 0x60]),
        protocol in prop::sample::select(vec![6_u8, 17, 44, 0, 1, 58]),
        mut bytes in prop::collection::vec(any::<u8>(), 40..128),
    ) {
        let length = bytes.len() as u16;
        bytes[0] = start;
        if start == 0x60 {
            bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            bytes[6] = protocol;
        } else {
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[6..8].fill(0);
            bytes[9] = protocol;
            let header = usize::from(start & 0x0f) * 4;
            if header <= bytes.len() {
                Ipv4Packet::new_unchecked(&mut bytes).fill_checksum();
            }
        }
        let _ = parse(&bytes);
        let _ = parse_echo(&bytes);
        let _ = without_extensions(&bytes);
    }
}
