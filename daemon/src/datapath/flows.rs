//! One task per flow: dials through the tunnel, answers the host as the dial
//! was answered, then copies both ways.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget, Protocol};
use kvpn_tunnel::flow::{FiveTuple, is_routable};
use kvpn_tunnel::host;
use kvpn_tunnel::netstack::{NewFlow, PendingTcp, UdpFlow};
use kvpn_tunnel::relay::{self, FrameStream};
use tokio::task::JoinSet;
use tracing::debug;

use crate::session::manager::Manager;

/// How long the far side may take to answer a dial.
const DIAL_DEADLINE: Duration = Duration::from_secs(15);

/// Carries flows; dropping it ends them all.
pub(super) struct Carrier {
    manager: Manager,
    own: Vec<IpAddr>,
    flows: JoinSet<()>,
}

impl Carrier {
    /// `own` are the host's addresses on the TUN.
    pub(super) fn new(manager: Manager, own: Vec<IpAddr>) -> Self {
        Self {
            manager,
            own,
            flows: JoinSet::new(),
        }
    }

    pub(super) fn carry(&mut self, flow: NewFlow) {
        let manager = self.manager.clone();
        match flow {
            NewFlow::Tcp(pending) if self.is_foreign(&pending.five_tuple()) => {
                self.flows.spawn(carry_tcp(pending, manager));
            }
            NewFlow::Udp(flow) if self.is_foreign(&flow.five_tuple()) => {
                self.flows.spawn(carry_udp(flow, manager));
            }
            NewFlow::Tcp(pending) => pending.refuse(DialError::Prohibited, Instant::now()),
            NewFlow::Udp(flow) => flow.unreachable(DialError::Prohibited, Instant::now()),
        }
    }

    /// Forgets flows that have ended.
    pub(super) fn reap(&mut self) {
        while self.flows.try_join_next().is_some() {}
    }

    /// A flow to the host itself would come back for ever.
    fn is_foreign(&self, flow: &FiveTuple) -> bool {
        let destination = flow.cluster.ip();
        is_routable(destination) && !self.own.contains(&destination)
    }
}

async fn carry_tcp(pending: PendingTcp, manager: Manager) {
    let five_tuple = pending.five_tuple();
    let frames = match dial(&manager, Protocol::Tcp, five_tuple.cluster).await {
        Ok(frames) => frames,
        Err(failure) => {
            debug!(flow = %five_tuple, error = %failure, "Dial failed");
            return pending.refuse(failure.error, Instant::now());
        }
    };
    let flow = pending.accept(Instant::now());
    match host::splice_tcp(flow, frames).await {
        Ok(moved) => debug!(flow = %five_tuple, moved.sent, moved.received, "Flow ended"),
        Err(error) => debug!(flow = %five_tuple, %error, "Flow broke"),
    }
}

async fn carry_udp(flow: UdpFlow, manager: Manager) {
    let five_tuple = flow.five_tuple();
    let frames = match dial(&manager, Protocol::Udp, five_tuple.cluster).await {
        Ok(frames) => frames,
        Err(failure) => {
            debug!(flow = %five_tuple, error = %failure, "Dial failed");
            return flow.unreachable(failure.error, Instant::now());
        }
    };
    match host::splice_udp(flow, frames).await {
        Ok(moved) => debug!(flow = %five_tuple, moved.sent, moved.received, "Flow ended"),
        Err(error) => debug!(flow = %five_tuple, %error, "Flow broke"),
    }
}

/// Opens a stream for a flow; ready when the far side has answered the dial.
async fn dial(
    manager: &Manager,
    protocol: Protocol,
    address: SocketAddr,
) -> Result<FrameStream, DialFailure> {
    let lost = |detail: String| DialFailure::new(DialError::TunnelLost, detail);
    let mut client = manager
        .client()
        .ok_or_else(|| lost("the tunnel is down".into()))?;
    let opening = async {
        let (sender, outgoing) = relay::outgoing();
        let open = OpenTarget::Destination { protocol, address };
        sender
            .send(Frame::Open(open))
            .await
            .map_err(|error| lost(error.to_string()))?;
        let response = client
            .tunnel(outgoing)
            .await
            .map_err(|status| lost(status.message().to_owned()))?;
        let mut receiver = relay::incoming(response.into_inner());
        match receiver.recv().await {
            Some(Ok(Frame::Opened)) => Ok(FrameStream { sender, receiver }),
            Some(Ok(Frame::Failed(failure))) => Err(failure),
            Some(Ok(Frame::Reset)) => Err(DialFailure::new(DialError::Refused, "reset")),
            Some(Ok(Frame::Open(_) | Frame::Data(_) | Frame::Fin)) => {
                Err(lost("the traffic manager breaks the protocol".into()))
            }
            Some(Err(error)) => Err(lost(error.to_string())),
            None => Err(lost("the stream ended early".into())),
        }
    };
    tokio::time::timeout(DIAL_DEADLINE, opening)
        .await
        .unwrap_or_else(|_| Err(DialFailure::new(DialError::TimedOut, "no answer in time")))
}
