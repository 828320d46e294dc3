//! Packets of a host, well-formed but for what the fuzzer wants otherwise.

use std::net::{IpAddr, SocketAddr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

const IPV6_FRAGMENT: u8 = 44;
const HOP_LIMIT: u8 = 64;

/// A TCP header's variable part.
pub(crate) struct Segment<'a> {
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Segment<'_> {
    pub(crate) fn packet(&self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let mut options = self.options[..self.options.len().min(40)].to_vec();
        options.resize(options.len().next_multiple_of(4), 0);
        let mut tcp = ports(from, to);
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.push(((20 + options.len()) << 2) as u8);
        tcp.push(self.flags);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(options);
        tcp.extend(self.payload);
        packet(from.ip(), to.ip(), TCP, tcp)
    }

    /// Length in sequence space: SYN and FIN count.
    pub(crate) fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.flags & 1) + u32::from(self.flags >> 1 & 1)
    }
}

pub(crate) fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut udp = ports(from, to);
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0; 2]);
    udp.extend(payload);
    packet(from.ip(), to.ip(), UDP, udp)
}

/// An IP packet with that payload, whose checksum is filled in when its place
/// is known.
pub(crate) fn packet(from: IpAddr, to: IpAddr, protocol: u8, mut payload: Vec<u8>) -> Vec<u8> {
    let (place, has_pseudo_header) = match (protocol, from) {
        (TCP, _) => (16, true),
        (UDP, _) => (6, true),
        (58, IpAddr::V6(_)) => (2, true),
        (1, IpAddr::V4(_)) => (2, false),
        _ => (usize::MAX, false),
    };
    if payload.len() >= 8 && place < payload.len() - 1 {
        payload[place..place + 2].fill(0);
        let mut sum = sum(&payload);
        if has_pseudo_header {
            sum += address_sum(from) + address_sum(to);
            sum += u64::from(protocol) + payload.len() as u64;
        }
        let checksum = match finish(sum) {
            0 if protocol == UDP => u16::MAX,
            checksum => checksum,
        };
        payload[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    let mut packet = header(from, to, protocol, payload.len(), [0; 4]);
    packet.extend(payload);
    packet
}

/// Cuts a packet in two at that octet of its payload, rounded to eight.
pub(crate) fn fragments(packet: &[u8], at: usize, id: u8) -> Option<[Vec<u8>; 2]> {
    let is_v4 = packet.first()? >> 4 == 4;
    let header_length = if is_v4 { 20 } else { 40 };
    let payload = packet.get(header_length..)?;
    let cut = (at / 8 * 8).min(payload.len());
    let fragment = |offset: usize, data: &[u8], is_last: bool| {
        let mut fragment = packet[..header_length].to_vec();
        if is_v4 {
            let place = (offset / 8) as u16 | u16::from(!is_last) << 13;
            fragment[4..8].copy_from_slice(&[0, id, (place >> 8) as u8, place as u8]);
            let length = (20 + data.len()) as u16;
            fragment[2..4].copy_from_slice(&length.to_be_bytes());
            fill_v4_checksum(&mut fragment);
        } else {
            let place = offset as u16 | u16::from(!is_last);
            let length = (8 + data.len()) as u16;
            fragment[4..6].copy_from_slice(&length.to_be_bytes());
            let protocol = std::mem::replace(&mut fragment[6], IPV6_FRAGMENT);
            fragment.extend([protocol, 0, (place >> 8) as u8, place as u8, 0, 0, 0, id]);
        }
        fragment.extend(data);
        fragment
    };
    let (first, second) = payload.split_at(cut);
    Some([fragment(0, first, false), fragment(cut, second, true)])
}

/// Makes an IPv4 header's checksum right again.
pub(crate) fn fill_v4_checksum(packet: &mut [u8]) {
    let length = packet
        .first()
        .map_or(0, |first| usize::from(first & 15) * 4);
    if length < 20 || packet.len() < length {
        return;
    }
    packet[10..12].fill(0);
    let checksum = finish(sum(&packet[..length]));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

fn ports(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    [from.port().to_be_bytes(), to.port().to_be_bytes()].concat()
}

fn header(from: IpAddr, to: IpAddr, protocol: u8, length: usize, fragment: [u8; 4]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend(((20 + length) as u16).to_be_bytes());
            header.extend(fragment);
            header.extend([HOP_LIMIT, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            fill_v4_checksum(&mut header);
            header
        }
        (from, to) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((length as u16).to_be_bytes());
            header.extend([protocol, HOP_LIMIT]);
            for address in [from, to] {
                match address {
                    IpAddr::V4(ip) => header.extend(ip.to_ipv6_mapped().octets()),
                    IpAddr::V6(ip) => header.extend(ip.octets()),
                }
            }
            header
        }
    }
}

fn address_sum(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    }
}

fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2);
    words
        .map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)))
        .sum()
}

fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}
