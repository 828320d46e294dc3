//! Packets towards the host, from the address that it wanted to reach.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UDP_HEADER_LEN,
    UdpPacket, UdpRepr,
};

use super::Segment;
use crate::flow::FiveTuple;

const HOP_LIMIT: u8 = 64;
/// The most that a length field of IP tells: for IPv4 with the header.
const MAX_LENGTH: usize = 65_535;

/// A datagram from the flow's cluster end; `None` when it does not fit.
pub fn udp(five_tuple: &FiveTuple, payload: &[u8]) -> Option<Vec<u8>> {
    let header = UdpRepr {
        src_port: five_tuple.cluster.port(),
        dst_port: five_tuple.host.port(),
    };
    let (from, to) = addresses(five_tuple);
    let length = UDP_HEADER_LEN + payload.len();
    ip(from, to, IpProtocol::Udp, length, |buffer| {
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

/// The RST that answers a segment which belongs to no connection (RFC 9293
/// section 3.10.7.1); `None` when that is an RST itself.
pub fn reset(five_tuple: &FiveTuple, segment: &Segment) -> Option<Vec<u8>> {
    if segment.rst {
        return None;
    }
    let (sequence, acknowledgement) = match segment.acknowledgement {
        Some(acknowledged) => (acknowledged, None),
        None => (0, Some(segment.end())),
    };
    bare_segment(five_tuple, TcpControl::Rst, sequence, acknowledgement)
}

/// The ACK that answers what a host repeats to a connection in TIME-WAIT (RFC
/// 9293 section 3.10.7.4); `None` when it acknowledges nothing itself.
pub(crate) fn acknowledgement(five_tuple: &FiveTuple, segment: &Segment) -> Option<Vec<u8>> {
    let sequence = segment.acknowledgement?;
    bare_segment(five_tuple, TcpControl::None, sequence, Some(segment.end()))
}

/// A keep-alive (RFC 9293 section 3.8.4) before what the host expects next. Lying
/// there, it leaves our window as the host knows it.
pub(crate) fn keep_alive(
    five_tuple: &FiveTuple,
    expected: u32,
    acknowledgement: u32,
) -> Option<Vec<u8>> {
    let sequence = expected.wrapping_sub(1);
    bare_segment(
        five_tuple,
        TcpControl::None,
        sequence,
        Some(acknowledgement),
    )
}

fn bare_segment(
    five_tuple: &FiveTuple,
    control: TcpControl,
    sequence: u32,
    acknowledgement: Option<u32>,
) -> Option<Vec<u8>> {
    let number = |number: u32| TcpSeqNumber(number.cast_signed());
    let header = TcpRepr {
        src_port: five_tuple.cluster.port(),
        dst_port: five_tuple.host.port(),
        control,
        seq_number: number(sequence),
        ack_number: acknowledgement.map(number),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = addresses(five_tuple);
    ip(from, to, IpProtocol::Tcp, header.buffer_len(), |buffer| {
        header.emit(
            &mut TcpPacket::new_unchecked(buffer),
            &from,
            &to,
            &ChecksumCapabilities::default(),
        );
    })
}

fn addresses(five_tuple: &FiveTuple) -> (IpAddress, IpAddress) {
    (five_tuple.cluster.ip().into(), five_tuple.host.ip().into())
}

pub(super) fn ip(
    from: IpAddress,
    to: IpAddress,
    protocol: IpProtocol,
    length: usize,
    emit: impl FnOnce(&mut [u8]),
) -> Option<Vec<u8>> {
    let header = IpRepr::new(from, to, protocol, length, HOP_LIMIT);
    let told = match from {
        IpAddress::Ipv4(_) => header.buffer_len(),
        IpAddress::Ipv6(_) => length,
    };
    if told > MAX_LENGTH {
        return None;
    }
    let mut packet = vec![0; header.buffer_len()];
    header.emit(&mut packet[..], &ChecksumCapabilities::default());
    emit(&mut packet[header.header_len()..]);
    Some(packet)
}
