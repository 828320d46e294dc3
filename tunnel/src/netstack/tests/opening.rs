use std::time::Duration;

use kvpn_proto::flow::DialError;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber};

use super::lab::{HOP_V4, HOP_V6, Lab, POD_V4, POD_V6, address, read, write};
use crate::netstack::NetstackConfig;
use crate::packet::{self, Checksum, Transport};

#[test]
fn syn_is_held_until_the_flow_is_accepted() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let host = lab.connect(pod);

        assert_eq!(lab.socket(host).state(), State::SynSent);
        let pending = lab.pending();
        assert_eq!(pending.five_tuple().cluster, address(pod));

        let flow = pending.accept(lab.now);
        lab.settle();
        assert_eq!(lab.socket(host).state(), State::Established);
        assert_eq!(flow.five_tuple().cluster, address(pod));
    }
}

#[test]
fn repeated_syn_of_a_held_flow_is_not_a_new_flow() {
    let mut lab = Lab::new();
    let host = lab.connect(POD_V4);
    let pending = lab.pending();

    lab.pass(Duration::from_secs(8));

    assert!(lab.new_flows.is_empty());
    assert_eq!(lab.netstack.counters().open_flows, 1);
    let _flow = pending.accept(lab.now);
    lab.settle();
    assert_eq!(lab.socket(host).state(), State::Established);
}

#[test]
fn refused_dial_answers_syn_with_rst() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let host = lab.connect(pod);

        lab.pending().refuse(DialError::Refused, lab.now);
        lab.settle();

        assert_eq!(lab.socket(host).state(), State::Closed);
        assert_eq!(lab.netstack.counters().open_flows, 0);
    }
}

/// Connects, refuses with that error, returns the SYN and the answer.
fn unreachable_answer(pod: &str, error: DialError) -> (Vec<u8>, Vec<u8>) {
    let mut lab = Lab::new();
    let syn = segment_from(40_000, pod, |tcp| tcp.set_syn(true));
    lab.inject(&syn);
    lab.pending().refuse(error, lab.now);
    assert_eq!(lab.netstack.counters().open_flows, 0);
    let mut answers = lab.wire.take();
    assert_eq!(answers.len(), 1, "{error:?}");
    (syn, answers.remove(0))
}

#[test]
fn unreachable_v4_destinations_answer_syn_with_icmp() {
    for (error, code) in [
        (DialError::NetworkUnreachable, 0),
        (DialError::HostUnreachable, 1),
        (DialError::TimedOut, 1),
        (DialError::TunnelLost, 1),
        (DialError::Prohibited, 13),
    ] {
        let (syn, answer) = unreachable_answer(POD_V4, error);
        let ip = Ipv4Packet::new_checked(&answer[..]).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!(ip.src_addr(), HOP_V4);
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!(u8::from(icmp.msg_type()), 3);
        assert_eq!(icmp.msg_code(), code, "{error:?}");
        assert_eq!(icmp.data(), syn);
    }
}

#[test]
fn unreachable_v6_destinations_answer_syn_with_icmp() {
    for (error, code) in [
        (DialError::NetworkUnreachable, 0),
        (DialError::HostUnreachable, 3),
        (DialError::TimedOut, 3),
        (DialError::TunnelLost, 3),
        (DialError::Prohibited, 1),
    ] {
        let (syn, answer) = unreachable_answer(POD_V6, error);
        let ip = Ipv6Packet::new_checked(&answer[..]).unwrap();
        assert_eq!(ip.src_addr(), HOP_V6);
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        assert_eq!(u8::from(icmp.msg_type()), 1);
        assert_eq!(icmp.msg_code(), code, "{error:?}");
        assert_eq!(icmp.payload(), syn);
    }
}

#[test]
fn dropped_pending_flow_leaves_the_syn_unanswered() {
    let mut lab = Lab::new();
    let host = lab.connect(POD_V4);

    drop(lab.pending());
    assert_eq!(lab.netstack.counters().open_flows, 0);
    assert_eq!(lab.socket(host).state(), State::SynSent);

    lab.pass(Duration::from_secs(2));
    let _flow = lab.pending().accept(lab.now);
    lab.settle();
    assert_eq!(lab.socket(host).state(), State::Established);
}

#[test]
fn segment_of_no_flow_is_reset() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        lab.inject(&segment_from(40_000, pod, |tcp| tcp.set_ack(true)));
        assert!(lab.new_flows.is_empty());
        let answers = lab.wire.take();
        assert_eq!(answers.len(), 1);
        let (rst, sequence) = rst_of(&answers[0]);
        assert!(rst);
        assert_eq!(sequence, 2_000, "the acknowledged number");

        lab.inject(&segment_from(40_000, pod, |tcp| tcp.set_rst(true)));
        assert!(lab.wire.take().is_empty(), "no RST answers an RST");
    }
}

#[test]
fn fresh_syn_in_time_wait_opens_a_new_flow() {
    let mut lab = Lab::new();
    let host = lab.connect_from(POD_V4, 45_000);
    let flow = lab.pending().accept(lab.now);
    lab.settle();
    flow.shutdown_write(lab.now);
    lab.settle();
    lab.socket(host).close();
    lab.settle();
    assert_eq!(lab.netstack.counters().open_flows, 1, "TIME-WAIT");
    lab.forget(host);

    let _again = lab.connect_from(POD_V4, 45_000);
    let again = lab.pending().accept(lab.now);
    lab.settle();
    assert_eq!(again.five_tuple(), flow.five_tuple());
    assert_eq!(read(&lab, &flow, &mut [0; 1]).unwrap().unwrap(), 0);
    assert!(read(&lab, &again, &mut [0; 1]).is_none());

    // The old handle no longer speaks for the five-tuple.
    drop(flow);
    lab.settle();
    assert!(write(&lab, &again, b"alive").unwrap().is_ok());
    assert_eq!(lab.netstack.counters().open_flows, 1);
}

#[test]
fn what_the_host_repeats_in_time_wait_is_acknowledged() {
    let mut lab = Lab::new();
    let syn = segment_from(45_000, POD_V4, |tcp| tcp.set_syn(true));
    lab.inject(&syn);
    let flow = lab.pending().accept(lab.now);
    let ours = acknowledged(&lab.wire.take());
    lab.inject(&segment_after_syn(ours, |tcp| tcp.set_ack(true)));
    flow.shutdown_write(lab.now);
    let ours = acknowledged(&lab.wire.take());
    let fin = segment_after_syn(ours, |tcp| {
        tcp.set_ack(true);
        tcp.set_fin(true);
    });
    for _ in 0..2 {
        lab.inject(&fin);
        let answers = lab.wire.take();
        assert_eq!(answers.len(), 1);
        let (_, tcp) = super::packets::towards_host(&answers[0]);
        let tcp = TcpPacket::new_checked(&tcp[..]).unwrap();
        assert!(!tcp.rst() && !tcp.fin());
        assert_eq!(tcp.ack_number(), TcpSeqNumber(1_002));
        assert_eq!(tcp.seq_number().0.cast_unsigned(), ours);
    }

    lab.inject(&syn);
    assert!(lab.new_flows.is_empty(), "a copy of the SYN opens nothing");
    lab.pass(Duration::from_secs(11));
    assert_eq!(lab.netstack.counters().open_flows, 0);
}

/// The host's next segment of the connection from port 45000.
fn segment_after_syn(acknowledged: u32, flags: impl FnOnce(&mut TcpPacket<&mut [u8]>)) -> Vec<u8> {
    let pod = address(POD_V4);
    super::packets::tcp_segment(45_000, pod, 1_001, acknowledged, b"", flags)
}

/// What the host is to acknowledge of the last of these packets.
fn acknowledged(packets: &[Vec<u8>]) -> u32 {
    let (_, tcp) = super::packets::towards_host(packets.last().unwrap());
    let tcp = TcpPacket::new_checked(&tcp[..]).unwrap();
    let sequence = tcp.seq_number().0.cast_unsigned();
    sequence.wrapping_add(tcp.segment_len() as u32)
}

#[test]
fn too_many_flows_are_not_opened() {
    let mut lab = Lab::with(NetstackConfig {
        max_flows: 1,
        ..NetstackConfig::default()
    });
    let _first = lab.connect(POD_V4);
    let first = lab.pending();
    let _second = lab.connect(POD_V4);
    assert!(lab.new_flows.is_empty());

    first.refuse(DialError::Refused, lab.now);
    lab.pass(Duration::from_secs(2));
    let _flow = lab.pending().accept(lab.now);
}

/// A segment of the host: sequence number 1000, acknowledging 2000.
pub(crate) fn segment_from(
    port: u16,
    pod: &str,
    flags: impl FnOnce(&mut TcpPacket<&mut [u8]>),
) -> Vec<u8> {
    super::packets::tcp_segment(port, address(pod), 1_000, 2_000, b"", flags)
}

fn rst_of(packet: &[u8]) -> (bool, u32) {
    let (_, tcp) = super::packets::towards_host(packet);
    let tcp = TcpPacket::new_checked(&tcp[..]).unwrap();
    (tcp.rst(), tcp.seq_number().0.cast_unsigned())
}

#[test]
fn segments_made_for_tests_are_read() {
    let syn = segment_from(40_000, POD_V6, |tcp| tcp.set_syn(true));
    match packet::parse(&syn, Checksum::Complete).unwrap().transport {
        Transport::Tcp(segment) => assert!(segment.opens()),
        Transport::Udp(_) => panic!("not UDP"),
    }
}
