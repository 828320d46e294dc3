use std::net::{IpAddr, SocketAddr};

use kvpn_proto::flow::DialError;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::relay::tests::{data, next, pair};
use crate::relay::{can_ping, dial_echo, dial_udp};

const MINUTE: Duration = Duration::from_secs(60);

type Splice = JoinHandle<Result<Transferred, RelayError>>;

/// A flow to a socket that is an application's.
async fn flow(app: &str) -> (UdpSocket, SocketAddr, FrameStream, Splice) {
    let app = UdpSocket::bind(app).await.unwrap();
    let socket = dial_udp(app.local_addr().unwrap()).unwrap();
    let local = socket.local_addr().unwrap();
    let (near, far) = pair();
    let splice = tokio::spawn(splice_datagrams(socket, near, MINUTE));
    (app, local, far, splice)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.unwrap()
}

#[tokio::test]
async fn datagrams_keep_their_bounds() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (app, _, mut far, splice) = flow(address).await;
        for text in ["one", "", "three"] {
            far.sender.send(data(text)).await.unwrap();
            let mut buffer = [0; 16];
            let (length, from) = app.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], text.as_bytes());
            app.send_to(text.as_bytes(), from).await.unwrap();
            assert_eq!(next(&mut far).await, data(text));
        }
        far.sender.send(Frame::Fin).await.unwrap();
        far.finish().await;
        let moved = splice.await.unwrap().unwrap();
        assert_eq!((moved.sent, moved.received), (8, 8));
    }
}

#[tokio::test]
async fn the_largest_datagrams_travel_both_ways() {
    for (address, largest) in [("127.0.0.1:0", 65_507), ("[::1]:0", 65_527)] {
        let (app, _, mut far, _splice) = flow(address).await;
        let payload = Bytes::from(vec![7; largest]);
        far.sender.send(Frame::Data(payload.clone())).await.unwrap();
        let mut buffer = vec![0; 70_000];
        let (length, from) = soon(app.recv_from(&mut buffer)).await.unwrap();
        assert!(buffer[..length] == payload);
        app.send_to(&payload, from).await.unwrap();
        assert!(soon(next(&mut far)).await == Frame::Data(payload));
    }
}

#[tokio::test]
async fn datagrams_arrive_although_the_far_end_takes_none() {
    let (app, local, far, _splice) = flow("127.0.0.1:0").await;
    for _ in 0..1_000 {
        app.send_to(b"unheard", local).await.unwrap();
        tokio::task::yield_now().await;
    }
    far.sender.send(data("heard")).await.unwrap();
    let mut buffer = [0; 16];
    let length = soon(app.recv(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..length], b"heard");
}

#[test]
fn the_oldest_of_too_many_datagrams_are_dropped() {
    let mut queue = Queue::default();
    for number in 0..1_000_u16 {
        let number = Bytes::copy_from_slice(&number.to_be_bytes());
        queue.push(Frame::Data(number));
    }
    assert_eq!(queue.frames.len(), MAX_QUEUED);
    let oldest = Bytes::copy_from_slice(&744_u16.to_be_bytes());
    assert_eq!(queue.frames.front(), Some(&Frame::Data(oldest)));
    for _ in 0..100 {
        queue.push(Frame::Data(Bytes::from(vec![0; 60_000])));
    }
    assert!(queue.bytes <= MAX_QUEUED_BYTES);
    while !queue.frames.is_empty() {
        queue.pop();
    }
    assert_eq!(queue.bytes, 0);
}

#[tokio::test]
async fn silent_flow_ends() {
    let app = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let socket = dial_udp(app.local_addr().unwrap()).unwrap();
    let (near, mut far) = pair();
    let idle = Duration::from_millis(50);
    let splice = tokio::spawn(splice_datagrams(socket, near, idle));
    assert_eq!(next(&mut far).await, Frame::Fin);
    far.finish().await;
    splice.await.unwrap().unwrap();
}

#[tokio::test]
async fn refused_datagrams_are_told_and_the_flow_goes_on() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (app, _, mut far, splice) = flow(address).await;
        let target = app.local_addr().unwrap();
        drop(app);
        for _ in 0..3 {
            far.sender.send(data("anyone?")).await.unwrap();
            let Frame::Failed(failure) = soon(next(&mut far)).await else {
                panic!("no failure");
            };
            assert_eq!(failure.error, DialError::Refused);
            assert!(failure.detail.contains(&target.to_string()), "{failure}");
        }

        let app = UdpSocket::bind(target).await.unwrap();
        far.sender.send(data("now?")).await.unwrap();
        let mut buffer = [0; 16];
        let length = soon(app.recv(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..length], b"now?");
        assert!(!splice.is_finished());
    }
}

#[tokio::test]
async fn datagram_behind_an_error_is_sent_all_the_same() {
    let (app, _, far, _splice) = flow("127.0.0.1:0").await;
    let target = app.local_addr().unwrap();
    drop(app);
    // The answer to the first may wait in the socket when the second is sent.
    far.sender.send(data("lost")).await.unwrap();
    tokio::task::yield_now().await;
    let app = UdpSocket::bind(target).await.unwrap();
    far.sender.send(data("arrives")).await.unwrap();
    let mut buffer = [0; 16];
    loop {
        let length = soon(app.recv(&mut buffer)).await.unwrap();
        if &buffer[..length] == b"arrives" {
            break;
        }
    }
}

#[tokio::test]
async fn datagram_that_must_stay_whole_and_does_not_fit_is_told_with_the_mtu() {
    // Loopback's packets may have 65,536 octets, so only these do not fit.
    let (_app, _, mut far, _splice) = flow("[::1]:0").await;
    let payload = Bytes::from(vec![0; 65_527]);
    far.sender.send(Frame::Whole(payload)).await.unwrap();
    let Frame::Failed(failure) = soon(next(&mut far)).await else {
        panic!("no failure");
    };
    assert_eq!(failure.error, DialError::TooBig(65_536));
}

#[tokio::test]
async fn loss_of_the_tunnel_ends_the_flow() {
    let (_app, _, far, splice) = flow("127.0.0.1:0").await;
    drop(far);
    let outcome = soon(splice).await.unwrap();
    assert!(matches!(outcome, Err(RelayError::Lost(_))), "{outcome:?}");
}

#[tokio::test]
async fn frames_out_of_place_are_refused() {
    for frame in [
        Frame::Opened,
        Frame::Failed(DialFailure::new(DialError::Refused, "late")),
    ] {
        let (_app, _, mut far, splice) = flow("127.0.0.1:0").await;
        far.sender.send(frame).await.unwrap();
        let outcome = soon(splice).await.unwrap();
        assert!(matches!(outcome, Err(RelayError::Unexpected(_))));
        assert_eq!(next(&mut far).await, Frame::Reset);
    }
}

#[tokio::test]
async fn pings_are_answered_by_their_target_where_the_kernel_allows_them() {
    for address in ["127.0.0.1", "::1"] {
        let address: IpAddr = address.parse().unwrap();
        let socket = match dial_echo(address) {
            Ok(socket) => socket,
            Err(failure) => {
                assert!(!can_ping());
                assert_eq!(failure.error, DialError::Prohibited);
                continue;
            }
        };
        let (near, mut far) = pair();
        let _splice = tokio::spawn(splice_datagrams(socket, near, MINUTE));
        for request in ["\0\u{1}payload", "\u{1}\0", "\u{7}\u{7}other payload"] {
            far.sender.send(data(request)).await.unwrap();
            assert_eq!(soon(next(&mut far)).await, data(request));
        }
    }
}
