use std::net::IpAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use kvpn_proto::flow::DialError;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet};

use super::lab::{HOP_V4, HOP_V6, HOST_V6, Lab, POD_V4, POD_V6, Woken, address, pattern};
use super::opening::segment_from;
use super::packets::{datagram, ping, towards_host};
use crate::netstack::{Datagram, EchoFlow};
use crate::packet;

fn pods() -> [IpAddr; 2] {
    [POD_V4, POD_V6].map(|pod| address(pod).ip())
}

fn recv(flow: &EchoFlow) -> Poll<Datagram> {
    flow.poll_recv(&mut Context::from_waker(Waker::noop()))
}

fn request(data: &'static [u8]) -> Poll<Datagram> {
    Poll::Ready(Datagram {
        payload: Bytes::from_static(data),
        whole: true,
    })
}

/// Type, code, and what follows the header.
fn icmp(packet: &[u8]) -> (IpAddr, [u8; 2], Vec<u8>) {
    let (from, message) = towards_host(packet);
    match from {
        IpAddr::V4(_) => assert!(Icmpv4Packet::new_unchecked(&message).verify_checksum()),
        IpAddr::V6(from) => {
            let host = HOST_V6.parse().unwrap();
            assert!(Icmpv6Packet::new_unchecked(&message).verify_checksum(&from, &host));
        }
    }
    (from, [message[0], message[1]], message[8..].to_vec())
}

fn with_hop_limit(mut packet: Vec<u8>, hop_limit: u8) -> Vec<u8> {
    if packet[0] >> 4 == 4 {
        let mut ip = Ipv4Packet::new_unchecked(&mut packet);
        ip.set_hop_limit(hop_limit);
        ip.fill_checksum();
    } else {
        Ipv6Packet::new_unchecked(&mut packet).set_hop_limit(hop_limit);
    }
    packet
}

#[test]
fn requests_of_one_identifier_are_one_flow() {
    for pod in pods() {
        let mut lab = Lab::new();
        lab.inject(&ping(pod, 7, 1, b"a"));
        let flow = lab.echo();
        assert_eq!((flow.id().cluster, flow.id().identifier), (pod, 7));
        assert_eq!(recv(&flow), request(b"\0\x01a"));
        let (woken, waker) = Woken::new();
        assert!(
            flow.poll_recv(&mut Context::from_waker(&waker))
                .is_pending()
        );

        lab.inject(&ping(pod, 7, 2, b""));
        assert!(lab.new_flows.is_empty());
        assert_eq!(woken.count(), 1);
        assert_eq!(recv(&flow), request(b"\0\x02"));
        lab.inject(&ping(pod, 8, 1, b""));
        assert_eq!(lab.echo().id().identifier, 8);

        assert_eq!(lab.netstack.counters().open_flows, 1);
        drop(flow);
        assert_eq!(lab.netstack.counters().open_flows, 0);
        assert!(lab.wire.take().is_empty(), "nobody answers but the target");
    }
}

#[test]
fn old_handle_does_not_end_a_later_ping() {
    let mut lab = Lab::new();
    let [pod, _] = pods();
    lab.inject(&ping(pod, 7, 1, b""));
    drop(lab.echo());
    lab.inject(&ping(pod, 7, 2, b""));
    let flow = lab.echo();
    assert_eq!(recv(&flow), request(b"\0\x02"));
    assert_eq!(lab.netstack.counters().open_flows, 1);
}

#[test]
fn the_oldest_of_too_many_requests_are_dropped() {
    let mut lab = Lab::new();
    let [pod, _] = pods();
    for sequence in 0..100 {
        lab.inject(&ping(pod, 7, sequence, b""));
    }
    let flow = lab.echo();
    assert_eq!(recv(&flow), request(&[0, 68]));
}

#[test]
fn replies_come_from_the_target() {
    for pod in pods() {
        let mut lab = Lab::new();
        lab.inject(&ping(pod, 7, 1, b"payload"));
        let flow = lab.echo();
        flow.reply(b"\0\x01payload");
        let replies = lab.wire.take();
        let (from, kind, payload) = icmp(&replies[0]);
        assert_eq!(from, pod);
        assert_eq!(kind, if pod.is_ipv4() { [0, 0] } else { [129, 0] });
        assert_eq!(payload, b"payload");
        assert_eq!(towards_host(&replies[0]).1[4..8], [0, 7, 0, 1]);
    }
}

#[test]
fn request_in_fragments_is_one_request() {
    for pod in pods() {
        let mut lab = Lab::new();
        let packet = ping(pod, 7, 1, &pattern(20_000, 1));
        for fragment in packet::fragments(&packet, 1_500, 7) {
            lab.inject(&fragment);
        }
        let Poll::Ready(request) = recv(&lab.echo()) else {
            panic!("no request");
        };
        assert!(request.payload[2..] == pattern(20_000, 1));
        assert!(!request.whole);
    }
}

#[test]
fn broken_requests_and_replies_open_nothing() {
    for pod in pods() {
        let mut lab = Lab::new();
        let whole = ping(pod, 7, 1, b"payload");
        let mut broken = whole.clone();
        *broken.last_mut().unwrap() ^= 1;
        lab.inject(&broken);
        for length in 0..whole.len() {
            lab.inject(&whole[..length]);
        }
        lab.inject(&ping("224.0.0.1".parse().unwrap(), 7, 1, b""));
        assert!(lab.new_flows.is_empty());
        assert!(lab.wire.take().is_empty());
    }
}

#[test]
fn unreachable_target_of_a_ping_is_told() {
    let hops: [IpAddr; 2] = [HOP_V4.into(), HOP_V6.into()];
    for (pod, (hop, kind)) in pods()
        .into_iter()
        .zip(hops.into_iter().zip([[3, 1], [1, 3]]))
    {
        let mut lab = Lab::new();
        let packet = ping(pod, 7, 1, b"payload");
        lab.inject(&packet);
        lab.echo().unreachable(DialError::HostUnreachable, lab.now);
        assert_eq!(icmp(&lab.wire.take()[0]), (hop, kind, packet));
    }
}

#[test]
fn packets_for_one_hop_are_answered_by_the_tunnel() {
    for (pod, hop) in [(POD_V4, IpAddr::from(HOP_V4)), (POD_V6, HOP_V6.into())] {
        for packet in [
            datagram(5_000, address(pod), b"x"),
            ping(address(pod).ip(), 7, 1, b"x"),
            segment_from(40_000, pod, |tcp| tcp.set_syn(true)),
        ] {
            let mut lab = Lab::new();
            let packet = with_hop_limit(packet, 1);
            lab.inject(&packet);
            assert!(lab.new_flows.is_empty());
            let kind = if hop.is_ipv4() { [11, 0] } else { [3, 0] };
            assert_eq!(icmp(&lab.wire.take()[0]), (hop, kind, packet.clone()));

            lab.inject(&with_hop_limit(packet, 2));
            assert_eq!(lab.new_flows.len(), 1);
            assert!(lab.wire.take().is_empty());
        }
    }
}

#[test]
fn multicast_for_one_hop_is_not_answered() {
    let mut lab = Lab::new();
    for group in ["224.0.0.251:5353", "[ff02::fb]:5353"] {
        lab.inject(&with_hop_limit(datagram(5_353, address(group), b"x"), 1));
    }
    assert!(lab.wire.take().is_empty());
}

#[test]
fn errors_are_limited() {
    let mut lab = Lab::new();
    let packet = with_hop_limit(datagram(5_000, address(POD_V4), b"x"), 1);
    let answered = |lab: &mut Lab| {
        for _ in 0..1_000 {
            lab.inject(&packet);
        }
        lab.wire.take().len()
    };
    assert_eq!(answered(&mut lab), 100);
    lab.now += Duration::from_micros(20_500);
    assert_eq!(answered(&mut lab), 20);
    lab.now += Duration::from_micros(500);
    assert_eq!(answered(&mut lab), 1);
    lab.now += Duration::from_secs(3_600);
    assert_eq!(answered(&mut lab), 100);
}
