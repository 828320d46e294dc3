//! What engagements want to read: of which pod, how far that is, and by which reader.

use std::collections::BTreeMap;

use kvpn_proto::crd::{FileAccess, Verb, WorkloadRef, condition};

use super::agents::{AgentSlot, AgentStatus};
use super::engagements::{EngagementRecord, EngagementView, Standing};
use super::pods::Pods;
use super::status::Says;
use super::{AgentRejected, Caller, Key, LinkId, PodView, World};

/// Why nothing can be read for a session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoReader {
    #[error("the session has no such engagement")]
    NoEngagement,
    #[error("the engagement does not ask for that")]
    NotAsked,
    #[error("no pod of {0} can be read at the moment")]
    NotThere(WorkloadRef),
}

/// The reader that reads for a session, and its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReadRoute {
    pub(crate) link: LinkId,
    pub(crate) pod: Key,
}

impl EngagementRecord {
    /// Chooses the pod that is read: the same for as long as it runs, the first by name
    /// otherwise.
    pub(super) fn choose_read(&mut self, standing: &Standing) {
        let running = match standing {
            Standing::Admitted { pods, .. } if self.view.spec.reads() => pods.as_slice(),
            Standing::Admitted { .. } | Standing::Unclaimed { .. } => &[],
        };
        let same = self.reads.take().filter(|pod| running.contains(pod));
        self.reads = same.or_else(|| running.first().cloned());
    }

    /// The container that is read, where that is possible, and its pod.
    pub(super) fn read<'a>(&'a self, pods: &'a Pods) -> Option<(&'a PodView, &'a str)> {
        let pod = self.reads.as_ref().and_then(|key| pods.get(key))?;
        let container = self.view.spec.container.as_deref()?;
        obstacle(&self.view, pod)
            .is_none()
            .then_some((pod, container))
    }
}

/// Why a container of a pod cannot be read, for people.
pub(super) fn obstacle(view: &EngagementView, pod: &PodView) -> Option<String> {
    let name = &pod.key.name;
    if pod.host_network {
        return Some(format!(
            "pod {name} uses its node's network, where a reader could not be told from others"
        ));
    }
    if pod.shares_processes {
        return Some(format!(
            "pod {name} shares one process namespace among its containers, so that no reader \
             sees one of them alone"
        ));
    }
    match &view.spec.container {
        None => Some("it names no container to read".to_owned()),
        Some(container) if !pod.probes.contains_key(container) => {
            Some(format!("pod {name} has no container {container}"))
        }
        Some(_) => None,
    }
}

/// Whether what an engagement wants to read is there.
pub(super) fn readiness(
    record: &EngagementRecord,
    pods: &Pods,
    slots: &BTreeMap<String, AgentSlot>,
) -> Says {
    let Some(pod) = record.reads.as_ref().and_then(|key| pods.get(key)) else {
        let message = format!("{} has no running pod", record.view.spec.workload);
        return Says::no(condition::NO_RUNNING_POD, message);
    };
    if let Some(obstacle) = obstacle(&record.view, pod) {
        return Says::no(condition::NOT_SUPPORTED, obstacle);
    }
    let container = record.view.spec.container.as_deref().unwrap_or_default();
    let name = &pod.key.name;
    let status = match slots.get(&pod.uid) {
        Some(slot) => slot.readers.status(name, container),
        None => AgentStatus::Progressing(format!("pod {name} has no reader yet")),
    };
    match status {
        AgentStatus::Ready => Says::yes(format!("container {container} of pod {name} can be read")),
        AgentStatus::Progressing(message) => Says::no(condition::PROGRESSING, message),
        AgentStatus::Failed(message) => Says::no(condition::AGENT_FAILED, message),
        AgentStatus::Refused(message) => Says::no(condition::AGENT_REFUSED, message),
    }
}

impl EngagementView {
    /// Why what it asks for does not go with its verb, for people.
    pub(super) fn misfit(&self) -> Option<String> {
        let verb = self.spec.verb;
        let is_empty = match verb {
            // What takes traffic is judged by its verb, which is to tell.
            Verb::Ingest if !self.spec.ports.is_empty() => {
                return Some("an ingest takes no ports".to_owned());
            }
            Verb::Wiretap if self.spec.files.is_some_and(|it| it.writable) => {
                return Some("a wiretap changes no files".to_owned());
            }
            Verb::Ingest => !self.spec.reads(),
            Verb::Intercept | Verb::Wiretap | Verb::Replace => self.spec.ports.is_empty(),
        };
        is_empty.then(|| format!("the {} asks for nothing", verb.as_str()))
    }
}

impl World {
    /// The reader that reads the environment which an engagement of a session's asks for.
    pub(crate) fn read_route(
        &self,
        session: &str,
        engagement_uid: &str,
    ) -> Result<ReadRoute, NoReader> {
        let record = self.reading(session, engagement_uid)?;
        match record.view.spec.environment {
            true => self.reader_of(record),
            false => Err(NoReader::NotAsked),
        }
    }

    /// The reader that serves the files which an engagement of a session's asks for, and
    /// what may be done with them.
    pub(crate) fn files_route(
        &self,
        session: &str,
        engagement_uid: &str,
    ) -> Result<(ReadRoute, FileAccess), NoReader> {
        let record = self.reading(session, engagement_uid)?;
        let access = record.view.spec.files.ok_or(NoReader::NotAsked)?;
        Ok((self.reader_of(record)?, access))
    }

    /// The calls of the readers of the pod that a caller is in.
    pub(crate) fn reader_links(&self, caller: &Caller) -> impl Iterator<Item = LinkId> {
        let slot = self.calling_pod(caller);
        let slot = slot.and_then(|pod| self.slots.get(&pod.uid));
        slot.into_iter().flat_map(|slot| slot.readers.links())
    }

    fn reading(&self, session: &str, engagement_uid: &str) -> Result<&EngagementRecord, NoReader> {
        let mut records = self.engagements.values();
        records
            .find(|it| it.view.uid == engagement_uid && it.view.spec.session == session)
            .ok_or(NoReader::NoEngagement)
    }

    fn reader_of(&self, record: &EngagementRecord) -> Result<ReadRoute, NoReader> {
        let route = || {
            let (pod, container) = record.read(&self.pods)?;
            let link = self.slots.get(&pod.uid)?.readers.link(container)?;
            let pod = pod.key.clone();
            Some(ReadRoute { link, pod })
        };
        route().ok_or_else(|| NoReader::NotThere(record.view.spec.workload.clone()))
    }

    /// The pod of a caller, and the container that it reads, when that container is a reader
    /// of ours.
    pub(crate) fn identify_reader(
        &self,
        caller: &Caller,
        container: &str,
    ) -> Result<(String, Key, String), AgentRejected> {
        let pod = self.calling_pod(caller);
        let pod = pod.ok_or_else(|| AgentRejected::NoPod(caller.clone()))?;
        let image = &self.settings.agent_image;
        let slot = self.slots.get(&pod.uid);
        let mut readers = pod.readers.iter();
        let target = match readers.find(|it| it.name == container) {
            Some(shown) if shown.has_ended() => None,
            Some(shown) if shown.image == *image => Some(shown.target.as_str()),
            Some(_) | None => slot.and_then(|slot| slot.readers.target_of_added(container)),
        };
        let target = target
            .ok_or_else(|| AgentRejected::NoContainer(pod.key.clone(), container.to_owned()))?;
        if slot.is_some_and(|slot| slot.readers.is_linked_elsewhere(target, container, pod)) {
            return Err(AgentRejected::Read(pod.key.clone(), target.to_owned()));
        }
        Ok((pod.uid.clone(), pod.key.clone(), target.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::engagement;

    #[test]
    fn ingest_changes_files_where_it_says_so_and_a_wiretap_never() {
        let misfit = |verb, writable| {
            let mut view = engagement("web-a", "alice", 8080, 0);
            view.spec.verb = verb;
            view.spec.ports.retain(|_| verb != Verb::Ingest);
            view.spec.files = Some(FileAccess {
                writable,
                root: false,
            });
            view.misfit()
        };
        for (verb, writable) in [
            (Verb::Intercept, true),
            (Verb::Replace, true),
            (Verb::Ingest, true),
            (Verb::Ingest, false),
            (Verb::Wiretap, false),
        ] {
            assert_eq!(misfit(verb, writable), None, "{verb:?} {writable}");
        }
        let refused = misfit(Verb::Wiretap, true).unwrap();
        assert_eq!(refused, "a wiretap changes no files");
    }
}
