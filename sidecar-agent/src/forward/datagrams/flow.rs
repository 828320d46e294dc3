//! The datagrams of one client to one port, and the answers to them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use kvpn_proto::flow::{DialError, Frame};
use kvpn_tunnel::relay::FrameStream;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::copies::Copies;
use super::course::{Course, Step};
use super::sockets::{self, Ends};
use super::{BATCH, Claimed, Datagram, Key, with_scratch};
use crate::forward::{NotServed, Shared, open};

/// After which silence a flow is over. Shorter than the session's limit: only where
/// datagrams come in can a flow end without losing one.
const IDLE: Duration = Duration::from_secs(60);

/// For how long answers are awaited after the claim has gone.
const FAREWELL: Duration = Duration::from_secs(3);

/// One flow.
pub(super) struct Flow {
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    key: Key,
    number: u64,
    claimed: Option<Arc<Claimed>>,
    course: Course<Datagram>,
    way: Way,
    /// Speaks to the app once that has got something.
    app: Option<UdpSocket>,
    copies: Vec<Copies>,
    /// The holder did not take something, which is counted once.
    has_failed: bool,
}

/// The way to the holder of the claim.
enum Way {
    None,
    Opening(Pin<Box<dyn Future<Output = Result<FrameStream, NotServed>> + Send>>),
    Open(FrameStream),
}

/// What is heard of the holder.
enum Told {
    Opened(FrameStream),
    Answer(Bytes),
    Refused(DialError),
    Lost(NotServed),
}

/// There was no room for a datagram.
struct Lost;

impl Way {
    /// Waits for ever while there is none.
    async fn next(&mut self) -> Told {
        let frames = match self {
            Self::None => std::future::pending().await,
            Self::Opening(opening) => {
                return match opening.await {
                    Ok(frames) => Told::Opened(frames),
                    Err(why) => Told::Lost(why),
                };
            }
            Self::Open(frames) => frames,
        };
        let ended = |detail: &str| Told::Lost(NotServed::Lost(detail.to_owned()));
        match frames.receiver.recv().await {
            Some(Ok(Frame::Data(payload) | Frame::Whole(payload))) => Told::Answer(payload),
            Some(Ok(Frame::Failed(failure))) => Told::Refused(failure.error),
            Some(Ok(Frame::Fin | Frame::Reset)) | None => ended("the stream has ended"),
            Some(Ok(Frame::Open(_) | Frame::Opened)) => ended("an unexpected frame"),
            Some(Err(lost)) => ended(&lost.to_string()),
        }
    }

    /// Sends a datagram. What there is no room for is lost.
    fn send(&self, payload: Bytes) -> Result<(), Lost> {
        match self {
            Self::Open(frames) => {
                let sent = frames.sender.send(Frame::Data(payload)).now_or_never();
                sent.and_then(Result::ok).ok_or(Lost)
            }
            Self::None | Self::Opening(_) => Ok(()),
        }
    }
}

impl Flow {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: Arc<UdpSocket>,
        key: Key,
        number: u64,
        claimed: Option<Arc<Claimed>>,
    ) -> Self {
        let claims = claimed.as_ref().map(|it| &it.claims);
        let holder = claims.and_then(|it| it.holder.as_deref());
        let copied = claims.into_iter().flat_map(|it| &it.copies);
        let copied = copied.map(String::as_str);
        for claim_id in holder.into_iter().chain(copied.clone()) {
            shared.reports.count_unlogged(claim_id);
        }
        let fails_closed = claims.is_some_and(|it| it.fails_closed);
        Self {
            course: Course::new(holder.is_some(), fails_closed, Instant::now()),
            copies: copied.map(Copies::new).collect(),
            way: Way::None,
            app: None,
            has_failed: false,
            shared,
            socket,
            key,
            number,
            claimed,
        }
    }

    /// Serves the client until there was silence for long enough. Once no datagrams are
    /// given any more, answers to those before still come for a while.
    pub(super) async fn run(mut self, mut datagrams: mpsc::Receiver<Datagram>) {
        let mut latest = Instant::now();
        let mut left = None;
        loop {
            let over = left.map_or(latest + IDLE, |at| at + FAREWELL);
            let wake = self.course.deadline().map_or(over, |at| at.min(over));
            tokio::select! {
                datagram = datagrams.recv(), if left.is_none() => match datagram {
                    Some(datagram) => {
                        latest = Instant::now();
                        self.handle_datagram(datagram).await;
                    }
                    None => {
                        left = Some(Instant::now());
                        self.copies.clear();
                        if matches!(self.way, Way::Open(_)) {
                            self.course.handle_left();
                        }
                    }
                },
                told = self.way.next() => {
                    latest = Instant::now();
                    self.handle_told(told).await;
                }
                ready = readable(self.app.as_ref()) => {
                    latest = Instant::now();
                    self.handle_app(ready).await;
                }
                () = sleep_until(wake) => {
                    let now = Instant::now();
                    if now >= over && self.ends(&datagrams) {
                        break;
                    }
                    if let Some(held) = self.course.handle_timeout(now) {
                        self.way = Way::None;
                        self.fall_back(&NotServed::NoAnswer, held).await;
                    }
                }
            }
        }
        if let Way::Open(frames) = self.way {
            drop(frames.sender.send(Frame::Fin).now_or_never());
            frames.finish().await;
        }
    }

    /// Whether it is over, with nothing more to come.
    fn ends(&self, datagrams: &mpsc::Receiver<Datagram>) -> bool {
        let table = &self.shared.datagrams;
        table.end(&self.key, self.number, || datagrams.is_empty())
    }

    async fn handle_datagram(&mut self, datagram: Datagram) {
        if let Some(claimed) = &self.claimed {
            for copies in &mut self.copies {
                let ends = &self.key.ends;
                copies.send(&datagram.payload, ends, &claimed.tunnel, &self.shared);
            }
        }
        let payload = datagram.payload.clone();
        match self.course.handle_datagram(datagram, Instant::now()) {
            Step::Ask => self.ask(),
            Step::Wait | Step::Lost => {}
            Step::ToHolder => self.send(payload),
            Step::ToApp(datagram) => self.give_app(&datagram).await,
        }
    }

    /// Sends the holder a datagram, which has a place until the tunnel has taken it.
    fn send(&mut self, payload: Bytes) {
        let client = self.key.ends.client.ip();
        let kept = self.shared.datagrams.sent.keep(client, payload);
        let sent = kept.ok_or(Lost).and_then(|payload| self.way.send(payload));
        if sent.is_err() {
            debug!(%client, port = self.key.port, "A datagram is lost: the tunnel is slow");
            self.count_failure();
        }
    }

    /// Counts that the holder did not take something, once.
    fn count_failure(&mut self) {
        if !std::mem::replace(&mut self.has_failed, true)
            && let Some(claimed) = &self.claimed
            && let Some(claim_id) = &claimed.claims.holder
        {
            self.shared.reports.count_failure(claim_id);
        }
    }

    /// Opens a stream to the holder.
    fn ask(&mut self) {
        let Some(claimed) = self.claimed.clone() else {
            return;
        };
        let source = self.key.ends.client;
        let opening = async move {
            let claim_id = claimed.claims.holder.as_deref();
            let claim_id = claim_id.ok_or(NotServed::Unclaimed)?;
            open(&claimed.tunnel, claim_id, source).await
        };
        self.way = Way::Opening(Box::pin(opening));
    }

    async fn handle_told(&mut self, told: Told) {
        let now = Instant::now();
        match told {
            Told::Opened(frames) => {
                self.way = Way::Open(frames);
                let waited = self.course.handle_opened();
                let waited: Vec<_> = waited.map(|it| it.payload.clone()).collect();
                for payload in waited {
                    self.send(payload);
                }
            }
            Told::Answer(payload) => {
                self.course.handle_answer();
                answer(&self.socket, &self.key.ends, &payload).await;
            }
            Told::Refused(
                error @ (DialError::Refused
                | DialError::HostUnreachable
                | DialError::NetworkUnreachable
                | DialError::Prohibited),
            ) => {
                let held = self.course.handle_refused(now);
                let detail = "the handler does not take datagrams".to_owned();
                let why = NotServed::Refused { error, detail };
                self.fall_back(&why, held).await;
            }
            // Of one datagram alone.
            Told::Refused(DialError::TimedOut | DialError::TunnelLost | DialError::TooBig(_)) => {}
            Told::Lost(why) => {
                self.way = Way::None;
                let held = self.course.handle_lost(now);
                self.fall_back(&why, held).await;
            }
        }
    }

    /// Gives the app what the holder did not take.
    async fn fall_back(&mut self, why: &NotServed, held: impl IntoIterator<Item = Datagram>) {
        debug!(client = %self.key.ends.client, port = self.key.port, %why, "Not taken");
        self.count_failure();
        for datagram in held {
            self.give_app(&datagram).await;
        }
    }

    async fn give_app(&mut self, datagram: &Datagram) {
        if self.app.is_none() {
            match dial(self.key.ends.at(self.key.port)) {
                Ok(app) => self.app = Some(app),
                Err(error) => debug!(%error, "The app cannot be reached"),
            }
        }
        let Some(app) = &self.app else {
            return;
        };
        // An error may be about an earlier datagram; this one then has not been sent.
        if app.send(&datagram.payload).await.is_err()
            && let Err(error) = app.send(&datagram.payload).await
        {
            debug!(%error, "The app does not take a datagram");
        }
    }

    async fn handle_app(&mut self, ready: io::Result<()>) {
        let Some(app) = self.app.as_ref().filter(|_| ready.is_ok()) else {
            self.app = None;
            return;
        };
        for _ in 0..BATCH {
            let received = with_scratch(|scratch| {
                let received = app.try_recv(scratch);
                received.map(|length| Bytes::copy_from_slice(&scratch[..length]))
            });
            match received {
                Ok(payload) => answer(&self.socket, &self.key.ends, &payload).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => debug!(%error, "The app does not take datagrams"),
            }
        }
    }
}

/// Waits for ever while there is no socket.
async fn readable(socket: Option<&UdpSocket>) -> io::Result<()> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

async fn answer(socket: &UdpSocket, ends: &Ends, payload: &[u8]) {
    if let Err(error) = sockets::answer(socket, ends, payload).await {
        debug!(client = %ends.client, %error, "An answer is lost");
    }
}

/// A socket that speaks to the app alone.
fn dial(app: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match app {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = StdSocket::bind(any)?;
    socket.connect(app)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}
