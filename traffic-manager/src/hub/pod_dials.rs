//! Dials that agents are asked to make in their pods.

use std::sync::Arc;

use kvpn_proto::flow::{DialError, DialFailure};
use kvpn_proto::v1;
use kvpn_tunnel::relay::FrameStream;
use tokio::sync::mpsc;
use tracing::debug;

use super::{Answerer, Hub, Inner, PendingDial, hand_over};
use crate::state::{Caller, NoPodRoute};

/// Why somebody is not asked to dial in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPodDials {
    #[error("only an agent that watches its claims dials in its pod")]
    NoAgent,
    #[error("somebody dials in that pod already")]
    Taken,
}

impl Hub {
    /// Takes an agent that dials in its pod, when its claims are watched. The dials for it
    /// come out of the receiver until that ends.
    pub(crate) fn open_pod_dials(
        &self,
        caller: &Caller,
    ) -> Result<mpsc::Receiver<v1::WatchPodDialsResponse>, NoPodDials> {
        let mut inner = self.lock();
        let link = inner.world.agent_link(caller).ok_or(NoPodDials::NoAgent)?;
        inner.lines.open_pod_dials(link).ok_or(NoPodDials::Taken)
    }

    /// Asks the agent of an engaged pod to dial a port of its localhost.
    pub(crate) fn dial_in_pod(
        self: &Arc<Self>,
        session: &str,
        engagement_uid: &str,
        port: u16,
    ) -> Result<PendingDial, DialFailure> {
        let mut inner = self.lock();
        let takes_dials = |link| inner.lines.takes_pod_dials(link);
        let world = &inner.world;
        let route = world.pod_route(session, engagement_uid, port, takes_dials);
        let route = route.map_err(|why| {
            let error = match why {
                NoPodRoute::NoEngagement | NoPodRoute::NotListed(_) => DialError::Prohibited,
                NoPodRoute::NoPod(_) => DialError::TunnelLost,
            };
            DialFailure::new(error, why.to_string())
        })?;
        debug!(session, pod = %route.pod, port, "dial in a pod");
        let dial = inner.lines.dial_in_pod(&route, port);
        let (id, answer) = dial.ok_or_else(|| {
            let detail = format!("the agent of pod {} does not keep up", route.pod.name);
            DialFailure::new(DialError::TunnelLost, detail)
        })?;
        Ok(PendingDial {
            hub: Arc::clone(self),
            id,
            whom: "the pod's agent",
            answer,
        })
    }

    /// Hands over the answer of an agent, or of a reader, to a dial. Gives it back when there
    /// is no such dial for those of that pod.
    pub(crate) fn answer_in_pod(
        &self,
        caller: &Caller,
        dial_id: &str,
        frames: FrameStream,
    ) -> Result<(), FrameStream> {
        let mut inner = self.lock();
        let Inner { world, lines, .. } = &mut *inner;
        let agent = world.agent_link(caller).into_iter();
        let mut links = agent.chain(world.reader_links(caller));
        let pending = links.find_map(|link| lines.take_dial(&Answerer::Agent(link), dial_id));
        drop(links);
        drop(inner);
        hand_over(pending, frames)
    }
}
