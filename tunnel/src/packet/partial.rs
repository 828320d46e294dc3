//! TCP checksums that are left to the host's kernel.

use smoltcp::wire::{IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket};

/// Where a TCP header has its checksum.
pub const TCP_CHECKSUM_OFFSET: usize = 16;

const IPV6_HEADER: usize = 40;

/// Where the TCP header begins in a packet that a stack has made, which has no
/// IPv6 extension headers.
pub fn tcp_offset(packet: &[u8]) -> usize {
    match packet.first().map(|first| first >> 4) {
        Some(4) => usize::from(packet[0] & 0x0f) * 4,
        _ => IPV6_HEADER,
    }
}

/// What a whole TCP/IP packet acknowledges, if anything.
pub(crate) fn acknowledged(packet: &[u8]) -> Option<u32> {
    let tcp = TcpPacket::new_unchecked(packet.get(tcp_offset(packet)..)?);
    let number = tcp.ack_number().0.cast_unsigned();
    tcp.ack().then_some(number)
}

/// Puts the sum of the pseudo-header where the checksum will be, not inverted,
/// as a kernel wants it that is to finish the sum (RFC 9293 section 3.1).
pub(crate) fn fill_partial_checksum(packet: &mut [u8]) {
    let tcp = tcp_offset(packet);
    let length = packet.len().saturating_sub(tcp) as u32;
    let addresses = match IpVersion::of_packet(packet) {
        Ok(IpVersion::Ipv4) => {
            let ip = Ipv4Packet::new_unchecked(&*packet);
            sum(&ip.src_addr().octets()) + sum(&ip.dst_addr().octets())
        }
        Ok(IpVersion::Ipv6) => {
            let ip = Ipv6Packet::new_unchecked(&*packet);
            sum(&ip.src_addr().octets()) + sum(&ip.dst_addr().octets())
        }
        Err(_) => return,
    };
    const TCP: u32 = 6;
    let mut total = addresses + TCP + (length >> 16) + (length & 0xffff);
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    let field = tcp + TCP_CHECKSUM_OFFSET;
    if let Some(field) = packet.get_mut(field..field + 2) {
        field.copy_from_slice(&(total as u16).to_be_bytes());
    }
}

fn sum(address: &[u8]) -> u32 {
    address
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum()
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::TcpPacket;

    use super::*;
    use crate::netstack::tests::opening::segment_from;

    /// What a kernel does: sums the rest, from the TCP header on, and inverts.
    fn finish(packet: &mut [u8]) {
        let tcp = tcp_offset(packet);
        let mut total: u32 = packet[tcp..]
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
            .sum();
        while total > 0xffff {
            total = (total >> 16) + (total & 0xffff);
        }
        let checksum = (!(total as u16)).to_be_bytes();
        packet[tcp + TCP_CHECKSUM_OFFSET..][..2].copy_from_slice(&checksum);
    }

    #[test]
    fn a_kernel_finishes_the_sum() {
        for pod in ["10.1.2.3:80", "[fd00:10::3]:80"] {
            let whole = segment_from(40_000, pod, |tcp| tcp.set_syn(true));
            let mut packet = whole.clone();
            let tcp = tcp_offset(&packet);
            TcpPacket::new_unchecked(&mut packet[tcp..]).set_checksum(0);
            fill_partial_checksum(&mut packet);
            assert_ne!(packet, whole);
            finish(&mut packet);
            assert_eq!(packet, whole);
        }
    }
}
