//! Connections that agents intercept, handled by a local process.

use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget, Protocol, port};
use kvpn_proto::v1;
use kvpn_tunnel::relay::{self, FrameSender, FrameStream};
use tokio::net::TcpStream;
use tracing::{Instrument, debug, debug_span, warn};

use crate::session::engagements::Engagements;
use crate::session::manager::Client;

/// How long the local handler may take to accept.
const LOCAL_DEADLINE: Duration = Duration::from_secs(5);

/// How long the traffic manager may take to take a refusal.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(5);

/// Answers one dial: connects to the local address that the user named for it,
/// and to no other.
pub(crate) async fn answer(client: Client, dial: v1::WatchDialsResponse, engagements: Engagements) {
    let span = debug_span!(
        "dial",
        id = dial.dial_id,
        engagement = dial.engagement_name,
        port = dial.container_port,
        pod = dial.pod
    );
    handle(client, dial, engagements).instrument(span).await;
}

async fn handle(mut client: Client, dial: v1::WatchDialsResponse, engagements: Engagements) {
    let (sender, outgoing) = relay::outgoing();
    let open = Frame::Open(OpenTarget::Dial(dial.dial_id.clone()));
    if let Err(error) = sender.send(open).await {
        return debug!(%error, "Dial cannot be answered");
    }
    // The answer waits for no response: the agent's client waits for it.
    let (response, answered) = tokio::join!(
        client.tunnel(outgoing),
        connect_and_tell(&dial, &engagements, &sender)
    );
    let receiver = match response {
        Ok(response) => relay::incoming(response.into_inner()),
        Err(status) => return debug!(error = status.message(), "Dial cannot be answered"),
    };
    let frames = FrameStream { sender, receiver };
    match answered {
        Ok(socket) => carry(socket, frames).await,
        Err(failure) => {
            warn!(error = %failure, "Intercepted connection is left to the pod");
            finish(frames).await;
        }
    }
}

async fn connect_and_tell(
    dial: &v1::WatchDialsResponse,
    engagements: &Engagements,
    sender: &FrameSender,
) -> Result<TcpStream, DialFailure> {
    let outcome = connect(dial, engagements).await;
    let frame = match &outcome {
        Ok(_) => Frame::Opened,
        Err(failure) => Frame::Failed(failure.clone()),
    };
    match sender.send(frame).await {
        Ok(()) => outcome,
        Err(error) => Err(DialFailure::new(DialError::TunnelLost, error.to_string())),
    }
}

async fn connect(
    dial: &v1::WatchDialsResponse,
    engagements: &Engagements,
) -> Result<TcpStream, DialFailure> {
    let refused = |detail: &str| DialFailure::new(DialError::Refused, detail);
    if Protocol::try_from(dial.protocol()) != Ok(Protocol::Tcp) {
        return Err(refused("only TCP is handled"));
    }
    let container_port = port(dial.container_port).map_err(|error| refused(&error.to_string()))?;
    let local = engagements
        .local(
            &dial.engagement_namespace,
            &dial.engagement_name,
            container_port,
        )
        .ok_or_else(|| refused("this session does not engage that port"))?;
    relay::dial_tcp(local, LOCAL_DEADLINE).await
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
