//! A packet that comes by itself.

use kvpn_proto::flow::DialError;
use kvpn_tunnel::packet::{
    Checksum, IcmpError, Transport, echo_reply, icmp_error, parse, parse_echo, reset, udp,
};

/// Reads a packet, and makes every answer to it, each of which must be readable
/// again.
pub fn packet(bytes: &[u8]) {
    if let Ok(request) = parse_echo(bytes) {
        let reply = echo_reply(&request.id, request.data).expect("a reply");
        assert!(reply.len() <= request.bytes.len());
    }
    // What passes with its checksum passes without, and says the same.
    let partial = parse(bytes, Checksum::Partial);
    if let Ok(complete) = parse(bytes, Checksum::Complete) {
        assert_eq!(partial, Ok(complete));
    }
    let Ok(packet) = partial else { return };
    assert!(packet.bytes.len() <= bytes.len());
    let tuple = packet.five_tuple;
    assert_eq!(tuple.host.is_ipv4(), tuple.cluster.is_ipv4());
    if let Transport::Tcp(segment) = packet.transport
        && let Some(answer) = reset(&tuple, &segment)
    {
        let answer = parse(&answer, Checksum::Complete).expect("a readable reset");
        assert_eq!(answer.five_tuple.host, tuple.cluster);
        assert_eq!(answer.five_tuple.cluster, tuple.host);
        assert!(matches!(answer.transport, Transport::Tcp(segment) if segment.rst));
    }
    if let Transport::Udp(payload) = packet.transport
        && let Some(answer) = udp(&tuple, payload)
    {
        let answer = parse(&answer, Checksum::Complete).expect("a readable datagram");
        assert_eq!(answer.five_tuple.host, tuple.cluster);
        assert_eq!(answer.transport, Transport::Udp(payload));
    }
    for error in [DialError::Refused, DialError::TooBig(1_300)] {
        let why = IcmpError::from_dial_error(error);
        let (from, to) = (tuple.cluster.ip(), tuple.host.ip());
        let answer = icmp_error(from, to, why, packet.bytes).expect("an answer");
        let longest = if from.is_ipv4() { 576 } else { 1_280 };
        assert!(answer.len() <= longest, "{} bytes", answer.len());
    }
}
