use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kvpn_proto::flow::{DialError, DialFailure, Frame, Protocol};
use smoltcp::socket::tcp::State;
use tokio::time::timeout;

use super::*;
use crate::netstack::tests::lab::{Lab, POD_V4, POD_V6, address, pattern};
use crate::netstack::tests::packets::{datagram, ping, towards_host};
use crate::netstack::{NetstackConfig, PendingTcp};
use crate::packet::Checksum;
use crate::relay::tests::pair;

/// Lets packets and tasks run until the condition holds.
async fn until(lab: &mut Lab, mut condition: impl FnMut(&mut Lab) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition(lab) {
        assert!(Instant::now() < deadline, "nothing happened");
        lab.now = Instant::now();
        lab.settle();
        tokio::task::yield_now().await;
    }
}

fn accept(lab: &Lab, pending: PendingTcp) -> TcpFlow {
    pending.accept(lab.now)
}

#[tokio::test]
async fn spliced_flow_carries_bytes_and_ends() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let host = lab.connect(pod);
        let pending = lab.pending();
        let (near, mut far) = pair();
        let splice = tokio::spawn(splice_tcp(accept(&lab, pending), near));
        let echo = tokio::spawn(async move {
            while let Some(frame) = far.receiver.recv().await {
                far.sender.send(frame.unwrap()).await.unwrap();
            }
        });
        until(&mut lab, |lab| {
            lab.socket(host).state() == State::Established
        })
        .await;

        let sent = pattern(1 << 20, 1);
        let mut at = 0;
        let mut got = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        until(&mut lab, |lab| {
            at += lab.socket(host).send_slice(&sent[at..]).unwrap();
            let count = lab.socket(host).recv_slice(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            got.len() == sent.len()
        })
        .await;
        assert!(got == sent);

        lab.socket(host).close();
        until(&mut lab, |lab| !lab.socket(host).may_recv()).await;
        let moved = splice.await.unwrap().unwrap();
        assert_eq!((moved.sent, moved.received), (1 << 20, 1 << 20));
        echo.await.unwrap();
    }
}

#[tokio::test]
async fn reset_of_the_far_end_resets_the_host() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    let (near, far) = pair();
    let splice = tokio::spawn(splice_tcp(flow, near));
    far.sender.send(Frame::Reset).await.unwrap();
    until(&mut lab, |lab| lab.socket(host).state() == State::Closed).await;
    assert!(matches!(splice.await.unwrap(), Err(RelayError::Reset)));
}

#[tokio::test]
async fn reset_of_the_host_resets_the_far_end() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    let (near, mut far) = pair();
    let splice = tokio::spawn(splice_tcp(flow, near));
    lab.socket(host).abort();
    until(&mut lab, |_| splice.is_finished()).await;
    assert_eq!(far.receiver.recv().await.unwrap().unwrap(), Frame::Reset);
}

#[tokio::test]
async fn datagrams_are_carried_and_errors_answered_with_icmp() {
    for (pod, icmp) in [
        (address(POD_V4), [[3, 1], [3, 4], [3, 3]]),
        (address(POD_V6), [[1, 3], [2, 0], [1, 4]]),
    ] {
        let mut lab = Lab::new();
        lab.inject(&datagram(5_000, pod, b"question"));
        let flow = lab.udp();
        assert_eq!(flow.five_tuple().protocol, Protocol::Udp);
        let (near, mut far) = pair();
        let opened = Arc::new(AtomicBool::new(false));
        let note = opened.clone();
        let splice = tokio::spawn(async move {
            splice_udp(&flow, near, || note.store(true, Ordering::Relaxed)).await
        });

        let question = Frame::Whole(Bytes::from_static(b"question"));
        assert_eq!(far.receiver.recv().await.unwrap().unwrap(), question);
        assert!(!opened.load(Ordering::Relaxed));
        for frame in [
            Frame::Opened,
            failed(DialError::HostUnreachable),
            Frame::Data(Bytes::from_static(b"answer")),
            failed(DialError::TooBig(1_450)),
            Frame::Reset,
        ] {
            far.sender.send(frame).await.unwrap();
        }
        let outcome = timeout(Duration::from_secs(5), splice).await.unwrap();
        assert!(matches!(outcome.unwrap(), Err(RelayError::Reset)));

        assert!(opened.load(Ordering::Relaxed));
        let packets = lab.wire.take();
        assert_eq!(packets.len(), 4);
        assert_eq!(towards_host(&packets[0]).1[..2], icmp[0]);
        assert!(towards_host(&packets[1]).1.ends_with(b"answer"));
        let too_big = towards_host(&packets[2]).1;
        assert_eq!(too_big[..2], icmp[1]);
        assert_eq!(too_big[4..8], 1_450_u32.to_be_bytes());
        assert_eq!(towards_host(&packets[3]).1[..2], icmp[2]);
    }
}

fn failed(error: DialError) -> Frame {
    Frame::Failed(DialFailure::new(error, "failed"))
}

#[tokio::test]
async fn failed_dial_of_a_datagram_is_answered_with_icmp() {
    let mut lab = Lab::new();
    lab.inject(&datagram(5_000, address(POD_V4), b"question"));
    let flow = lab.udp();
    let (near, far) = pair();
    far.sender
        .send(failed(DialError::Prohibited))
        .await
        .unwrap();
    let outcome = splice_udp(&flow, near, || panic!("not opened")).await;
    assert!(matches!(outcome, Err(RelayError::Failed(_))));
    assert_eq!(towards_host(&lab.wire.take()[0]).1[..2], [3, 13]);
}

#[tokio::test]
async fn pings_are_answered_by_the_far_end_only() {
    for pod in [POD_V4, POD_V6].map(|pod| address(pod).ip()) {
        let mut lab = Lab::new();
        lab.inject(&ping(pod, 7, 1, b"payload"));
        let flow = lab.echo();
        let (near, mut far) = pair();
        let splice = tokio::spawn(async move { splice_echo(&flow, near).await });
        let request = Frame::Whole(Bytes::from_static(b"\0\x01payload"));
        assert_eq!(far.receiver.recv().await.unwrap().unwrap(), request);
        assert!(lab.wire.take().is_empty());

        let reply = Frame::Data(Bytes::from_static(b"\0\x01payload"));
        for frame in [Frame::Opened, reply, Frame::Fin] {
            far.sender.send(frame).await.unwrap();
        }
        far.finish().await;
        splice.await.unwrap().unwrap();
        let replies = lab.wire.take();
        assert_eq!(replies.len(), 1);
        let (from, icmp) = towards_host(&replies[0]);
        assert_eq!(from, pod);
        assert_eq!(icmp[4..], *b"\0\x07\0\x01payload");
        assert_eq!(lab.netstack.counters().open_flows, 0);
    }
}

#[tokio::test]
async fn ping_that_the_far_end_may_not_send_stays_unanswered() {
    let mut lab = Lab::new();
    for (error, answers) in [(DialError::Prohibited, 0), (DialError::HostUnreachable, 1)] {
        lab.inject(&ping(address(POD_V4).ip(), 7, 1, b"payload"));
        let flow = lab.echo();
        let (near, far) = pair();
        far.sender.send(failed(error)).await.unwrap();
        assert!(splice_echo(&flow, near).await.is_err());
        assert_eq!(lab.wire.take().len(), answers);
    }
}

#[tokio::test]
async fn answers_arrive_although_the_far_end_takes_no_datagrams() {
    let mut lab = Lab::new();
    lab.inject(&datagram(5_000, address(POD_V4), b"question"));
    let flow = lab.udp();
    let (near, far) = pair();
    let _splice = tokio::spawn(async move { splice_udp(&flow, near, || ()).await });
    far.sender.send(Frame::Opened).await.unwrap();
    for _ in 0..1_000 {
        lab.inject(&datagram(5_000, address(POD_V4), b"question"));
        tokio::task::yield_now().await;
    }

    let answer = Frame::Data(Bytes::from_static(b"answer"));
    far.sender.send(answer).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    let answers = loop {
        let packets = lab.wire.take();
        if !packets.is_empty() {
            break packets;
        }
        assert!(Instant::now() < deadline, "the answer does not arrive");
        tokio::task::yield_now().await;
    };
    assert!(towards_host(&answers[0]).1.ends_with(b"answer"));
}

#[tokio::test]
async fn timers_run_although_they_were_set_later() {
    let lab = Lab::with(NetstackConfig {
        udp_idle: Duration::from_millis(50),
        ..NetstackConfig::default()
    });
    let netstack = &lab.netstack;
    let packet = datagram(5_000, address(POD_V4), b"x");
    // Runs first, and finds no timer.
    let timers = run_timers(netstack);
    tokio::pin!(timers);
    assert!(futures::poll!(&mut timers).is_pending());

    let Some(crate::netstack::NewFlow::Udp(flow)) =
        netstack.handle_tun_packet(&packet, Checksum::Complete, Instant::now())
    else {
        panic!("no flow");
    };
    let expired = async {
        while let Some(datagram) = poll_fn(|cx| flow.poll_recv(cx)).await {
            assert_eq!(datagram.payload, Bytes::from_static(b"x"));
        }
    };
    tokio::select! {
        () = timers => panic!("timers ended"),
        expired = timeout(Duration::from_secs(20), expired) => expired.unwrap(),
    }
    assert_eq!(netstack.counters().open_flows, 0);
}
