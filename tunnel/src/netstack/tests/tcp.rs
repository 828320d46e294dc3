use std::io::ErrorKind;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use smoltcp::socket::tcp::State;
use smoltcp::wire::TcpPacket;

use super::lab::{Lab, POD_V4, POD_V6, Woken, address, exchange_bytes, pattern, read, write};
use super::packets::{tcp_segment, towards_host};

const HOURS: Duration = Duration::from_hours(5);

#[test]
fn a_megabyte_arrives_unchanged_both_ways() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);

        exchange_bytes(&mut lab, host, &flow, 1 << 20);

        let counters = lab.netstack.counters();
        assert_eq!(counters.bytes_to_cluster, 1 << 20);
        assert_eq!(counters.bytes_from_cluster, 1 << 20);
    }
}

#[test]
fn cluster_may_go_on_after_the_host_has_ended() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);
        let mut buffer = [0; 16];

        lab.socket(host).send_slice(b"bye").unwrap();
        lab.socket(host).close();
        lab.settle();
        assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 3);
        assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 0);

        assert_eq!(write(&lab, &flow, b"answer").unwrap().unwrap(), 6);
        lab.settle();
        assert_eq!(lab.socket(host).recv_slice(&mut buffer).unwrap(), 6);
        assert!(lab.socket(host).may_recv());

        flow.shutdown_write(lab.now);
        drop(flow);
        // The host delays its last acknowledgement.
        lab.pass(Duration::from_secs(1));
        assert_eq!(lab.socket(host).state(), State::TimeWait);
        assert_eq!(lab.netstack.counters().open_flows, 0);
    }
}

#[test]
fn host_may_go_on_after_the_cluster_has_ended() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);
        let mut buffer = [0; 16];

        assert_eq!(write(&lab, &flow, b"bye").unwrap().unwrap(), 3);
        flow.shutdown_write(lab.now);
        lab.settle();
        assert_eq!(lab.socket(host).recv_slice(&mut buffer).unwrap(), 3);
        assert_eq!(lab.socket(host).state(), State::CloseWait);
        let refused = write(&lab, &flow, b"more").unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BrokenPipe);

        lab.socket(host).send_slice(b"answer").unwrap();
        lab.settle();
        assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 6);
        assert!(read(&lab, &flow, &mut buffer).is_none());

        lab.socket(host).close();
        lab.settle();
        assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 0);
        drop(flow);
        assert_eq!(lab.socket(host).state(), State::Closed);

        lab.pass(Duration::from_secs(11));
        assert_eq!(lab.netstack.counters().open_flows, 0);
        assert_eq!(lab.netstack.poll_timeout(), None);
    }
}

#[test]
fn bytes_for_a_slow_reader_outlive_time_wait() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    flow.shutdown_write(lab.now);
    lab.settle();
    lab.socket(host).send_slice(b"slowly").unwrap();
    lab.socket(host).close();
    lab.settle();
    let mut buffer = [0; 4];
    assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 4);

    lab.pass(Duration::from_secs(60));
    assert_eq!(lab.netstack.counters().open_flows, 0);

    assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 2);
    assert_eq!(&buffer[..2], b"ly");
    assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 0);
}

#[test]
fn end_before_the_handshake_follows_it() {
    let mut lab = Lab::new();
    let host = lab.connect(POD_V4);
    let flow = lab.pending().accept(lab.now);
    flow.shutdown_write(lab.now);
    lab.settle();
    assert_eq!(lab.socket(host).state(), State::CloseWait);
}

#[test]
fn writes_wait_for_the_handshake() {
    let mut lab = Lab::new();
    let host = lab.connect(POD_V4);
    let flow = lab.pending().accept(lab.now);
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);

    assert!(flow.poll_write(&mut cx, b"early", lab.now).is_pending());
    lab.settle();

    assert_eq!(woken.count(), 1);
    assert!(matches!(
        flow.poll_write(&mut cx, b"early", lab.now),
        Poll::Ready(Ok(5))
    ));
    lab.settle();
    assert_eq!(lab.socket(host).recv_queue(), 5);
}

#[test]
fn rst_of_the_host_wakes_and_fails_the_reader() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);
        let (woken, waker) = Woken::new();
        let mut cx = Context::from_waker(&waker);
        assert!(flow.poll_read(&mut cx, <[u8]>::len, lab.now).is_pending());

        lab.socket(host).abort();
        lab.settle();

        assert_eq!(woken.count(), 1);
        let error = read(&lab, &flow, &mut [0; 16]).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let error = write(&lab, &flow, b"x").unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(lab.netstack.counters().open_flows, 0);
    }
}

#[test]
fn bytes_before_the_hosts_rst_are_still_read() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    lab.socket(host).send_slice(b"last words").unwrap();
    lab.settle();
    lab.socket(host).abort();
    lab.settle();

    let mut buffer = [0; 16];
    assert_eq!(read(&lab, &flow, &mut buffer).unwrap().unwrap(), 10);
    assert!(read(&lab, &flow, &mut buffer).unwrap().is_err());
}

#[test]
fn reset_of_the_cluster_reaches_the_host() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);

        flow.reset(lab.now);
        lab.settle();

        assert_eq!(lab.socket(host).state(), State::Closed);
        assert_eq!(lab.netstack.counters().open_flows, 0);
        assert!(read(&lab, &flow, &mut [0; 16]).unwrap().is_err());
    }
}

#[test]
fn dropped_flow_is_reset_unless_both_directions_ended() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    flow.shutdown_write(lab.now);
    lab.settle();

    drop(flow);
    lab.settle();

    assert_eq!(lab.socket(host).state(), State::Closed);
    assert_eq!(lab.netstack.counters().open_flows, 0);
}

#[test]
fn what_was_written_before_the_end_arrives_after_the_flow_is_dropped() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    lab.socket(host).close();
    lab.settle();
    assert_eq!(read(&lab, &flow, &mut [0; 1]).unwrap().unwrap(), 0);

    let data = pattern(200 << 10, 9);
    assert_eq!(write(&lab, &flow, &data).unwrap().unwrap(), data.len());
    flow.shutdown_write(lab.now);
    drop(flow);

    let mut got = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while got.len() < data.len() {
        lab.settle();
        let count = lab.socket(host).recv_slice(&mut buffer).unwrap();
        got.extend_from_slice(&buffer[..count]);
        if count == 0 {
            lab.skip();
        }
    }
    assert!(got == data);
    lab.settle();
    assert_eq!(lab.netstack.counters().open_flows, 0);
}

#[test]
fn silent_host_does_not_keep_a_dropped_flow_forever() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    lab.socket(host).close();
    lab.settle();
    assert!(write(&lab, &flow, b"unheard").unwrap().is_ok());
    flow.shutdown_write(lab.now);
    lab.cut();
    drop(flow);

    lab.forget(host);
    lab.pass(Duration::from_secs(50));
    assert_eq!(lab.netstack.counters().open_flows, 1);
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.netstack.counters().open_flows, 0);
}

#[test]
fn accepted_flow_ends_when_the_host_does_not_finish_the_handshake() {
    let mut lab = Lab::new();
    let host = lab.connect(POD_V4);
    let pending = lab.pending();
    lab.cut();
    lab.forget(host);
    let flow = pending.accept(lab.now);
    let (woken, waker) = Woken::new();
    let mut cx = Context::from_waker(&waker);
    assert!(flow.poll_read(&mut cx, <[u8]>::len, lab.now).is_pending());

    lab.pass(Duration::from_secs(50));
    assert_eq!(lab.netstack.counters().open_flows, 1);
    lab.pass(Duration::from_secs(20));
    assert_eq!(lab.netstack.counters().open_flows, 0);
    assert_eq!(woken.count(), 1);
    let error = read(&lab, &flow, &mut [0; 1]).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn silent_connection_stays_open() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);
        lab.pass(HOURS);
        exchange_bytes(&mut lab, host, &flow, 1_000);
    }
}

#[test]
fn only_a_host_that_is_silent_for_long_is_asked() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    lab.pass(HOURS);
    assert_eq!(
        lab.netstack.silent(HOURS, lab.now),
        [flow.five_tuple()],
        "established"
    );
    exchange_bytes(&mut lab, host, &flow, 10);
    assert_eq!(lab.netstack.silent(HOURS, lab.now), []);

    lab.socket(host).close();
    lab.settle();
    lab.pass(HOURS);
    assert_eq!(
        lab.netstack.silent(HOURS, lab.now),
        [],
        "the host has closed"
    );
}

#[test]
fn host_that_knows_the_connection_or_hears_nothing_keeps_it() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);
        exchange_bytes(&mut lab, host, &flow, 1_000);
        lab.pass(HOURS);
        lab.netstack.ask(&flow.five_tuple());
        lab.settle();
        assert_eq!(lab.netstack.silent(HOURS, lab.now), [], "it has answered");
        exchange_bytes(&mut lab, host, &flow, 1_000);

        lab.cut();
        lab.netstack.ask(&flow.five_tuple());
        lab.pass(HOURS);
        lab.mend();
        exchange_bytes(&mut lab, host, &flow, 1_000);
    }
}

#[test]
fn connection_that_the_host_has_forgotten_ends_although_its_rst_was_lost() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);
        exchange_bytes(&mut lab, host, &flow, 1_000);
        lab.forget(host);
        lab.pass(HOURS);
        assert!(read(&lab, &flow, &mut [0; 1]).is_none());

        lab.netstack.ask(&flow.five_tuple());
        lab.settle();
        let error = read(&lab, &flow, &mut [0; 1]).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(lab.netstack.counters().open_flows, 0);
    }
}

/// What a kernel sends to find out whether the other end is alive lies before
/// what it has sent.
#[test]
fn question_acknowledges_all_that_has_come_and_not_only_the_last_segment() {
    const PORT: u16 = 45_000;
    let pod = address(POD_V4);
    let mut lab = Lab::new();
    lab.inject(&tcp_segment(PORT, pod, 1_000, 0, b"", |tcp| {
        tcp.set_syn(true);
    }));
    let flow = lab.pending().accept(lab.now);
    let (_, expected) = numbers(&lab);
    let segment = |sequence, payload| {
        tcp_segment(
            PORT,
            pod,
            sequence,
            expected.wrapping_add(1),
            payload,
            |tcp| {
                tcp.set_ack(true);
            },
        )
    };
    lab.inject(&segment(1_001, b"ten octets"));
    lab.inject(&segment(1_010, b""));
    lab.wire.take();

    lab.netstack.ask(&flow.five_tuple());
    assert_eq!(numbers(&lab), (1_011, expected));
}

/// What the last packet towards the host acknowledges, and its sequence number.
fn numbers(lab: &Lab) -> (u32, u32) {
    let (_, tcp) = towards_host(lab.wire.take().last().unwrap());
    let tcp = TcpPacket::new_checked(&tcp[..]).unwrap();
    (
        tcp.ack_number().0.cast_unsigned(),
        tcp.seq_number().0.cast_unsigned(),
    )
}

#[test]
fn port_of_a_forgotten_connection_can_be_used_again() {
    for pod in [POD_V4, POD_V6] {
        let mut lab = Lab::new();
        let (host, flow) = lab.established(pod);
        exchange_bytes(&mut lab, host, &flow, 1_000);
        lab.forget(host);

        let again = lab.connect_from(pod, flow.five_tuple().host.port());
        let error = read(&lab, &flow, &mut [0; 1]).unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // The host repeats its SYN.
        lab.pass(Duration::from_secs(3));
        let flow = lab.pending().accept(lab.now);
        lab.settle();
        exchange_bytes(&mut lab, again, &flow, 1_000);
    }
}

#[test]
fn host_that_has_not_closed_is_asked_when_the_cluster_has() {
    let mut lab = Lab::new();
    let (host, flow) = lab.established(POD_V4);
    exchange_bytes(&mut lab, host, &flow, 10);
    flow.shutdown_write(lab.now);
    lab.settle();
    lab.forget(host);
    lab.pass(HOURS);
    assert_eq!(lab.netstack.silent(HOURS, lab.now), [flow.five_tuple()]);
    lab.netstack.ask(&flow.five_tuple());
    lab.settle();
    let error = read(&lab, &flow, &mut [0; 1]).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn earlier_timeout_wakes_who_waits_for_it() {
    let mut lab = Lab::new();
    let (_host, flow) = lab.established(POD_V4);
    let (woken, waker) = Woken::new();
    lab.netstack.register_timeout_waker(&waker);
    assert_eq!(woken.count(), 0);

    lab.cut();
    let before = lab.netstack.poll_timeout();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(flow.poll_write(&mut cx, b"x", lab.now).is_ready());

    let after = lab.netstack.poll_timeout().unwrap();
    assert_eq!(
        woken.count(),
        usize::from(before.is_none_or(|at| after < at))
    );
    assert!(before.is_some() || woken.count() == 1);
}
