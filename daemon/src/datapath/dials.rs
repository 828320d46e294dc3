//! Connections and datagrams that agents intercept, handled by a local process.

use std::net::SocketAddr;
use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure, Frame, Malformed, OpenTarget, Protocol, port};
use kvpn_proto::v1;
use kvpn_tunnel::relay::{self, DatagramSocket, FrameSender, FrameStream};
use tokio::net::TcpStream;
use tracing::{Instrument, debug, debug_span, warn};

use super::registry::{Engaged, FlowAbout, FlowRecord, FlowRegistry};
use crate::session::engagements::Handlers;
use crate::session::manager::FlowClient;

/// How long the local handler may take to accept.
const LOCAL_DEADLINE: Duration = Duration::from_secs(5);

/// After which silence a client's datagrams are over. Longer than the agent's limit: only
/// where datagrams come in can a flow end without losing one.
const UDP_IDLE: Duration = Duration::from_secs(90);

/// For how long answers to datagrams still go out after their engagement.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long the traffic manager may take to take a refusal.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(5);

/// Where a dial is handled.
#[derive(Clone, Copy, Debug)]
struct Target {
    local: SocketAddr,
    protocol: Protocol,
}

/// A socket that speaks to the local handler.
enum Dialled {
    Tcp(TcpStream),
    Udp(DatagramSocket),
}

/// Answers one dial: connects to the local address that the user named for it,
/// and to no other.
pub(crate) async fn answer(
    client: FlowClient,
    dial: v1::WatchDialsResponse,
    handlers: Handlers,
    registry: FlowRegistry,
) {
    let span = debug_span!(
        "dial",
        id = dial.dial_id,
        engagement = dial.engagement_name,
        port = dial.container_port,
        pod = dial.pod
    );
    let target = target(&dial, &handlers);
    let over = handlers.over(&dial.engagement_namespace, &dial.engagement_name);
    let about = target
        .as_ref()
        .ok()
        .and_then(|target| about(&dial, *target));
    let record = about.map(|about| registry.begin(about));
    let handle = handle(client, dial, target, record, over);
    handle.instrument(span).await;
}

async fn handle(
    place: FlowClient,
    dial: v1::WatchDialsResponse,
    target: Result<Target, DialFailure>,
    record: Option<FlowRecord>,
    over: impl Future<Output = ()>,
) {
    let FrameStream { sender, receiver } =
        place.carry(Frame::Open(OpenTarget::Dial(dial.dial_id.clone())));
    let answered = connect_and_tell(target, &sender).await;
    let frames = FrameStream { sender, receiver };
    match answered {
        Ok(socket) => {
            let frames = match &record {
                Some(record) => record.opened(frames),
                None => frames,
            };
            carry(socket, frames, over).await;
        }
        Err(failure) => {
            if let Some(record) = record {
                record.failed(failure.error);
            }
            warn!(error = %failure, "Intercepted connection is left to the pod");
            finish(frames).await;
        }
    }
}

async fn connect_and_tell(
    target: Result<Target, DialFailure>,
    sender: &FrameSender,
) -> Result<Dialled, DialFailure> {
    let outcome = match target {
        Ok(target) => dial(target).await,
        Err(failure) => Err(failure),
    };
    let frame = match &outcome {
        Ok(_) => Frame::Opened,
        Err(failure) => Frame::Failed(failure.clone()),
    };
    match sender.send(frame).await {
        Ok(()) => outcome,
        Err(error) => Err(DialFailure::new(DialError::TunnelLost, error.to_string())),
    }
}

/// Whether datagrams are taken shows only once one has been sent.
async fn dial(target: Target) -> Result<Dialled, DialFailure> {
    let Target { local, protocol } = target;
    match protocol {
        Protocol::Tcp => {
            let dialled = relay::dial_tcp(local, LOCAL_DEADLINE).await;
            dialled.map(Dialled::Tcp)
        }
        Protocol::Udp => relay::dial_udp(local).map(Dialled::Udp),
    }
}

/// The local address that the user named for a dial.
fn target(dial: &v1::WatchDialsResponse, handlers: &Handlers) -> Result<Target, DialFailure> {
    let refused = |detail: &str| DialFailure::new(DialError::Refused, detail);
    let malformed = |error: Malformed| refused(&error.to_string());
    let protocol = Protocol::try_from(dial.protocol()).map_err(malformed)?;
    let container_port = port(dial.container_port).map_err(malformed)?;
    let (namespace, name) = (&dial.engagement_namespace, &dial.engagement_name);
    match handlers.local(namespace, name, container_port, protocol) {
        Some(local) => Ok(Target { local, protocol }),
        None => Err(refused("this session does not engage that port")),
    }
}

/// What people are told of a dial; nothing when its source is malformed.
fn about(dial: &v1::WatchDialsResponse, target: Target) -> Option<FlowAbout> {
    Some(FlowAbout {
        protocol: target.protocol.into(),
        host: target.local,
        cluster: dial.source.clone()?.try_into().ok()?,
        engaged: Some(Engaged {
            namespace: dial.engagement_namespace.clone(),
            engagement: dial.engagement_name.clone(),
            pod: Some(dial.pod.clone()),
        }),
    })
}

/// Carries what is under way to its end; datagrams, which know no connections, until a while
/// after the engagement is over, in which answers still come: an agent that has not heard of
/// that gives the next to the app.
async fn carry(socket: Dialled, frames: FrameStream, over: impl Future<Output = ()>) {
    let left = async {
        over.await;
        tokio::time::sleep(FAREWELL).await;
    };
    let ended = match socket {
        Dialled::Tcp(socket) => relay::splice_tcp(socket, frames).await,
        Dialled::Udp(socket) => tokio::select! {
            ended = relay::splice_datagrams(socket, frames, UDP_IDLE) => ended,
            () = left => return debug!("Datagrams are the app's again"),
        },
    };
    match ended {
        Ok(moved) => debug!(moved.sent, moved.received, "Intercepted connection ended"),
        Err(error) => debug!(%error, "Intercepted connection broke"),
    }
}

/// Keeps the stream until the refusal has arrived.
async fn finish(frames: FrameStream) {
    let finished = tokio::time::timeout(REFUSAL_DEADLINE, frames.finish()).await;
    if finished.is_err() {
        debug!("The refused dial's stream stays open");
    }
}
