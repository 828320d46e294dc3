//! Many flows at once through all that lies between two applications: a byte
//! stream, a splice, frames, a forward, frames, a splice, a byte stream. Bytes
//! come in pieces of any size, and any part may be slow, fail or vanish.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::watch;
use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::netstack::tests::lab::{Rng, pattern};
use crate::seeds::seeds;

/// Of the clock on the wall; a flow that ends at all ends in milliseconds.
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn every_flow_ends_as_its_ends_do() {
    for seed in seeds(20) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut rng = Rng::new(seed);
            let flows: Vec<_> = (0..30)
                .map(|_| tokio::spawn(run(Plan::random(&mut rng))))
                .collect();
            for flow in flows {
                let flow = tokio::time::timeout(DEADLINE, flow).await;
                flow.expect("a flow that never ends").unwrap();
            }
        });
    }
}

#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    /// How many bytes each application sends.
    lengths: [usize; 2],
    /// Who ends its direction without waiting for the other.
    ends_first: [bool; 2],
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Orderly,
    /// The first application resets its byte stream.
    Reset,
    /// The process of the first splice dies.
    SpliceVanishes,
    /// The process in the middle dies.
    ForwardVanishes,
}

impl Plan {
    fn random(rng: &mut Rng) -> Self {
        let mut length = || {
            let largest = [0, 10, 5_000, 300_000][rng.below(4) as usize];
            rng.below(largest + 1) as usize
        };
        let lengths = [length(), length()];
        let first = rng.chance(50);
        Self {
            seed: rng.next(),
            lengths,
            ends_first: [first, !first || rng.chance(50)],
            end: match rng.below(8) {
                0 => End::Reset,
                1 => End::SpliceVanishes,
                2 => End::ForwardVanishes,
                _ => End::Orderly,
            },
        }
    }
}

async fn run(plan: Plan) {
    let mut rng = Rng::new(plan.seed);
    let (near, near_far) = slow_pair(&mut rng);
    let (far_near, far) = slow_pair(&mut rng);
    let forward = tokio::spawn(forward(near_far, far_near));
    let (client, near_splice) = end(near, &mut rng);
    let (server, far_splice) = end(far, &mut rng);
    let sent = [0, 1].map(|side| pattern(plan.lengths[side], plan.seed + side as u64));

    if plan.end != End::Orderly {
        let at = rng.below(sent[0].len() as u64 + 1) as usize;
        let server = tokio::spawn(Application::new(server, &mut rng).run(sent[1].clone(), None));
        let mut client = Application::new(client, &mut rng);
        client.write(&sent[0][..at]).await;
        match plan.end {
            End::Reset => client.reset(),
            End::SpliceVanishes => near_splice.abort(),
            End::ForwardVanishes => forward.abort(),
            End::Orderly => unreachable!(),
        }
        let got = server.await.unwrap();
        assert!(sent[0].starts_with(&got), "other bytes: {plan:?}");
        assert!(far_splice.await.unwrap().is_err(), "an end: {plan:?}");
        match near_splice.await {
            Ok(outcome) => assert!(outcome.is_err(), "an end: {plan:?}"),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        match forward.await {
            Ok(outcome) => assert!(outcome.is_err(), "an end: {plan:?}"),
            Err(error) => assert!(error.is_cancelled(), "{error}"),
        }
        return;
    }
    let waits = plan.ends_first.map(|first| (!first).then_some(()));
    let (client, server) = (
        Application::new(client, &mut rng).run(sent[0].clone(), waits[0]),
        Application::new(server, &mut rng).run(sent[1].clone(), waits[1]),
    );
    let got = tokio::join!(client, server);
    assert!(
        got.0 == sent[1] && got.1 == sent[0],
        "other bytes: {plan:?}"
    );
    forward.await.unwrap().unwrap();
    for (splice, side) in [(near_splice, 0), (far_splice, 1)] {
        let moved = splice.await.unwrap().unwrap();
        let expected = (sent[side].len() as u64, sent[1 - side].len() as u64);
        assert_eq!((moved.sent, moved.received), expected, "{plan:?}");
    }
}

/// A splice in the background, and the application's end of its byte stream.
fn end(
    frames: FrameStream,
    rng: &mut Rng,
) -> (Socket, JoinHandle<Result<Transferred, RelayError>>) {
    let (near, far) = tokio::io::duplex(1 + rng.below(100_000) as usize);
    let reset = Arc::new(AtomicBool::new(false));
    let socket = |stream| Socket {
        stream,
        reset: reset.clone(),
    };
    let (near, far) = (socket(near), socket(far));
    (near, tokio::spawn(splice(far, frames)))
}

/// A stream whose two ends may be reset at once.
struct Socket {
    stream: DuplexStream,
    reset: Arc<AtomicBool>,
}

impl Socket {
    fn check(&self) -> io::Result<()> {
        if self.reset.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

struct Application {
    socket: Socket,
    rng: Rng,
}

impl Application {
    fn new(socket: Socket, rng: &mut Rng) -> Self {
        Self {
            socket,
            rng: Rng::new(rng.next()),
        }
    }

    fn reset(self) {
        self.socket.reset.store(true, Ordering::SeqCst);
    }

    async fn write(&mut self, data: &[u8]) {
        write(&mut self.socket, data, &mut self.rng).await;
    }

    /// Sends all, and receives until the end of the stream. One that waits ends
    /// its direction only then.
    async fn run(mut self, data: Vec<u8>, waits: Option<()>) -> Vec<u8> {
        let (mut reader, mut writer) = tokio::io::split(self.socket);
        let (ended, mut has_ended) = watch::channel(false);
        let mut read_rng = Rng::new(self.rng.next());
        let write = async {
            write(&mut writer, &data, &mut self.rng).await;
            if waits.is_some() {
                let _ = has_ended.wait_for(|ended| *ended).await;
            }
            let _ = writer.shutdown().await;
        };
        let read = async {
            let mut got = Vec::new();
            loop {
                let mut buffer = vec![0; 1 + read_rng.below(20_000) as usize];
                match reader.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => got.extend_from_slice(&buffer[..length]),
                }
                pause(&mut read_rng).await;
            }
            ended.send_replace(true);
            got
        };
        tokio::join!(write, read).1
    }
}

/// Writes in pieces; gives up when nobody takes them any more.
async fn write(writer: &mut (impl AsyncWrite + Unpin), data: &[u8], rng: &mut Rng) {
    let mut left = data;
    while !left.is_empty() {
        let length = left.len().min(1 + rng.below(20_000) as usize);
        let (piece, rest) = left.split_at(length);
        if writer.write_all(piece).await.is_err() {
            return;
        }
        left = rest;
        pause(rng).await;
    }
}

/// Lets others go on.
async fn pause(rng: &mut Rng) {
    for _ in 0..rng.below(4) {
        yield_now().await;
    }
}

/// Two ends of one flow, whose frames take their time.
fn slow_pair(rng: &mut Rng) -> (FrameStream, FrameStream) {
    let (near, to_far) = outgoing();
    let (far, to_near) = outgoing();
    let near = FrameStream {
        sender: near,
        receiver: incoming(slow(arriving(to_near), Rng::new(rng.next()))),
    };
    let far = FrameStream {
        sender: far,
        receiver: incoming(slow(arriving(to_far), Rng::new(rng.next()))),
    };
    (near, far)
}

fn slow<S: Stream>(frames: S, rng: Rng) -> impl Stream<Item = S::Item> {
    let frames = Box::pin(frames);
    futures::stream::unfold((frames, rng), |(mut frames, mut rng)| async {
        pause(&mut rng).await;
        let frame = frames.next().await?;
        Some((frame, (frames, rng)))
    })
}
