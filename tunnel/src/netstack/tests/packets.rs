//! Packets made by hand, and what the netstack does with any bytes.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpPacket,
    TcpSeqNumber, UdpPacket, UdpRepr,
};

use super::lab::{HOST_V4, HOST_V6, Lab, POD_V4, POD_V6, address};

/// The host's own address of the family of `pod`.
pub(crate) fn host_of(pod: SocketAddr) -> IpAddr {
    let host = if pod.is_ipv4() { HOST_V4 } else { HOST_V6 };
    host.parse().unwrap()
}

pub(crate) fn tcp_segment(
    port: u16,
    pod: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    payload: &[u8],
    flags: impl FnOnce(&mut TcpPacket<&mut [u8]>),
) -> Vec<u8> {
    let (from, to) = (host_of(pod).into(), pod.ip().into());
    ip_packet(from, to, IpProtocol::Tcp, 20 + payload.len(), |buffer| {
        buffer[20..].copy_from_slice(payload);
        let mut tcp = TcpPacket::new_unchecked(buffer);
        tcp.set_src_port(port);
        tcp.set_dst_port(pod.port());
        tcp.set_seq_number(TcpSeqNumber(sequence.cast_signed()));
        tcp.set_ack_number(TcpSeqNumber(acknowledgement.cast_signed()));
        tcp.clear_flags();
        tcp.set_header_len(20);
        tcp.set_window_len(1_000);
        flags(&mut tcp);
        tcp.fill_checksum(&from, &to);
    })
}

pub(crate) fn datagram(port: u16, pod: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (from, to): (IpAddress, IpAddress) = (host_of(pod).into(), pod.ip().into());
    let header = UdpRepr {
        src_port: port,
        dst_port: pod.port(),
    };
    ip_packet(from, to, IpProtocol::Udp, 8 + payload.len(), |buffer| {
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

/// An echo request of the host, without its sequence number in `payload`.
pub(crate) fn ping(pod: IpAddr, identifier: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let host = host_of(SocketAddr::new(pod, 0));
    let (kind, protocol) = match pod {
        IpAddr::V4(_) => (8, IpProtocol::Icmp),
        IpAddr::V6(_) => (128, IpProtocol::Icmpv6),
    };
    let (from, to) = (host.into(), pod.into());
    ip_packet(from, to, protocol, 8 + payload.len(), |buffer| {
        buffer[..4].copy_from_slice(&[kind, 0, 0, 0]);
        buffer[4..6].copy_from_slice(&identifier.to_be_bytes());
        buffer[6..8].copy_from_slice(&sequence.to_be_bytes());
        buffer[8..].copy_from_slice(payload);
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

fn ip_packet(
    from: IpAddress,
    to: IpAddress,
    protocol: IpProtocol,
    length: usize,
    emit: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let header = IpRepr::new(from, to, protocol, length, 64);
    let mut packet = vec![0; header.buffer_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    emit(&mut packet[header.header_len()..]);
    packet
}

/// Source address and payload of a packet for the host.
pub(crate) fn towards_host(packet: &[u8]) -> (IpAddr, Vec<u8>) {
    if packet[0] >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!(
            IpAddr::from(ip.dst_addr()),
            HOST_V4.parse::<IpAddr>().unwrap()
        );
        (ip.src_addr().into(), ip.payload().to_vec())
    } else {
        let ip = Ipv6Packet::new_checked(packet).unwrap();
        assert_eq!(
            IpAddr::from(ip.dst_addr()),
            HOST_V6.parse::<IpAddr>().unwrap()
        );
        (ip.src_addr().into(), ip.payload().to_vec())
    }
}

#[derive(Clone, Debug)]
struct Made {
    v6: bool,
    udp: bool,
    port: u16,
    sequence: u32,
    flags: u8,
    payload: Vec<u8>,
}

fn made() -> impl Strategy<Value = Made> {
    (
        any::<bool>(),
        any::<bool>(),
        1_u16..4,
        any::<u32>(),
        any::<u8>(),
        prop::collection::vec(any::<u8>(), 0..64),
    )
        .prop_map(|(v6, udp, port, sequence, flags, payload)| Made {
            v6,
            udp,
            port,
            sequence,
            flags,
            payload,
        })
}

impl Made {
    fn packet(&self) -> Vec<u8> {
        let pod = address(if self.v6 { POD_V6 } else { POD_V4 });
        if self.udp {
            return datagram(self.port, pod, &self.payload);
        }
        let flags = self.flags;
        tcp_segment(self.port, pod, self.sequence, 0, &self.payload, |tcp| {
            tcp.set_syn(flags & 1 != 0);
            tcp.set_fin(flags & 2 != 0);
            tcp.set_rst(flags & 4 != 0);
            tcp.set_ack(flags & 8 != 0);
            tcp.set_psh(flags & 16 != 0);
        })
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_netstack_panic(packet in prop::collection::vec(any::<u8>(), 0..128)) {
        Lab::new().inject(&packet);
    }

    #[test]
    fn no_damaged_packet_makes_the_netstack_panic(
        made in made(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        length in any::<prop::sample::Index>(),
    ) {
        let mut packet = made.packet();
        for (at, value) in damage {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        let length = length.index(packet.len() + 1);
        let mut lab = Lab::new();
        lab.inject(&packet);
        lab.inject(&packet[..length]);
    }

    #[test]
    fn no_sequence_of_segments_makes_the_netstack_panic(
        packets in prop::collection::vec((made(), any::<bool>()), 1..16),
    ) {
        let mut lab = Lab::new();
        let mut flows = Vec::new();
        for (made, accept) in packets {
            lab.inject(&made.packet());
            for flow in lab.new_flows.drain(..) {
                match flow {
                    crate::netstack::NewFlow::Tcp(pending) if accept => {
                        flows.push(pending.accept(lab.now));
                    }
                    crate::netstack::NewFlow::Tcp(_)
                    | crate::netstack::NewFlow::Udp(_)
                    | crate::netstack::NewFlow::Echo(_) => {}
                }
            }
        }
        drop(flows);
        lab.pass(std::time::Duration::from_secs(100));
        prop_assert_eq!(lab.netstack.counters().open_flows, 0);
    }

    #[test]
    fn sequence_numbers_may_begin_anywhere_and_wrap(
        first in prop_oneof![any::<u32>(), u32::MAX - 3_000..],
        sizes in prop::collection::vec(1_usize..1_000, 1..12),
    ) {
        let pod = address(POD_V4);
        let mut lab = Lab::new();
        lab.inject(&tcp_segment(7, pod, first, 0, b"", |tcp| tcp.set_syn(true)));
        let flow = lab.pending().accept(lab.now);
        let answer = lab.wire.take().remove(0);
        let answer = TcpPacket::new_unchecked(&answer[20..]).seq_number();
        let expected = answer.0.cast_unsigned().wrapping_add(1);

        let mut sequence = first.wrapping_add(1);
        let mut sent = Vec::new();
        for (size, turn) in sizes.into_iter().zip(0..) {
            let payload = super::lab::pattern(size, turn);
            lab.inject(&tcp_segment(7, pod, sequence, expected, &payload, |tcp| tcp.set_ack(true)));
            sequence = sequence.wrapping_add(size as u32);
            sent.extend(payload);
        }
        lab.inject(&tcp_segment(7, pod, sequence, expected, b"", |tcp| {
            tcp.set_ack(true);
            tcp.set_fin(true);
        }));

        let mut got = Vec::new();
        let mut buffer = [0; 700];
        while let Some(count) = super::lab::read(&lab, &flow, &mut buffer) {
            match count.unwrap() {
                0 => break,
                count => got.extend_from_slice(&buffer[..count]),
            }
        }
        prop_assert!(got == sent);
        let last = lab.wire.take().pop().unwrap();
        let last = TcpPacket::new_unchecked(&last[20..]).ack_number();
        prop_assert_eq!(last.0.cast_unsigned(), sequence.wrapping_add(1));
    }
}
