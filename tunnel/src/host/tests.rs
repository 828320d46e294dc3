use std::time::Duration;

use bytes::Bytes;
use kvpn_proto::flow::Protocol;
use smoltcp::socket::tcp::State;
use tokio::time::timeout;

use super::*;
use crate::netstack::tests::lab::{Lab, POD_V4, POD_V6, address, pattern};
use crate::netstack::tests::packets::{datagram, towards_host};
use crate::netstack::{NetstackConfig, PendingTcp};
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
async fn datagrams_are_carried_and_a_reset_answered_with_icmp() {
    for (pod, icmp_type) in [(address(POD_V4), 3), (address(POD_V6), 1)] {
        let mut lab = Lab::new();
        lab.inject(&datagram(5_000, pod, b"question"));
        let flow = lab.udp();
        assert_eq!(flow.five_tuple().protocol, Protocol::Udp);
        let (near, mut far) = pair();
        let splice = tokio::spawn(splice_udp(flow, near));

        let question = Frame::Data(Bytes::from_static(b"question"));
        assert_eq!(far.receiver.recv().await.unwrap().unwrap(), question);
        let answer = Frame::Data(Bytes::from_static(b"answer"));
        far.sender.send(answer).await.unwrap();
        far.sender.send(Frame::Reset).await.unwrap();
        let outcome = timeout(Duration::from_secs(5), splice).await.unwrap();
        assert!(matches!(outcome.unwrap(), Err(RelayError::Reset)));

        let packets = lab.wire.take();
        assert_eq!(packets.len(), 2);
        assert!(towards_host(&packets[0]).1.ends_with(b"answer"));
        assert_eq!(towards_host(&packets[1]).1[0], icmp_type);
    }
}

#[tokio::test]
async fn answers_arrive_although_the_far_end_takes_no_datagrams() {
    let mut lab = Lab::new();
    lab.inject(&datagram(5_000, address(POD_V4), b"question"));
    let flow = lab.udp();
    let (near, far) = pair();
    let _splice = tokio::spawn(splice_udp(flow, near));
    for _ in 0..32 {
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
        netstack.handle_tun_packet(&packet, Instant::now())
    else {
        panic!("no flow");
    };
    let expired = async {
        while let Some(datagram) = poll_fn(|cx| flow.poll_recv(cx)).await {
            assert_eq!(datagram, Bytes::from_static(b"x"));
        }
    };
    tokio::select! {
        () = timers => panic!("timers ended"),
        expired = timeout(Duration::from_secs(20), expired) => expired.unwrap(),
    }
    assert_eq!(netstack.counters().open_flows, 0);
}
