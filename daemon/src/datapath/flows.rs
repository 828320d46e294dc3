//! One task per flow: dials through the tunnel, answers the host as the dial
//! was answered, then copies both ways.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget, Protocol};
use kvpn_tunnel::flow::is_routable;
use kvpn_tunnel::host;
use kvpn_tunnel::netstack::{EchoFlow, NewFlow, PendingTcp, UdpFlow};
use kvpn_tunnel::relay::{FrameStream, RelayError};
use tokio::task::JoinSet;
use tracing::debug;

use super::registry::{FlowRecord, FlowRegistry};
use crate::lease::slot::hop;
use crate::session::manager::{FlowClient, Manager};
use crate::session::vnat::Vnat;

/// How long the far side may take to answer a dial: longer than the traffic
/// manager and the host do, for a SYN that stays unanswered.
const DIAL_DEADLINE: Duration = Duration::from_secs(140);

/// The way into the cluster.
#[derive(Clone)]
pub(crate) struct Exit {
    pub(crate) manager: Manager,
    pub(crate) vnat: Vnat,
}

impl Exit {
    /// The target where it is in the cluster.
    fn real(&self, target: OpenTarget) -> OpenTarget {
        match target {
            OpenTarget::Destination { protocol, address } => OpenTarget::Destination {
                protocol,
                address: SocketAddr::new(self.vnat.real(address.ip()), address.port()),
            },
            OpenTarget::Echo(address) => OpenTarget::Echo(self.vnat.real(address)),
            OpenTarget::Dial(_)
            | OpenTarget::Claimed { .. }
            | OpenTarget::InPod { .. }
            | OpenTarget::Files { .. } => target,
        }
    }
}

/// Carries flows; dropping it ends them all.
pub(super) struct Carrier {
    exit: Exit,
    own: Vec<IpAddr>,
    registry: FlowRegistry,
    flows: JoinSet<()>,
}

impl Carrier {
    /// `own` are the host's addresses on the TUN.
    pub(super) fn new(exit: Exit, own: Vec<IpAddr>, registry: FlowRegistry) -> Self {
        Self {
            exit,
            own,
            registry,
            flows: JoinSet::new(),
        }
    }

    pub(super) fn carry(&mut self, flow: NewFlow) {
        let exit = self.exit.clone();
        match flow {
            NewFlow::Tcp(pending) if self.is_foreign(pending.five_tuple().cluster.ip()) => {
                let record = self.registry.begin(pending.five_tuple().into());
                self.flows.spawn(carry_tcp(pending, exit, record));
            }
            NewFlow::Udp(flow) if self.is_foreign(flow.five_tuple().cluster.ip()) => {
                let record = self.registry.begin(flow.five_tuple().into());
                self.flows.spawn(carry_udp(flow, exit, record));
            }
            NewFlow::Echo(flow) if self.is_foreign(flow.id().cluster) => {
                let record = self.registry.begin(flow.id().into());
                self.flows.spawn(carry_echo(flow, exit, record));
            }
            NewFlow::Tcp(pending) => pending.refuse(DialError::Prohibited, Instant::now()),
            NewFlow::Udp(flow) => flow.unreachable(DialError::Prohibited, Instant::now()),
            NewFlow::Echo(flow) => flow.unreachable(DialError::Prohibited, Instant::now()),
        }
    }

    /// Forgets flows that have ended.
    pub(super) fn reap(&mut self) {
        while self.flows.try_join_next().is_some() {}
    }

    /// A flow to the host itself would come back for ever, and nobody
    /// listens at the first hop.
    fn is_foreign(&self, destination: IpAddr) -> bool {
        let mut own = self.own.iter();
        let is_ours = own.any(|own| destination == *own || destination == hop(*own));
        is_routable(destination) && !is_ours
    }
}

async fn carry_tcp(pending: PendingTcp, exit: Exit, record: FlowRecord) {
    let five_tuple = pending.five_tuple();
    let target = OpenTarget::Destination {
        protocol: Protocol::Tcp,
        address: five_tuple.cluster,
    };
    let (frames, _place) = match dial(&exit.manager, exit.real(target)).await {
        Ok((frames, place)) => (record.opened(frames), place),
        Err(failure) => {
            record.failed(failure.error);
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

async fn carry_udp(flow: UdpFlow, exit: Exit, record: FlowRecord) {
    let five_tuple = flow.five_tuple();
    let target = OpenTarget::Destination {
        protocol: Protocol::Udp,
        address: five_tuple.cluster,
    };
    let (frames, _place) = match open(&exit.manager, exit.real(target)) {
        Ok((frames, place)) => (record.metered(frames), place),
        Err(failure) => {
            record.failed(failure.error);
            debug!(flow = %five_tuple, error = %failure, "Flow cannot be opened");
            return flow.unreachable(failure.error, Instant::now());
        }
    };
    match host::splice_udp(&flow, frames, || record.answered()).await {
        Ok(moved) => debug!(flow = %five_tuple, moved.sent, moved.received, "Flow ended"),
        Err(RelayError::Failed(failure)) => {
            record.failed(failure.error);
            debug!(flow = %five_tuple, error = %failure, "Dial failed");
        }
        Err(error) => debug!(flow = %five_tuple, %error, "Flow broke"),
    }
}

async fn carry_echo(flow: EchoFlow, exit: Exit, record: FlowRecord) {
    let cluster = flow.id().cluster;
    let (frames, _place) = match open(&exit.manager, exit.real(OpenTarget::Echo(cluster))) {
        Ok((frames, place)) => (record.metered(frames), place),
        Err(failure) => {
            record.failed(failure.error);
            debug!(%cluster, error = %failure, "Ping cannot be sent");
            return flow.unreachable(failure.error, Instant::now());
        }
    };
    match host::splice_echo(&flow, frames).await {
        Ok(moved) => debug!(%cluster, moved.sent, moved.received, "Ping ended"),
        Err(RelayError::Failed(failure)) => {
            record.failed(failure.error);
            debug!(%cluster, error = %failure, "Ping cannot be sent");
        }
        Err(error) => debug!(%cluster, %error, "Ping broke"),
    }
}

/// Opens a stream for a flow; ready when the far side has answered the dial.
/// The flow counts on its connection until the client is dropped.
pub(crate) async fn dial(
    manager: &Manager,
    target: OpenTarget,
) -> Result<(FrameStream, FlowClient), DialFailure> {
    let (mut frames, place) = open(manager, target)?;
    let answered = tokio::time::timeout(DIAL_DEADLINE, frames.receiver.recv()).await;
    let Ok(answer) = answered else {
        return Err(DialFailure::new(DialError::TimedOut, "no answer in time"));
    };
    match answer {
        Some(Ok(Frame::Opened)) => Ok((frames, place)),
        Some(Ok(Frame::Failed(failure))) => Err(failure),
        Some(Ok(Frame::Reset)) => Err(DialFailure::new(DialError::Refused, "reset")),
        Some(Ok(Frame::Open(_) | Frame::Data(_) | Frame::Whole(_) | Frame::Fin)) => {
            Err(lost("the traffic manager breaks the protocol"))
        }
        Some(Err(error)) => Err(lost(error.to_string())),
        None => Err(lost("the stream ended early")),
    }
}

/// Opens a stream for a flow, and waits for nothing: what is sent follows the
/// `Open` at once, and the answer is the first frame to be received.
fn open(manager: &Manager, target: OpenTarget) -> Result<(FrameStream, FlowClient), DialFailure> {
    let place = manager.flow_client();
    let place = place.ok_or_else(|| lost("the tunnel is down"))?;
    let frames = place.carry(Frame::Open(target));
    Ok((frames, place))
}

fn lost(detail: impl Into<String>) -> DialFailure {
    DialFailure::new(DialError::TunnelLost, detail)
}
