//! FINs that smoltcp alone would lose, or take too early.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use smoltcp::wire::TcpPacket;

use super::lab::{Lab, POD_V4, address, pattern, read};
use super::packets::tcp_segment;
use crate::netstack::{NetstackConfig, TcpFlow};

const PORT: u16 = 40_000;

/// What the host sends first.
const FIRST: u32 = u32::MAX - 2_000;

/// A connection with a host of handmade packets, and what it expects next.
fn established(lab: &mut Lab) -> (TcpFlow, u32) {
    let pod = address(POD_V4);
    let syn = tcp_segment(PORT, pod, FIRST, 0, b"", |tcp| tcp.set_syn(true));
    lab.inject(&syn);
    let flow = lab.pending().accept(lab.now);
    let answer = lab.wire.take().remove(0);
    let number = TcpPacket::new_unchecked(&answer[20..]).seq_number();
    let expected = number.0.cast_unsigned().wrapping_add(1);
    lab.inject(&segment(0, expected, b"", false));
    (flow, expected)
}

/// A segment that begins after so many bytes of the host.
fn segment(at: u32, acknowledgement: u32, payload: &[u8], fin: bool) -> Vec<u8> {
    let sequence = FIRST.wrapping_add(1 + at);
    tcp_segment(
        PORT,
        address(POD_V4),
        sequence,
        acknowledgement,
        payload,
        |tcp| {
            tcp.set_ack(true);
            tcp.set_fin(fin);
        },
    )
}

#[test]
fn lost_fin_is_repeated_although_the_host_repeats_its_acknowledgement() {
    let mut lab = Lab::new();
    let (flow, expected) = established(&mut lab);
    let fins = Arc::new(Mutex::new(0));
    let counted = fins.clone();
    let lose = move |packets: Vec<Vec<u8>>| {
        let is_fin = |packet: &&Vec<u8>| TcpPacket::new_unchecked(&packet[20..]).fin();
        *counted.lock().unwrap() += packets.iter().filter(is_fin).count();
        Vec::new()
    };
    lab.meddle(Box::new(lose), Box::new(|_| Vec::new()));

    flow.shutdown_write(lab.now);
    lab.settle();
    for _ in 0..5 {
        lab.inject(&segment(0, expected, b"", false));
    }
    lab.pass(Duration::from_secs(10));
    assert!(*fins.lock().unwrap() > 1, "sent once");

    lab.inject(&segment(0, expected.wrapping_add(1), b"", true));
    assert_eq!(read(&lab, &flow, &mut [0; 1]).unwrap().unwrap(), 0);
    drop(flow);
    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.netstack.counters().open_flows, 0);
}

#[test]
fn fin_beyond_the_window_does_not_cut_the_bytes_before_it() {
    let mut lab = Lab::with(NetstackConfig {
        tcp_buffer: 4_096,
        seed: 7,
        ..NetstackConfig::default()
    });
    let (flow, expected) = established(&mut lab);
    let sent = pattern(5_000, 3);
    let mut buffer = vec![0; 8_192];

    lab.inject(&segment(0, expected, &sent, true));
    assert!(read(&lab, &flow, &mut buffer).is_none());

    lab.inject(&segment(0, expected, &sent[..4_096], false));
    let mut got = Vec::new();
    while let Some(count) = read(&lab, &flow, &mut buffer) {
        got.extend_from_slice(&buffer[..count.unwrap()]);
    }
    lab.inject(&segment(4_096, expected, &sent[4_096..], true));
    loop {
        match read(&lab, &flow, &mut buffer).unwrap().unwrap() {
            0 => break,
            count => got.extend_from_slice(&buffer[..count]),
        }
    }
    assert!(got == sent);
}
