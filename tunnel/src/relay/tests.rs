mod simulation;

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

/// Two ends of one flow, without gRPC between them.
pub(crate) fn pair() -> (FrameStream, FrameStream) {
    let (near, to_far) = outgoing();
    let (far, to_near) = outgoing();
    (
        FrameStream {
            sender: near,
            receiver: incoming(arriving(to_near)),
        },
        FrameStream {
            sender: far,
            receiver: incoming(arriving(to_far)),
        },
    )
}

/// Frames as they come out of a wire that loses none.
fn arriving(mut frames: Outgoing) -> impl Stream<Item = Result<Frame, StreamLost>> + Send {
    futures::stream::poll_fn(move |cx| frames.poll_recv(cx).map(|frame| frame.map(Ok)))
}

/// A stream that fails after some frames.
fn lost_after(frames: Vec<Frame>) -> impl Stream<Item = Result<Frame, StreamLost>> {
    let frames: Vec<_> = frames
        .into_iter()
        .map(Ok)
        .chain([Err(StreamLost::new("gone"))])
        .collect();
    futures::stream::iter(frames)
}

/// A splice in the background, and the application's end of its byte stream.
fn spliced(frames: FrameStream) -> (DuplexStream, JoinHandle<Result<Transferred, RelayError>>) {
    let (app, io) = tokio::io::duplex(64 << 10);
    (app, tokio::spawn(splice(io, frames)))
}

pub(crate) async fn next(frames: &mut FrameStream) -> Frame {
    frames.receiver.recv().await.unwrap().unwrap()
}

pub(crate) fn data(text: &'static str) -> Frame {
    Frame::Data(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn directions_end_one_by_one() {
    let (near, mut far) = pair();
    let (mut app, splice) = spliced(near);

    app.write_all(b"question").await.unwrap();
    app.shutdown().await.unwrap();
    assert_eq!(next(&mut far).await, data("question"));
    assert_eq!(next(&mut far).await, Frame::Fin);

    far.sender.send(data("answer")).await.unwrap();
    let mut answer = [0; 6];
    app.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    assert!(!splice.is_finished());

    far.sender.send(Frame::Fin).await.unwrap();
    assert_eq!(app.read(&mut answer).await.unwrap(), 0);
    far.finish().await;
    let moved = splice.await.unwrap().unwrap();
    assert_eq!((moved.sent, moved.received), (8, 6));
}

#[tokio::test]
async fn far_end_may_end_first() {
    let (near, mut far) = pair();
    let (mut app, splice) = spliced(near);

    far.sender.send(Frame::Fin).await.unwrap();
    assert_eq!(app.read(&mut [0; 8]).await.unwrap(), 0);
    app.write_all(b"still here").await.unwrap();
    assert_eq!(next(&mut far).await, data("still here"));
    drop(app);
    assert_eq!(next(&mut far).await, Frame::Fin);
    far.finish().await;
    splice.await.unwrap().unwrap();
}

#[tokio::test]
async fn large_transfers_arrive_whole_in_frames_that_fit() {
    let (near, mut far) = pair();
    let (mut app, splice) = spliced(near);
    let sent: Vec<u8> = (0..4 << 20).map(|at: u32| (at % 251) as u8).collect();
    let to_send = sent.clone();
    let writer = tokio::spawn(async move {
        app.write_all(&to_send).await.unwrap();
        app.shutdown().await.unwrap();
        app
    });

    let mut got = Vec::new();
    loop {
        let frame = next(&mut far).await;
        let Frame::Data(data) = frame else {
            assert_eq!(frame, Frame::Fin);
            break;
        };
        assert!(data.len() <= MAX_DATA);
        got.extend_from_slice(&data);
    }
    assert!(got == sent);
    far.sender.send(Frame::Fin).await.unwrap();
    far.finish().await;
    splice.await.unwrap().unwrap();
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn reader_that_is_slow_stops_the_sender() {
    let (near, far) = pair();
    let (mut app, _splice) = spliced(near);
    let chunk = vec![0; 64 << 10];
    let mut taken = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(200), app.write(&chunk)).await
    {
        taken += written.unwrap();
        assert!(taken < 8 << 20, "nothing holds the sender back");
    }
    drop(far);
}

#[tokio::test]
async fn reset_frame_and_lost_streams_are_errors() {
    let (near, far) = pair();
    let (_app, splice) = spliced(near);
    far.sender.send(Frame::Reset).await.unwrap();
    assert!(matches!(splice.await.unwrap(), Err(RelayError::Reset)));

    let (near, far) = pair();
    let (_app, splice) = spliced(near);
    drop(far);
    assert!(matches!(splice.await.unwrap(), Err(RelayError::Lost(_))));

    let (sender, _to_far) = outgoing();
    let (mut app, splice) = spliced(FrameStream {
        sender,
        receiver: incoming(lost_after(vec![data("half")])),
    });
    let mut got = [0; 4];
    app.read_exact(&mut got).await.unwrap();
    assert!(matches!(splice.await.unwrap(), Err(RelayError::Lost(_))));
}

#[tokio::test]
async fn lost_stream_is_noticed_while_the_application_does_not_read() {
    let (near, far) = pair();
    let (_app, splice) = spliced(near);
    let FrameStream { sender, receiver } = far;
    let chunk = Bytes::from(vec![0; 256 << 10]);
    while tokio::time::timeout(
        Duration::from_millis(100),
        sender.send(Frame::Data(chunk.clone())),
    )
    .await
    .is_ok()
    {}

    drop(receiver);
    let outcome = tokio::time::timeout(Duration::from_secs(5), splice).await;
    assert!(matches!(
        outcome.unwrap().unwrap(),
        Err(RelayError::Lost(_))
    ));
}

#[tokio::test]
async fn frames_out_of_place_are_refused() {
    for frame in [
        Frame::Open(OpenTarget::Dial("d".into())),
        Frame::Opened,
        Frame::Failed(DialFailure::new(DialError::Refused, "late")),
    ] {
        let (near, mut far) = pair();
        let (_app, splice) = spliced(near);
        far.sender.send(frame).await.unwrap();
        let error = splice.await.unwrap().unwrap_err();
        assert!(matches!(error, RelayError::Unexpected(_)), "{error}");
        assert_eq!(next(&mut far).await, Frame::Reset);
    }
}

/// Two ends of a TCP connection over loopback.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dialled = dial_tcp(address, Duration::from_secs(5)).await.unwrap();
    assert!(dialled.nodelay().unwrap());
    (dialled, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn rst_of_a_socket_becomes_reset() {
    let (app, socket) = sockets().await;
    let (near, mut far) = pair();
    let splice = tokio::spawn(splice_tcp(socket, near));

    app.set_zero_linger().unwrap();
    drop(app);

    assert_eq!(next(&mut far).await, Frame::Reset);
    assert!(matches!(splice.await.unwrap(), Err(RelayError::Local(_))));
}

#[tokio::test]
async fn reset_becomes_the_rst_of_a_socket() {
    let (mut app, socket) = sockets().await;
    let (near, far) = pair();
    let splice = tokio::spawn(splice_tcp(socket, near));

    far.sender.send(Frame::Reset).await.unwrap();

    let error = app.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(splice.await.unwrap().is_err());
}

#[tokio::test]
async fn cancelled_splice_does_not_look_like_an_end() {
    let (mut app, socket) = sockets().await;
    let (near, far) = pair();
    let splice = tokio::spawn(splice_tcp(socket, near));
    far.sender.send(data("half of")).await.unwrap();
    app.read_exact(&mut [0; 7]).await.unwrap();

    splice.abort();

    let error = app.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn splice_that_has_ended_closes_its_socket_in_order() {
    let (mut app, socket) = sockets().await;
    let (near, far) = pair();
    let splice = tokio::spawn(splice_tcp(socket, near));
    far.sender.send(data("whole")).await.unwrap();
    far.sender.send(Frame::Fin).await.unwrap();
    app.shutdown().await.unwrap();
    far.finish().await;
    splice.await.unwrap().unwrap();

    let mut got = Vec::new();
    app.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"whole");
}

#[tokio::test]
async fn refused_dial_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let failure = dial_tcp(address, Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(failure.error, DialError::Refused);
    assert!(failure.detail.contains(&address.to_string()), "{failure}");
}

#[tokio::test]
async fn forwarded_frames_arrive_unchanged_until_both_ends_are_done() {
    let (mut agent, near) = pair();
    let (far, mut session) = pair();
    let forward = tokio::spawn(forward(near, far));

    let open = Frame::Open(OpenTarget::Dial("d".into()));
    for frame in [open, data("up"), Frame::Fin] {
        agent.sender.send(frame.clone()).await.unwrap();
        assert_eq!(next(&mut session).await, frame);
    }
    for frame in [Frame::Opened, data("down")] {
        session.sender.send(frame.clone()).await.unwrap();
        assert_eq!(next(&mut agent).await, frame);
    }
    assert!(!forward.is_finished());
    session.sender.send(Frame::Fin).await.unwrap();
    assert_eq!(next(&mut agent).await, Frame::Fin);
    tokio::join!(agent.finish(), session.finish());
    forward.await.unwrap().unwrap();
}

#[tokio::test]
async fn failed_dial_ends_a_forward() {
    let (mut agent, near) = pair();
    let (far, session) = pair();
    let forward = tokio::spawn(forward(near, far));
    let failed = Frame::Failed(DialFailure::new(DialError::Refused, "no"));
    session.sender.send(failed.clone()).await.unwrap();
    assert_eq!(next(&mut agent).await, failed);
    tokio::join!(agent.finish(), session.finish());
    forward.await.unwrap().unwrap();
}

#[tokio::test]
async fn forward_goes_on_after_a_datagram_that_was_refused() {
    let (mut agent, near) = pair();
    let (far, mut session) = pair();
    let forward = tokio::spawn(forward(near, far));
    let refused = Frame::Failed(DialFailure::new(DialError::Refused, "no"));
    let whole = Frame::Whole(Bytes::from_static(b"whole"));
    for frame in [Frame::Opened, refused.clone(), whole, refused] {
        session.sender.send(frame.clone()).await.unwrap();
        assert_eq!(next(&mut agent).await, frame);
    }
    for end in [&agent, &session] {
        end.sender.send(Frame::Fin).await.unwrap();
    }
    assert_eq!(next(&mut agent).await, Frame::Fin);
    assert_eq!(next(&mut session).await, Frame::Fin);
    tokio::join!(agent.finish(), session.finish());
    forward.await.unwrap().unwrap();
}

#[tokio::test]
async fn reset_and_loss_are_forwarded_as_reset() {
    let (mut agent, near) = pair();
    let (far, session) = pair();
    let task = tokio::spawn(forward(near, far));
    session.sender.send(Frame::Reset).await.unwrap();
    assert_eq!(next(&mut agent).await, Frame::Reset);
    assert!(matches!(task.await.unwrap(), Err(RelayError::Reset)));

    let (mut agent, near) = pair();
    let (far, session) = pair();
    let task = tokio::spawn(forward(near, far));
    drop(session);
    assert_eq!(next(&mut agent).await, Frame::Reset);
    assert!(matches!(task.await.unwrap(), Err(RelayError::Lost(_))));
}
