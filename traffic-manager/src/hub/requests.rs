//! What becomes of requests, as agents tell it: summed up for sessions, and passed on to
//! who reads a log.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use kvpn_proto::v1::{
    self, Decision, LogReader, ReportRequestsRequest, RequestCounts, WatchRequestsResponse,
};
use tokio::sync::{mpsc, watch};

use super::Hub;
use crate::state::{Caller, EngagementView, Key, World};

/// How many decisions may wait for a reader. Those for whom there is no room are left out.
const QUEUED: usize = 1_024;

/// An agent: the UID of its pod, and its container.
type AgentId = (String, String);

/// One life of an agent, by when it began.
type Life = (AgentId, u64);

/// What agents have told, and the readers of it.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By the ids of claims. Agents tell totals of their lives.
    counts: HashMap<String, HashMap<Life, RequestCounts>>,
    readers: BTreeMap<u64, Reader>,
    /// The latest reader's.
    latest: u64,
    /// The number of the latest change of the readers.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Reader {
    namespace: String,
    engagement_uid: String,
    earlier_only: bool,
    decisions: mpsc::Sender<WatchRequestsResponse>,
    left_out: u64,
    /// The number of the latest decision told, by agent. Those not in it have not told yet
    /// what the reader has missed.
    told: HashMap<AgentId, u64>,
}

impl Reader {
    fn tell(&mut self, mut told: WatchRequestsResponse) {
        told.left_out = self.left_out;
        self.left_out = match self.decisions.try_send(told) {
            Ok(()) => 0,
            Err(_) => self.left_out.saturating_add(1),
        };
    }

    /// Whether a decision is new to it, which from now on it is not.
    fn is_news(&mut self, agent: &AgentId, decision: &Decision) -> bool {
        match self.told.get_mut(agent) {
            Some(latest) if decision.number > *latest => {
                *latest = decision.number;
                true
            }
            Some(_) | None => false,
        }
    }
}

/// An agent's open `ReportRequests`.
#[derive(Debug)]
pub(crate) struct Reporting {
    hub: Arc<Hub>,
    pod: Key,
    agent: AgentId,
    changes: watch::Receiver<u64>,
}

/// A session's open `WatchRequests`. Dropping it ends the reading.
#[derive(Debug)]
pub(crate) struct Reading {
    hub: Arc<Hub>,
    id: u64,
    engagement_uid: String,
}

impl Hub {
    /// Takes an agent's reports, when its claims are watched.
    pub(crate) fn open_report(self: &Arc<Self>, caller: &Caller) -> Option<Reporting> {
        let inner = self.lock();
        let (pod, agent) = inner.world.linked_agent(caller)?;
        let mut changes = inner.requests.changes.subscribe();
        // There may be readers already.
        changes.mark_changed();
        Some(Reporting {
            hub: Arc::clone(self),
            pod,
            agent,
            changes,
        })
    }

    /// What became of the requests of a session's engagements.
    pub(crate) fn count_requests(&self, session: &str) -> Vec<v1::EngagementCounts> {
        let inner = self.lock();
        let own = inner.world.engagements_of(session);
        own.map(|engagement| v1::EngagementCounts {
            namespace: engagement.key.namespace.clone(),
            name: engagement.key.name.clone(),
            counts: Some(inner.requests.sum(&engagement.uid)),
        })
        .collect()
    }

    /// Lets a session read what becomes of requests at the ports of one of its
    /// engagements, until that is gone; `None` if it has no such engagement.
    pub(crate) fn read_requests(
        self: &Arc<Self>,
        session: &str,
        engagement: &Key,
        earlier_only: bool,
    ) -> Option<(mpsc::Receiver<WatchRequestsResponse>, Reading)> {
        let mut inner = self.lock();
        let mut own = inner.world.engagements_of(session);
        let uid = own.find(|it| it.key == *engagement)?.uid.clone();
        drop(own);
        let (decisions, receiver) = mpsc::channel(QUEUED);
        let requests = &mut inner.requests;
        // Not that of one before a restart.
        requests.latest = (requests.latest + 1).max(microseconds());
        let id = requests.latest;
        let reader = Reader {
            namespace: engagement.namespace.clone(),
            engagement_uid: uid.clone(),
            earlier_only,
            decisions,
            left_out: 0,
            told: HashMap::new(),
        };
        requests.readers.insert(id, reader);
        requests.note_change();
        let reading = Reading {
            hub: Arc::clone(self),
            id,
            engagement_uid: uid,
        };
        Some((receiver, reading))
    }
}

impl Reading {
    /// Of what is read.
    pub(crate) fn engagement_uid(&self) -> &str {
        &self.engagement_uid
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.requests.readers.remove(&self.id);
        inner.requests.note_change();
    }
}

impl Reporting {
    pub(crate) fn pod(&self) -> &Key {
        &self.pod
    }

    /// Waits until others read than before, and says who reads what is in the pod's
    /// namespace.
    pub(crate) async fn readers(&mut self) -> v1::ReportRequestsResponse {
        // The hub has the sender.
        let _ = self.changes.changed().await;
        let inner = self.hub.lock();
        let readers = inner.requests.readers.iter();
        let near = readers.filter(|(_, reader)| reader.namespace == self.pod.namespace);
        let told = near.map(|(id, reader)| LogReader {
            id: *id,
            engagement_uid: reader.engagement_uid.clone(),
        });
        v1::ReportRequestsResponse {
            readers: told.collect(),
        }
    }

    /// Takes a report in. What is about other pods' claims is left out.
    pub(crate) fn report(&self, report: ReportRequestsRequest) {
        let mut inner = self.hub.lock();
        let super::Inner {
            world, requests, ..
        } = &mut *inner;
        let namespace = &self.pod.namespace;
        let life: Life = (self.agent.clone(), report.counted_since);
        for counted in report.counts {
            let id = counted.claim_id;
            let has_told = requests
                .counts
                .get(&id)
                .is_some_and(|it| it.contains_key(&life));
            let is_known = engagement(world, namespace, &id).is_some()
                && (has_told || world.has_claim(&self.agent.0, &id));
            if let Some(counts) = counted.counts.filter(|_| is_known) {
                let agents = requests.counts.entry(id).or_default();
                agents.insert(life.clone(), counts);
            }
        }
        let claimed = |uid: &str, decision: &Decision| {
            let mut claimed = world.claimed_ports(&self.agent.0, uid);
            claimed.any(|port| u32::from(port) == decision.container_port)
        };
        for earlier in report.earlier {
            let reader = requests.readers.get_mut(&earlier.reader);
            let Some(reader) = reader.filter(|it| it.namespace == *namespace) else {
                continue;
            };
            // It may have told them over a connection before.
            reader.told.entry(self.agent.clone()).or_default();
            for decision in earlier.decisions {
                if claimed(&reader.engagement_uid, &decision)
                    && reader.is_news(&self.agent, &decision)
                {
                    reader.tell(self.line(world, decision));
                }
            }
        }
        let readers = requests.readers.values_mut();
        for reader in readers.filter(|reader| !reader.earlier_only) {
            let uid = reader.engagement_uid.clone();
            let its = report.decisions.iter().filter(|it| claimed(&uid, it));
            for decision in its {
                if reader.is_news(&self.agent, decision) {
                    reader.tell(self.line(world, decision.clone()));
                }
            }
            if world.claimed_ports(&self.agent.0, &uid).next().is_some() {
                let left_out = report.decisions_left_out;
                reader.left_out = reader.left_out.saturating_add(left_out);
            }
        }
    }

    fn line(&self, world: &World, decision: Decision) -> WatchRequestsResponse {
        let engagement = engagement(world, &self.pod.namespace, &decision.claim_id);
        let (engagement, user) = engagement
            .map(|it| (it.key.name.clone(), it.spec.user.clone()))
            .unwrap_or_default();
        WatchRequestsResponse {
            decision: Some(decision),
            pod: self.pod.name.clone(),
            engagement,
            user,
            left_out: 0,
        }
    }
}

impl Requests {
    fn note_change(&self) {
        self.changes.send_modify(|number| *number += 1);
    }

    fn sum(&self, engagement_uid: &str) -> RequestCounts {
        let claims = self.counts.iter();
        let its = claims.filter(|(id, _)| uid_of(id) == Some(engagement_uid));
        let all = its.flat_map(|(_, agents)| agents.values());
        all.fold(RequestCounts::default(), |sum, one| RequestCounts {
            matched: sum.matched.saturating_add(one.matched),
            passed: sum.passed.saturating_add(one.passed),
            failed: sum.failed.saturating_add(one.failed),
            tls_passed: sum.tls_passed.saturating_add(one.tls_passed),
            tls_failed: sum.tls_failed.saturating_add(one.tls_failed),
        })
    }

    /// Forgets engagements that are gone, and ends the reading of their logs.
    pub(super) fn forget_the_gone(&mut self, world: &World) {
        self.counts
            .retain(|id, _| uid_of(id).is_some_and(|uid| world.engagement(uid).is_some()));
        let before = self.readers.len();
        self.readers
            .retain(|_, reader| world.engagement(&reader.engagement_uid).is_some());
        if self.readers.len() != before {
            self.note_change();
        }
    }
}

/// Since 1970.
fn microseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or_default()
}

fn uid_of(claim_id: &str) -> Option<&str> {
    claim_id.split_once('/').map(|(uid, _)| uid)
}

/// The engagement of a claim, if it is in that namespace.
fn engagement<'a>(world: &'a World, namespace: &str, claim_id: &str) -> Option<&'a EngagementView> {
    let found = world.engagement(uid_of(claim_id)?)?;
    (found.key.namespace == namespace).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decision_that_was_told_as_an_earlier_one_is_no_news() {
        let mut reader = Reader {
            namespace: "shop".into(),
            engagement_uid: "uid".into(),
            earlier_only: false,
            decisions: mpsc::channel(1).0,
            left_out: 0,
            told: HashMap::new(),
        };
        let agent: AgentId = ("pod".into(), "kvpn-agent-abcde".into());
        let numbered = |number| Decision {
            number,
            ..Decision::default()
        };
        assert!(!reader.is_news(&agent, &numbered(1)), "what was before it");
        reader.told.entry(agent.clone()).or_default();
        assert!(reader.is_news(&agent, &numbered(2)));
        assert!(!reader.is_news(&agent, &numbered(2)));
        assert!(reader.is_news(&agent, &numbered(3)));
    }
}
