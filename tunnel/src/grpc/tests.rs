//! Flows over real tunnel connections: tonic on both ends of a wire in memory.

use std::sync::Arc;
use std::time::Duration;

use crate::relay::{self, FrameStream, RelayError};
use bytes::Bytes;
use http::Extensions;
use hyper_util::rt::TokioIo;
use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::Status;

use super::{TunnelClient, TunnelHandler, TunnelServer, client_endpoint, server};

const DEADLINE: Duration = Duration::from_secs(20);

/// A callee that hands every flow to the test.
#[derive(Clone)]
struct Hub {
    flows: mpsc::UnboundedSender<FrameStream>,
}

impl TunnelHandler for Hub {
    fn carry(&self, _: &Extensions, frames: FrameStream) -> Result<(), Status> {
        self.flows
            .send(frames)
            .map_err(|_| Status::unavailable("the test is over"))
    }
}

/// One tunnel connection.
struct Tunnel {
    client: TunnelClient,
    flows: mpsc::UnboundedReceiver<FrameStream>,
    /// Carries the bytes of the connection until it is aborted.
    wire: JoinHandle<()>,
    /// Nothing arrives while it is locked.
    pause: Arc<Mutex<()>>,
}

impl Tunnel {
    async fn new() -> Self {
        let (near, near_wire) = tokio::io::duplex(256 << 10);
        let (far, far_wire) = tokio::io::duplex(256 << 10);
        let (from_near, to_near) = tokio::io::split(near_wire);
        let (from_far, to_far) = tokio::io::split(far_wire);
        let pause = Arc::new(Mutex::new(()));
        let (up, down) = (pause.clone(), pause.clone());
        let wire = tokio::spawn(async move {
            tokio::join!(carry(from_near, to_far, up), carry(from_far, to_near, down));
        });
        let (flows_tx, flows) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let connections = futures::stream::iter([Ok::<_, std::io::Error>(far)]);
            server()
                .add_service(TunnelServer::new(Hub { flows: flows_tx }))
                .serve_with_incoming(connections)
                .await
                .unwrap();
        });
        let mut near = Some(near);
        let channel = client_endpoint("traffic-manager")
            .connect_with_connector(tower::service_fn(move |_| {
                let stream = near.take().map(TokioIo::new);
                async move { stream.ok_or(std::io::Error::other("one connection only")) }
            }))
            .await
            .unwrap();
        Self {
            client: TunnelClient::new(channel),
            flows,
            wire,
            pause,
        }
    }

    /// Opens a flow; the caller's end and the callee's.
    async fn open(&mut self) -> (FrameStream, FrameStream) {
        let open = OpenTarget::Dial("d".into());
        let mut near = self.client.carry(Frame::Open(open.clone()));
        let (opened, far) = tokio::join!(next(&mut near), self.accept(open));
        assert_eq!(opened, Frame::Opened);
        (near, far)
    }

    /// The callee's end of a flow.
    async fn accept(&mut self, open: OpenTarget) -> FrameStream {
        let mut far = timeout(DEADLINE, self.flows.recv()).await.unwrap().unwrap();
        assert_eq!(next(&mut far).await, Frame::Open(open));
        far.sender.send(Frame::Opened).await.unwrap();
        far
    }

    /// A flow that is spliced on both ends; the outer ends of its byte streams.
    async fn spliced(&mut self) -> (End, End) {
        let (near, far) = self.open().await;
        (End::new(near), End::new(far))
    }
}

struct End {
    io: DuplexStream,
    splice: JoinHandle<Result<relay::Transferred, RelayError>>,
}

impl End {
    fn new(frames: FrameStream) -> Self {
        let (io, inner) = tokio::io::duplex(64 << 10);
        let splice = tokio::spawn(relay::splice(inner, frames));
        Self { io, splice }
    }

    async fn outcome(self) -> Result<relay::Transferred, RelayError> {
        timeout(DEADLINE, self.splice).await.unwrap().unwrap()
    }
}

async fn next(frames: &mut FrameStream) -> Frame {
    let frame = timeout(DEADLINE, frames.receiver.recv()).await.unwrap();
    frame.unwrap().unwrap()
}

async fn read_to_end(io: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut got = Vec::new();
    timeout(DEADLINE, io.read_to_end(&mut got))
        .await
        .unwrap()
        .unwrap();
    got
}

#[tokio::test]
async fn a_flow_may_end_before_it_is_answered() {
    let mut tunnel = Tunnel::new().await;
    let open = Frame::Open(OpenTarget::Dial("d".into()));
    let mut near = tunnel.client.carry(open.clone());
    let (ended, far) = tokio::join!(timeout(DEADLINE, near.receiver.recv()), async {
        tunnel.flows.recv().await.map(drop)
    });
    assert!(far.is_some());
    assert!(!matches!(ended.unwrap(), Some(Ok(_))));

    let mut near = tunnel.client.carry(open);
    let far = tokio::select! {
        answer = near.receiver.recv() => panic!("nobody has answered {answer:?}"),
        far = tunnel.flows.recv() => far.unwrap(),
    };
    drop(near);
    timeout(DEADLINE, far.sender.closed()).await.unwrap();
}

#[tokio::test]
async fn directions_end_one_by_one_whichever_side_ends_first() {
    let mut tunnel = Tunnel::new().await;
    for caller_first in [true, false] {
        let (caller, callee) = tunnel.spliced().await;
        let (mut first, mut second) = if caller_first {
            (caller, callee)
        } else {
            (callee, caller)
        };
        first.io.write_all(b"question").await.unwrap();
        first.io.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut second.io).await, b"question");

        let answer = vec![7; 3 << 20];
        let to_send = answer.clone();
        let writer = tokio::spawn(async move {
            second.io.write_all(&to_send).await.unwrap();
            second.io.shutdown().await.unwrap();
            second
        });
        assert!(read_to_end(&mut first.io).await == answer);
        let second = writer.await.unwrap();
        assert_eq!(first.outcome().await.unwrap().received, 3 << 20);
        assert_eq!(second.outcome().await.unwrap().sent, 3 << 20);
    }
}

#[tokio::test]
async fn failed_dial_is_heard_whoever_says_it() {
    let mut tunnel = Tunnel::new().await;
    for callee_fails in [true, false] {
        let (near, far) = tunnel.open().await;
        let (failing, mut hearing) = if callee_fails {
            (far, near)
        } else {
            (near, far)
        };
        let failure = DialFailure::new(DialError::Prohibited, "not here");
        let failed = Frame::Failed(failure);
        failing.sender.send(failed.clone()).await.unwrap();
        let failing = tokio::spawn(failing.finish());
        assert_eq!(next(&mut hearing).await, failed);
        hearing.finish().await;
        timeout(DEADLINE, failing).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn last_bytes_arrive_although_both_ends_are_done_at_once() {
    let mut tunnel = Tunnel::new().await;
    for _ in 0..50 {
        let (mut caller, mut callee) = tunnel.spliced().await;
        for end in [&mut caller, &mut callee] {
            end.io.write_all(&[1; 10_000]).await.unwrap();
            end.io.shutdown().await.unwrap();
        }
        assert_eq!(read_to_end(&mut caller.io).await.len(), 10_000);
        assert_eq!(read_to_end(&mut callee.io).await.len(), 10_000);
        caller.outcome().await.unwrap();
        callee.outcome().await.unwrap();
    }
}

#[tokio::test]
async fn reset_on_one_side_is_an_error_on_the_other() {
    let mut tunnel = Tunnel::new().await;
    for caller_resets in [true, false] {
        let (near, far) = tunnel.open().await;
        let (resetting, end) = if caller_resets {
            (near, End::new(far))
        } else {
            (far, End::new(near))
        };
        resetting.sender.reset();
        drop(resetting.receiver);
        assert!(end.outcome().await.is_err());
    }
}

#[tokio::test]
async fn end_of_the_connection_is_an_error_on_both_sides() {
    let mut tunnel = Tunnel::new().await;
    let (caller, callee) = tunnel.spliced().await;
    tunnel.wire.abort();
    assert!(matches!(caller.outcome().await, Err(RelayError::Lost(_))));
    assert!(matches!(callee.outcome().await, Err(RelayError::Lost(_))));
}

#[tokio::test]
async fn flow_that_nobody_reads_does_not_stop_another() {
    let mut tunnel = Tunnel::new().await;
    let mut stuck = Vec::new();
    for _ in 0..16 {
        let (caller, callee) = tunnel.open().await;
        let frame = Frame::Data(Bytes::from(vec![0; 256 << 10]));
        let limit = Duration::from_millis(100);
        while timeout(limit, caller.sender.send(frame.clone()))
            .await
            .is_ok()
        {}
        stuck.push((caller, callee));
    }

    let (mut caller, mut callee) = tunnel.spliced().await;
    caller.io.write_all(b"through").await.unwrap();
    let mut got = [0; 7];
    let read = callee.io.read_exact(&mut got);
    timeout(DEADLINE, read).await.unwrap().unwrap();
    assert_eq!(&got, b"through");
}

#[tokio::test]
async fn flows_given_up_before_the_server_hears_of_them_do_not_end_the_connection() {
    let mut tunnel = Tunnel::new().await;
    let (_near, _far) = tunnel.open().await;

    let pause = tunnel.pause.clone().lock_owned().await;
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let open = Frame::Open(OpenTarget::Dial("before".into()));
            let mut frames = tunnel.client.carry(open);
            tokio::spawn(async move { frames.receiver.recv().await.map(drop) })
        })
        .collect();
    settle().await;
    for call in &calls {
        call.abort();
    }
    settle().await;
    drop(pause);

    tunnel.open_among_others().await;
}

/// Lets every task of the test come to rest.
async fn settle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

impl Tunnel {
    /// Opens a flow while others may arrive.
    async fn open_among_others(&mut self) -> (FrameStream, FrameStream) {
        let open = Frame::Open(OpenTarget::Dial("after".into()));
        let mut near = self.client.carry(open.clone());
        let accepting = async {
            loop {
                let mut far = timeout(DEADLINE, self.flows.recv()).await.unwrap().unwrap();
                if far.receiver.recv().await == Some(Ok(open.clone())) {
                    far.sender.send(Frame::Opened).await.unwrap();
                    return far;
                }
            }
        };
        let (opened, far) = tokio::join!(next(&mut near), accepting);
        assert_eq!(opened, Frame::Opened);
        (near, far)
    }
}

/// One direction of the wire.
async fn carry(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    pause: Arc<Mutex<()>>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let _going = pause.lock().await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
