//! Which pod a session is led into that wants a port of its localhost.

use kvpn_proto::crd::WorkloadRef;

use super::{Caller, Key, LinkId, World};

/// The agent that dials for a session, and its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodRoute {
    pub(crate) link: LinkId,
    pub(crate) pod: Key,
}

/// Why nobody dials for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPodRoute {
    #[error("the session has no such engagement")]
    NoEngagement,
    #[error("the engagement does not list port {0} of its pods")]
    NotListed(u16),
    #[error("no pod of {0} is covered at the moment")]
    NoPod(WorkloadRef),
}

impl World {
    /// The way to a port of a pod's localhost: only a port that an engagement of the
    /// session's lists, in a pod where its claims are in force. It is the same pod for as
    /// long as that is so, the first by name otherwise.
    pub(crate) fn pod_route(
        &mut self,
        session: &str,
        engagement_uid: &str,
        port: u16,
    ) -> Result<PodRoute, NoPodRoute> {
        let mut records = self.engagements.values_mut();
        let record = records
            .find(|it| it.view.uid == engagement_uid && it.view.spec.session == session)
            .ok_or(NoPodRoute::NoEngagement)?;
        if !record.view.spec.to_pod.contains(&port) {
            return Err(NoPodRoute::NotListed(port));
        }
        let running = self.pods.in_namespace(&record.view.key.namespace);
        let running = running.filter(|pod| pod.is_running());
        let covered: Vec<_> = running
            .filter_map(|pod| {
                let slot = self.slots.get(&pod.uid)?;
                let mut own = slot.claims().claims.iter();
                let is_covered = own.any(|claim| {
                    claim.is_of(engagement_uid)
                        && claim.pod_ports.contains(&port)
                        && slot.is_in_force(&claim.id)
                });
                Some((pod, slot.link().filter(|_| is_covered)?))
            })
            .collect();
        let mut same = covered.iter();
        let same = same.find(|(pod, _)| Some(&pod.uid) == record.entered.as_ref());
        let (pod, link) = same
            .or(covered.first())
            .ok_or_else(|| NoPodRoute::NoPod(record.view.spec.workload.clone()))?;
        record.entered = Some(pod.uid.clone());
        Ok(PodRoute {
            link: *link,
            pod: pod.key.clone(),
        })
    }

    /// The call of the agent that a caller is, while that watches its claims.
    pub(crate) fn agent_link(&self, caller: &Caller) -> Option<LinkId> {
        let pod = self.calling_pod(caller)?;
        self.slots.get(&pod.uid)?.link()
    }
}
