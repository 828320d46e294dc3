//! Connections that agents intercept, handled by a local process.

use std::net::SocketAddr;
use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget, Protocol, port};
use kvpn_proto::v1;
use kvpn_tunnel::relay::{self, FrameSender, FrameStream};
use tokio::net::TcpStream;
use tracing::{Instrument, debug, debug_span, warn};

use super::registry::{FlowAbout, FlowRecord, FlowRegistry, Intercepted};
use crate::session::engagements::Handlers;
use crate::session::manager::FlowClient;

/// How long the local handler may take to accept.
const LOCAL_DEADLINE: Duration = Duration::from_secs(5);

/// How long the traffic manager may take to take a refusal.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(5);

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
    let about = target.as_ref().ok().and_then(|local| about(&dial, *local));
    let record = about.map(|about| registry.begin(about));
    handle(client, dial, target, record).instrument(span).await;
}

async fn handle(
    place: FlowClient,
    dial: v1::WatchDialsResponse,
    target: Result<SocketAddr, DialFailure>,
    record: Option<FlowRecord>,
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
            carry(socket, frames).await;
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
    target: Result<SocketAddr, DialFailure>,
    sender: &FrameSender,
) -> Result<TcpStream, DialFailure> {
    let outcome = match target {
        Ok(local) => relay::dial_tcp(local, LOCAL_DEADLINE).await,
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

/// The local address that the user named for a dial.
fn target(dial: &v1::WatchDialsResponse, handlers: &Handlers) -> Result<SocketAddr, DialFailure> {
    let refused = |detail: &str| DialFailure::new(DialError::Refused, detail);
    if Protocol::try_from(dial.protocol()) != Ok(Protocol::Tcp) {
        return Err(refused("only TCP is handled"));
    }
    let container_port = port(dial.container_port).map_err(|error| refused(&error.to_string()))?;
    handlers
        .local(
            &dial.engagement_namespace,
            &dial.engagement_name,
            container_port,
        )
        .ok_or_else(|| refused("this session does not engage that port"))
}

/// What people are told of a dial; nothing when its source is malformed.
fn about(dial: &v1::WatchDialsResponse, local: SocketAddr) -> Option<FlowAbout> {
    Some(FlowAbout {
        protocol: Protocol::try_from(dial.protocol()).ok()?.into(),
        host: local,
        cluster: dial.source.clone()?.try_into().ok()?,
        intercepted: Some(Intercepted {
            namespace: dial.engagement_namespace.clone(),
            engagement: dial.engagement_name.clone(),
            pod: dial.pod.clone(),
        }),
    })
}

async fn carry(socket: TcpStream, frames: FrameStream) {
    match relay::splice_tcp(socket, frames).await {
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
