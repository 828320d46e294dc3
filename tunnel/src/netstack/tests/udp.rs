use std::net::IpAddr;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use kvpn_proto::flow::DialError;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, Ipv4Packet, UdpPacket};

use super::lab::{HOP_V4, HOP_V6, Lab, POD_V4, POD_V6, Woken, address, pattern};
use super::packets::{datagram, host_of, towards_host};
use crate::netstack::UdpFlow;
use crate::packet::{self, Reassembler};

fn recv(flow: &UdpFlow) -> Poll<Option<Bytes>> {
    let datagram = flow.poll_recv(&mut Context::from_waker(Waker::noop()));
    datagram.map(|datagram| datagram.map(|datagram| datagram.payload))
}

#[test]
fn datagrams_travel_both_ways_from_the_address_that_was_asked() {
    for pod in [POD_V4, POD_V6].map(address) {
        let mut lab = Lab::new();
        lab.inject(&datagram(5_000, pod, b"question"));
        let flow = lab.udp();
        assert_eq!(flow.five_tuple().cluster, pod);
        assert_eq!(
            recv(&flow),
            Poll::Ready(Some(Bytes::from_static(b"question")))
        );

        lab.inject(&datagram(5_000, pod, b""));
        assert!(lab.new_flows.is_empty());
        assert_eq!(recv(&flow), Poll::Ready(Some(Bytes::new())));
        assert_eq!(recv(&flow), Poll::Pending);

        flow.send(b"answer", lab.now);
        let answers = lab.wire.take();
        assert_eq!(answers.len(), 1);
        let (source, udp) = towards_host(&answers[0]);
        assert_eq!(source, pod.ip());
        let udp = UdpPacket::new_checked(&udp[..]).unwrap();
        assert!(udp.checksum() != 0);
        assert!(udp.verify_checksum(&source.into(), &host_of(pod).into()));
        assert_eq!((udp.src_port(), udp.dst_port()), (pod.port(), 5_000));
        assert_eq!(udp.payload(), b"answer");
    }
}

#[test]
fn the_largest_datagrams_fit() {
    for (pod, largest) in [(address(POD_V4), 65_507), (address(POD_V6), 65_487)] {
        let mut lab = Lab::new();
        let payload = pattern(largest, 1);
        lab.inject(&datagram(5_000, pod, &payload));
        let flow = lab.udp();
        assert_eq!(recv(&flow), Poll::Ready(Some(Bytes::from(payload.clone()))));

        flow.send(&payload, lab.now);
        let answers = lab.wire.take();
        assert_eq!(answers[0].len(), 65_535);
        let (_, udp) = towards_host(&answers[0]);
        assert!(UdpPacket::new_checked(&udp[..]).unwrap().payload() == payload);

        flow.send(&pattern(100_000, 1), lab.now);
        assert!(lab.wire.take().is_empty());
    }
}

#[test]
fn v6_datagrams_that_are_longer_than_the_mtu_travel_in_fragments() {
    let pod = address(POD_V6);
    let mut lab = Lab::new();
    let payload = pattern(65_527, 1);
    let packet = datagram(5_000, pod, &payload);
    for fragment in packet::fragments(&packet, 65_535, 7).iter().rev() {
        lab.inject(fragment);
    }
    let flow = lab.udp();
    assert_eq!(recv(&flow), Poll::Ready(Some(Bytes::from(payload.clone()))));

    flow.send(&payload, lab.now);
    let fragments = lab.wire.take();
    assert_eq!(fragments.len(), 2);
    assert!(fragments.iter().all(|fragment| fragment.len() <= 65_535));
    let mut reassembler = Reassembler::default();
    assert!(reassembler.push(&fragments[0], lab.now).is_none());
    let answer = reassembler.push(&fragments[1], lab.now).unwrap();
    let (_, udp) = towards_host(&answer);
    assert!(UdpPacket::new_checked(&udp[..]).unwrap().payload() == payload);
}

#[test]
fn only_what_a_wire_carries_whole_must_not_be_fragmented() {
    let whole = |flow: &UdpFlow| {
        let datagram = flow.poll_recv(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Some(datagram)) = datagram else {
            panic!("no datagram");
        };
        datagram.whole
    };
    for (pod, fits) in [(address(POD_V4), 1_472), (address(POD_V6), 1_452)] {
        let mut lab = Lab::new();
        lab.inject(&datagram(5_000, pod, &pattern(fits, 1)));
        let flow = lab.udp();
        assert!(whole(&flow));
        lab.inject(&datagram(5_000, pod, &pattern(fits + 1, 1)));
        assert!(!whole(&flow));

        let cut = datagram(5_000, pod, &pattern(1_000, 1));
        for fragment in packet::fragments(&cut, 600, 7) {
            lab.inject(&fragment);
        }
        assert!(!whole(&flow), "the host has cut it");
    }

    let pod = address(POD_V4);
    let mut lab = Lab::new();
    let mut may_be_cut = datagram(5_000, pod, b"x");
    let mut ip = Ipv4Packet::new_unchecked(&mut may_be_cut);
    ip.set_dont_frag(false);
    ip.fill_checksum();
    lab.inject(&may_be_cut);
    assert!(!whole(&lab.udp()));
}

#[test]
fn silent_flow_expires_and_its_holder_hears_of_it() {
    let dns = format!("{}:53", address(POD_V4).ip());
    for (pod, idle) in [(POD_V4, 60), (POD_V6, 60), (&dns, 10)] {
        let pod = address(pod);
        let mut lab = Lab::new();
        lab.inject(&datagram(5_000, pod, b"1"));
        let flow = lab.udp();
        assert!(recv(&flow).is_ready());
        let (woken, waker) = Woken::new();
        let mut cx = Context::from_waker(&waker);
        assert!(flow.poll_recv(&mut cx).is_pending());

        lab.pass(Duration::from_secs(idle - 1));
        flow.send(b"still here", lab.now);
        lab.pass(Duration::from_secs(idle - 1));
        assert_eq!(woken.count(), 0);
        assert_eq!(lab.netstack.counters().open_flows, 1);

        lab.pass(Duration::from_secs(2));
        assert_eq!(woken.count(), 1);
        assert_eq!(recv(&flow), Poll::Ready(None));
        assert_eq!(lab.netstack.counters().open_flows, 0);
        assert_eq!(lab.netstack.poll_timeout(), None);

        lab.inject(&datagram(5_000, pod, b"2"));
        assert_eq!(
            recv(&lab.udp()),
            Poll::Ready(Some(Bytes::from_static(b"2")))
        );
    }
}

#[test]
fn datagram_after_the_flow_was_dropped_opens_another() {
    let pod = address(POD_V4);
    let mut lab = Lab::new();
    lab.inject(&datagram(5_000, pod, b"1"));
    drop(lab.udp());
    assert_eq!(lab.netstack.counters().open_flows, 0);
    lab.inject(&datagram(5_000, pod, b"2"));
    assert_eq!(
        recv(&lab.udp()),
        Poll::Ready(Some(Bytes::from_static(b"2")))
    );
}

#[test]
fn the_oldest_of_too_many_datagrams_are_dropped() {
    let pod = address(POD_V4);
    let mut lab = Lab::new();
    for number in 0..1_000_u16 {
        lab.inject(&datagram(5_000, pod, &number.to_be_bytes()));
    }
    let flow = lab.udp();
    let mut got = Vec::new();
    while let Poll::Ready(Some(payload)) = recv(&flow) {
        got.push(u16::from_be_bytes([payload[0], payload[1]]));
    }
    assert_eq!(got, (744..1_000).collect::<Vec<_>>());
}

#[test]
fn failed_datagram_is_answered_with_icmp() {
    for (error, v4, v6) in [
        (DialError::Refused, 3, 4),
        (DialError::HostUnreachable, 1, 3),
        (DialError::NetworkUnreachable, 0, 0),
        (DialError::Prohibited, 13, 1),
        (DialError::TunnelLost, 1, 3),
    ] {
        for pod in [POD_V4, POD_V6].map(address) {
            let mut lab = Lab::new();
            let question = datagram(5_000, pod, b"question");
            lab.inject(&question);
            lab.udp().unreachable(error, lab.now);

            let answers = lab.wire.take();
            let (source, icmp) = towards_host(&answers[0]);
            let hop = match pod.ip() {
                IpAddr::V4(_) => IpAddr::from(HOP_V4),
                IpAddr::V6(_) => HOP_V6.into(),
            };
            let is_target = error == DialError::Refused;
            assert_eq!(source, if is_target { pod.ip() } else { hop });
            if pod.is_ipv4() {
                let icmp = Icmpv4Packet::new_checked(&icmp[..]).unwrap();
                assert!(icmp.verify_checksum());
                assert_eq!((u8::from(icmp.msg_type()), icmp.msg_code()), (3, v4));
                assert_eq!(icmp.data(), question);
            } else {
                let icmp = Icmpv6Packet::new_checked(&icmp[..]).unwrap();
                assert_eq!((u8::from(icmp.msg_type()), icmp.msg_code()), (1, v6));
                assert_eq!(icmp.payload(), question);
            }
        }
    }
}
