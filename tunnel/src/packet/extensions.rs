//! IPv6 extension headers (RFC 8200 section 4).

use smoltcp::wire::{IPV6_HEADER_LEN, IpProtocol};

/// Where an IPv6 header has the type of the next, and the payload's length.
const NEXT_HEADER: usize = 6;
const PAYLOAD_LENGTH: std::ops::Range<usize> = 4..6;

/// The packet without the options that stand before its payload, when it has
/// any: they are for routers, and for a destination that is not here.
pub(crate) fn without_extensions(packet: &[u8]) -> Option<Vec<u8>> {
    if packet.len() < IPV6_HEADER_LEN || packet[0] >> 4 != 6 || !is_skipped(packet[NEXT_HEADER]) {
        return None;
    }
    let length = u16::from_be_bytes([
        packet[PAYLOAD_LENGTH.start],
        packet[PAYLOAD_LENGTH.start + 1],
    ]);
    let packet = packet.get(..IPV6_HEADER_LEN + usize::from(length))?;
    let (mut next, mut at) = (packet[NEXT_HEADER], IPV6_HEADER_LEN);
    while is_skipped(next) {
        let header = packet.get(at..at + 8)?;
        let segments_left = header[3];
        if next == u8::from(IpProtocol::Ipv6Route) && segments_left != 0 {
            // Its destination address is not its last one.
            return None;
        }
        next = header[0];
        at += 8 * (1 + usize::from(header[1]));
    }
    let payload = packet.get(at..)?;
    let mut plain = Vec::with_capacity(IPV6_HEADER_LEN + payload.len());
    plain.extend_from_slice(&packet[..IPV6_HEADER_LEN]);
    plain[NEXT_HEADER] = next;
    plain[PAYLOAD_LENGTH].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    plain.extend_from_slice(payload);
    Some(plain)
}

fn is_skipped(next_header: u8) -> bool {
    [
        IpProtocol::HopByHop,
        IpProtocol::Ipv6Route,
        IpProtocol::Ipv6Opts,
    ]
    .map(u8::from)
    .contains(&next_header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netstack::tests::lab::{POD_V4, POD_V6, address};
    use crate::netstack::tests::packets::datagram;

    /// Puts extension headers before the payload: type, then further octets.
    fn extended(packet: &[u8], headers: &[(IpProtocol, Vec<u8>)]) -> Vec<u8> {
        let mut next = packet[NEXT_HEADER];
        let mut payload = packet[IPV6_HEADER_LEN..].to_vec();
        for (kind, body) in headers.iter().rev() {
            let units = (2 + body.len()) / 8 - 1;
            let header = [next, units as u8].into_iter().chain(body.iter().copied());
            payload = header.chain(payload).collect();
            next = (*kind).into();
        }
        let mut packet = packet[..IPV6_HEADER_LEN].to_vec();
        packet[NEXT_HEADER] = next;
        packet[PAYLOAD_LENGTH].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        packet.extend(payload);
        packet
    }

    #[test]
    fn options_are_taken_out() {
        let plain = datagram(5_000, address(POD_V6), b"hello");
        let packet = extended(
            &plain,
            &[
                (IpProtocol::HopByHop, vec![1, 4, 0, 0, 0, 0]),
                (IpProtocol::Ipv6Route, vec![0; 6]),
                (
                    IpProtocol::Ipv6Opts,
                    vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ),
            ],
        );
        assert_eq!(without_extensions(&packet), Some(plain.clone()));
        let trailing = [&packet[..], b"trailing"].concat();
        assert_eq!(without_extensions(&trailing), Some(plain));
    }

    #[test]
    fn packets_without_options_and_broken_ones_are_left_alone() {
        let plain = datagram(5_000, address(POD_V6), b"hello");
        assert_eq!(without_extensions(&plain), None);
        assert_eq!(
            without_extensions(&datagram(5_000, address(POD_V4), b"x")),
            None
        );
        let option = (IpProtocol::HopByHop, vec![1, 4, 0, 0, 0, 0]);
        let packet = extended(&plain, &[option]);
        for length in 0..packet.len() {
            assert_eq!(without_extensions(&packet[..length]), None, "{length}");
        }
        let mut too_long = packet;
        too_long[IPV6_HEADER_LEN + 1] = 200;
        assert_eq!(without_extensions(&too_long), None);
    }

    #[test]
    fn packet_that_is_to_be_routed_on_is_left_alone() {
        let plain = datagram(5_000, address(POD_V6), b"hello");
        let route = (IpProtocol::Ipv6Route, vec![0, 1, 0, 0, 0, 0]);
        assert_eq!(without_extensions(&extended(&plain, &[route])), None);
    }
}
