//! Decides for each redirected connection who gets it, and carries its bytes; and so for
//! datagrams.
//!
//! Until the holder of a claim has answered, nothing is read from the client, but
//! where requests have to be looked at; so whatever goes wrong before leaves the
//! connection whole for the app.

mod datagrams;
mod listeners;
mod original;
mod requests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kvpn_proto::flow::{DialError, Frame, OpenTarget};
use kvpn_tunnel::grpc::TunnelClient;
use kvpn_tunnel::relay::{self, FrameStream};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, debug_span, warn};

use self::datagrams::Datagrams;
pub(crate) use self::listeners::Listeners;
use crate::{
    claims::Claims,
    holds::Holds,
    http::Server,
    probes::{self, Recognition},
    redirect::Redirects,
    reports::{Entry, Reports},
    tls::Termination,
};

/// How long the holder of a claim may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(3);

/// How long the app may take to accept.
const APP_DEADLINE: Duration = Duration::from_secs(10);

/// How long the kernel may take to deliver what was written to a connection
/// before it was closed.
const DELIVERY: Duration = Duration::from_secs(5);

/// How many copies are made at a time.
const MAX_COPIES: usize = 64;

/// How many connections into the pod there may be at a time.
pub(crate) const MAX_POD_DIALS: usize = 256;

/// How long copies are not offered to who could not be had.
const MISSED: Duration = Duration::from_secs(2);

/// How long a client of a probed port may keep silent. The kubelet sends its
/// request at once.
const PROBE_DEADLINE: Duration = Duration::from_millis(50);

/// The same while probes are answered for an app that is stopped, and would not answer one
/// that comes late. The kubelet waits as long itself, or longer.
const STOPPED_PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// What a probe is answered for an app that is stopped.
const ALIVE: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Accepts redirected connections. Clones share the same state.
#[derive(Clone)]
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
}

struct Shared {
    port: u16,
    route: Mutex<Option<Arc<Route>>>,
    /// The ports that were claimed when the claims were last known.
    ports: Mutex<BTreeSet<u16>>,
    flows: TaskTracker,
    reports: Arc<Reports>,
    /// When the holders of claims on copies could not be had the last time.
    missed_copies: Mutex<HashMap<String, Instant>>,
    /// Room for copies.
    copies: Arc<Semaphore>,
    /// Room for connections into the pod.
    pod_dials: Arc<Semaphore>,
    datagrams: Datagrams,
}

/// The claims in force, the way to those who hold them, and which apps are stopped.
pub(crate) struct Route {
    pub(crate) claims: Claims,
    tunnel: TunnelClient,
    holds: Holds,
    /// How clients' TLS is ended, by port.
    terminations: HashMap<u16, Termination>,
}

impl Route {
    pub(crate) fn new(claims: Claims, tunnel: TunnelClient, holds: Holds) -> Self {
        let terminations = claims.tls().filter_map(|(port, identity)| {
            let made = Termination::new(identity);
            // Others have claims here, too. Its session should have looked.
            let made = made.inspect_err(|error| warn!(port, %error, "A certificate is left out"));
            Some((port, made.ok()?))
        });
        let terminations = terminations.collect();
        Self {
            terminations,
            claims,
            tunnel,
            holds,
        }
    }
}

/// Why the app gets a claimed connection.
#[derive(Debug, thiserror::Error)]
enum NotServed {
    #[error("the port is not claimed")]
    Unclaimed,
    #[error("it is a probe of the kubelet")]
    Probe,
    #[error("no answer within {} s", ANSWER_DEADLINE.as_secs())]
    NoAnswer,
    #[error("{error:?}: {detail}")]
    Refused { error: DialError, detail: String },
    #[error("{0}")]
    Lost(String),
}

impl Forwarder {
    /// Accepts on the listeners from now on. All goes to the app until there is
    /// a route.
    pub(crate) fn start(listeners: Listeners) -> Self {
        let flows = TaskTracker::new();
        // A closed tracker still takes tasks, and lets `wait` return.
        flows.close();
        let shared = Arc::new(Shared {
            port: listeners.port(),
            route: Mutex::new(None),
            ports: Mutex::default(),
            flows,
            reports: Arc::new(Reports::new()),
            missed_copies: Mutex::default(),
            copies: Arc::new(Semaphore::new(MAX_COPIES)),
            pod_dials: Arc::new(Semaphore::new(MAX_POD_DIALS)),
            datagrams: Datagrams::new(),
        });
        for listener in listeners.into_inner() {
            tokio::spawn(accept(listener, Arc::clone(&shared)));
        }
        Self { shared }
    }

    /// What has to come here.
    pub(crate) fn redirects(&self) -> Redirects {
        let route = self.shared.route();
        let connections = route.map(|route| route.claims.ports());
        Redirects {
            connections: connections.unwrap_or_default(),
            listener: self.shared.port,
            datagrams: self.shared.datagrams.redirected(),
            answers: self.answers(),
        }
    }

    /// The UDP ports that answers leave from, by the ports of their sockets.
    pub(crate) fn answers(&self) -> BTreeMap<u16, u16> {
        self.shared.datagrams.answered()
    }

    /// Has sockets for datagrams, which a route with these claims needs.
    pub(crate) fn bind(&self, claims: &Claims) -> io::Result<()> {
        datagrams::bind(&self.shared, claims)
    }

    /// What becomes of requests.
    pub(crate) fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.shared.reports)
    }

    /// Says who gets new connections and datagrams: the holders of claims, or the app alone.
    pub(crate) fn set_route(&self, route: Option<Route>) {
        match &route {
            Some(route) => {
                self.shared.reports.keep(&route.claims);
                *self.shared.ports() = route.claims.ports();
            }
            None => self.shared.reports.rest(),
        }
        self.shared.datagrams.set_route(route.as_ref());
        *self.shared.lock() = route.map(Arc::new);
    }

    /// The TCP ports whose connections are taken, or were when somebody said so last.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.shared.ports().clone()
    }

    /// The same of UDP.
    pub(crate) fn datagram_ports(&self) -> BTreeSet<u16> {
        self.shared.datagrams.told()
    }

    /// Whether the holder of a claim may have a port of the pod's localhost dialled.
    pub(crate) fn lists_pod_port(&self, claim_id: &str, port: u16) -> bool {
        let route = self.shared.route();
        route.is_some_and(|route| route.claims.lists_pod_port(claim_id, port))
    }

    /// Room for a connection into the pod, if there is any left.
    pub(crate) fn room_for_pod_dial(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.shared.pod_dials).try_acquire_owned().ok()
    }

    /// Whether no redirected connection is open, nor a flow of datagrams.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.flows.is_empty()
    }

    /// Waits until no redirected connection or flow is open, nor has been of late.
    pub(crate) async fn delivered(&self) {
        loop {
            self.shared.flows.wait().await;
            sleep(DELIVERY).await;
            if self.is_idle() {
                return;
            }
        }
    }
}

impl Shared {
    /// Whether it is too soon to offer copies again.
    fn has_missed_copies(&self, claim_id: &str) -> bool {
        let missed = self.missed_copies.lock();
        let missed = missed.unwrap_or_else(PoisonError::into_inner);
        missed.get(claim_id).is_some_and(|at| at.elapsed() < MISSED)
    }

    fn note_missed_copies(&self, claim_id: String) {
        let missed = self.missed_copies.lock();
        let mut missed = missed.unwrap_or_else(PoisonError::into_inner);
        missed.retain(|_, at| at.elapsed() < MISSED);
        missed.insert(claim_id, Instant::now());
    }

    fn route(&self) -> Option<Arc<Route>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Route>>> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ports(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((socket, source)) => {
                let span = debug_span!("connection", %source);
                let serve = serve(socket, source, Arc::clone(&shared)).instrument(span);
                shared.flows.spawn(serve);
            }
            Err(error) => {
                warn!(%error, "Cannot accept a connection");
                // Out of descriptors, most likely; some will be given back.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(socket: TcpStream, source: SocketAddr, shared: Arc<Shared>) {
    let Some(destination) = original::destination(&socket, shared.port) else {
        debug!("Reset: it came to the agent's own port");
        relay::abort_on_close(&socket, true);
        return;
    };
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%error, "Cannot set TCP_NODELAY");
    }
    let route = shared.route();
    let claims = route
        .as_ref()
        .and_then(|it| it.claims.get(destination.port()));
    let answers_probes = route.as_ref().zip(claims).is_some_and(|(route, claims)| {
        claims.answers_probes(|container| route.holds.is_stopped(container))
    });
    if answers_probes && is_probe(&socket, STOPPED_PROBE_DEADLINE).await {
        return answer_probe(socket).await;
    }
    if claims.is_some_and(|it| it.is_filtered() && !it.is_opaque()) {
        return requests::serve(socket, source, destination, shared).await;
    }
    // No filter wants to choose here: copies are of everything, or nobody answers for the holder.
    if let Some(claims) = claims.filter(|it| it.is_copied() || it.is_filtered()) {
        if claims.http_probed && is_probe(&socket, PROBE_DEADLINE).await {
            return to_app(socket, destination).await;
        }
        return requests::serve_whole(socket, source, destination, shared).await;
    }
    let holder = claim_holder(&socket, source, destination, route, &shared.reports);
    match holder.await {
        Ok(frames) => match relay::splice_tcp(socket, frames).await {
            Ok(transferred) => debug!(%destination, ?transferred, "Served by the claim's holder"),
            Err(error) => debug!(%destination, %error, "Cut off from the claim's holder"),
        },
        Err(why) => {
            debug!(%destination, %why, "The app answers");
            to_app(socket, destination).await;
        }
    }
}

/// Hands the connection to the holder of its port's claim. Reads nothing from
/// the socket.
async fn claim_holder(
    socket: &TcpStream,
    source: SocketAddr,
    destination: SocketAddr,
    route: Option<Arc<Route>>,
    reports: &Arc<Reports>,
) -> Result<FrameStream, NotServed> {
    let route = route.ok_or(NotServed::Unclaimed)?;
    let claims = route.claims.get(destination.port());
    let claims = claims.ok_or(NotServed::Unclaimed)?;
    let claim = claims.rest().ok_or(NotServed::Unclaimed)?;
    if claims.http_probed && is_probe(socket, PROBE_DEADLINE).await {
        return Err(NotServed::Probe);
    }
    let mut entry = Entry::new(reports, source, destination.port(), Some(claim));
    let handed_over = hand_over(&route.tunnel, claim, source).await;
    match &handed_over {
        Ok(_) => entry.taken_by(&Server::Holder(claim.to_owned())),
        Err(_) => {
            entry.has_failed();
            // It is the next one to be asked.
            entry.taken_by(&Server::App);
        }
    }
    handed_over
}

/// Opens a stream to the holder of a claim.
async fn hand_over(
    tunnel: &TunnelClient,
    claim_id: &str,
    source: SocketAddr,
) -> Result<FrameStream, NotServed> {
    timeout(ANSWER_DEADLINE, open(tunnel, claim_id, source))
        .await
        .map_err(|_| NotServed::NoAnswer)?
}

async fn open(
    tunnel: &TunnelClient,
    claim_id: &str,
    source: SocketAddr,
) -> Result<FrameStream, NotServed> {
    let lost = |error: &dyn std::fmt::Display| NotServed::Lost(error.to_string());
    let FrameStream {
        sender,
        mut receiver,
    } = tunnel.carry(Frame::Open(OpenTarget::Claimed {
        claim_id: claim_id.to_owned(),
        source,
    }));
    match receiver.recv().await {
        Some(Ok(Frame::Opened)) => Ok(FrameStream { sender, receiver }),
        Some(Ok(Frame::Failed(failure))) => Err(NotServed::Refused {
            error: failure.error,
            detail: failure.detail,
        }),
        Some(Ok(Frame::Open(_) | Frame::Data(_) | Frame::Whole(_) | Frame::Fin | Frame::Reset)) => {
            Err(NotServed::Lost("an unexpected frame".into()))
        }
        Some(Err(error)) => Err(lost(&error)),
        None => Err(NotServed::Lost("no answer".into())),
    }
}

/// Peeks at what the client sends first, if that comes in time.
async fn is_probe(socket: &TcpStream, deadline: Duration) -> bool {
    timeout(deadline, peek_probe(socket)).await.unwrap_or(false)
}

async fn peek_probe(socket: &TcpStream) -> bool {
    let mut head = vec![0; probes::LONGEST_HEAD];
    loop {
        let Ok(length) = socket.peek(&mut head).await else {
            return false;
        };
        match probes::recognise(&head[..length]) {
            Recognition::Probe => return true,
            Recognition::NotProbe => return false,
            // At the end of the client's data there will not be more.
            Recognition::Undecided if length == 0 => return false,
            // Peeking returns at once as long as there is something to read.
            Recognition::Undecided => sleep(Duration::from_millis(2)).await,
        }
    }
}

/// Answers the kubelet for an app that is stopped, and is to be found there later.
async fn answer_probe(mut socket: TcpStream) {
    if let Err(error) = socket.write_all(ALIVE).await {
        debug!(%error, "A probe is gone");
        return;
    }
    // Closing with something unread would take the answer back.
    let answered = async {
        socket.shutdown().await?;
        tokio::io::copy(&mut socket, &mut tokio::io::sink()).await
    };
    if !matches!(timeout(PROBE_DEADLINE, answered).await, Ok(Ok(_))) {
        debug!("A probe has not ended in order");
    }
}

/// Connects the client with the app, which listens where the client meant to
/// connect to. What does not end in order ends with RST on both sides.
async fn to_app(mut socket: TcpStream, destination: SocketAddr) {
    relay::abort_on_close(&socket, true);
    let mut app = match relay::dial_tcp(destination, APP_DEADLINE).await {
        Ok(app) => app,
        Err(error) => {
            debug!(%destination, %error, "The app does not answer");
            return;
        }
    };
    relay::abort_on_close(&app, true);
    match tokio::io::copy_bidirectional(&mut socket, &mut app).await {
        Ok(_) => {
            relay::abort_on_close(&socket, false);
            relay::abort_on_close(&app, false);
        }
        Err(error) => debug!(%destination, %error, "Cut off from the app"),
    }
}

#[cfg(test)]
mod tests;
