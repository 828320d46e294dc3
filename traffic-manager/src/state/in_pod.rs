//! Which pod a session is led into that wants a port of its localhost.

use kvpn_proto::crd::WorkloadRef;

use super::{Caller, Key, LinkId, World};

/// The agent that dials for a session, its pod, and the claim by which it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodRoute {
    pub(crate) link: LinkId,
    pub(crate) pod: Key,
    pub(crate) claim_id: String,
}

/// Why nobody dials for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPodRoute {
    #[error("the session has no such engagement")]
    NoEngagement,
    #[error("the engagement does not list port {0} of its pods")]
    NotListed(u16),
    #[error("no pod of {0} is covered at the moment, by an agent that dials in it")]
    NoPod(WorkloadRef),
}

impl World {
    /// The way to a port of a pod's localhost: only a port that an engagement of the
    /// session's lists, in a pod where its claims are in force and whose agent takes dials.
    /// Of several it is the oldest, which stays the same whatever pods come, and also after
    /// the traffic manager was started again.
    pub(crate) fn pod_route(
        &self,
        session: &str,
        engagement_uid: &str,
        port: u16,
        takes_dials: impl Fn(LinkId) -> bool,
    ) -> Result<PodRoute, NoPodRoute> {
        let view = self
            .engagements_of(session)
            .find(|view| view.uid == engagement_uid)
            .ok_or(NoPodRoute::NoEngagement)?;
        if !view.spec.to_pod.contains(&port) {
            return Err(NoPodRoute::NotListed(port));
        }
        let running = self.pods.in_namespace(&view.key.namespace);
        let running = running.filter(|pod| pod.is_running());
        let covered = running.filter_map(|pod| {
            let slot = self.slots.get(&pod.uid)?;
            let link = slot.link().filter(|link| takes_dials(*link))?;
            let mut own = slot.claims().claims.iter();
            let claim = own.find(|claim| {
                claim.is_of(engagement_uid)
                    && claim.pod_ports.contains(&port)
                    && slot.has_taken(&claim.id)
            });
            Some((pod, link, claim?))
        });
        let (pod, link, claim) = covered
            .min_by_key(|(pod, ..)| (pod.created, &pod.key))
            .ok_or_else(|| NoPodRoute::NoPod(view.spec.workload.clone()))?;
        Ok(PodRoute {
            link,
            pod: pod.key.clone(),
            claim_id: claim.id.clone(),
        })
    }

    /// The call of the agent that a caller is, while that watches its claims.
    pub(crate) fn agent_link(&self, caller: &Caller) -> Option<LinkId> {
        let pod = self.calling_pod(caller)?;
        self.slots.get(&pod.uid)?.link()
    }
}
