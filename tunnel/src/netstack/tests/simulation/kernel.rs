//! What makes the host's smoltcp 0.14 behave as a kernel does.

use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber};

use crate::packet::{self, Segment};

/// What the host's end of a connection has said last.
#[derive(Default)]
pub(super) struct Said {
    acknowledged: u32,
    window: u16,
    /// The sequence number after its FIN.
    end: Option<u32>,
}

impl Said {
    /// Takes note of a packet of the host; gives it as a kernel would send it.
    pub(super) fn note(&mut self, packet: &[u8], segment: &Segment) -> Vec<u8> {
        if segment.syn {
            *self = Self::default();
        }
        let tcp = TcpPacket::new_unchecked(&packet[packet::tcp_offset(packet)..]);
        if let Some(acknowledged) = segment.acknowledgement {
            self.acknowledged = acknowledged;
            self.window = tcp.window_len();
        }
        if segment.fin {
            self.end = Some(segment.end());
        } else if segment.length == 1 && self.end == Some(segment.end()) {
            // A kernel's keep-alive carries no byte in the place of the FIN.
            return without_data(packet, segment.sequence);
        }
        packet.to_vec()
    }

    /// smoltcp ignores a FIN behind a gap, and one that comes with nothing but
    /// old data; it takes one whose data it cuts at the end of its window. So
    /// the first and the last are lost, and the second comes without the data.
    pub(super) fn as_kernels_take_it(&self, bytes: Vec<u8>, segment: &Segment) -> Option<Vec<u8>> {
        if !segment.fin || segment.length == 1 {
            return Some(bytes);
        }
        let expected = self.acknowledged;
        let window_end = expected.wrapping_add(self.window.into());
        let fin = segment.end().wrapping_sub(1);
        if is_after(segment.sequence, expected) || is_after(fin, window_end) {
            return None;
        }
        if fin == expected && segment.sequence != expected {
            return Some(without_data(&bytes, expected));
        }
        Some(bytes)
    }
}

fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() > 0
}

/// The same header, for no data.
fn without_data(packet: &[u8], sequence: u32) -> Vec<u8> {
    let ip = packet::tcp_offset(packet);
    let length = TcpPacket::new_unchecked(&packet[ip..]).header_len();
    let mut bytes = packet[..ip + usize::from(length)].to_vec();
    let (header, tcp) = bytes.split_at_mut(ip);
    let mut tcp = TcpPacket::new_unchecked(tcp);
    tcp.set_seq_number(TcpSeqNumber(sequence.cast_signed()));
    if header[0] >> 4 == 4 {
        let mut ip = Ipv4Packet::new_unchecked(header);
        ip.set_total_len(20 + u16::from(length));
        ip.fill_checksum();
        tcp.fill_checksum(&ip.src_addr().into(), &ip.dst_addr().into());
    } else {
        let mut ip = Ipv6Packet::new_unchecked(header);
        ip.set_payload_len(length.into());
        tcp.fill_checksum(&ip.src_addr().into(), &ip.dst_addr().into());
    }
    bytes
}
