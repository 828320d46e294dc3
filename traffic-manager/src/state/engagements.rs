//! Engagements: what they ask for, and which of them may have it.

mod holding;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use kvpn_proto::crd::{
    Engagement, EngagementSpec, EngagementStatus, OnFailure, Verb, WorkloadKind, condition,
};
use kvpn_proto::filter::{self, Filter, FilterError};
use kvpn_proto::flow::Protocol;
use kvpn_proto::tls::TlsIdentity;

pub(crate) use holding::{Laptop, whole_second};

use super::pods::Pods;
use super::sessions::{DELETE_AGAIN, SessionRecord};
use super::{Identified, Key, Now, PodView, reading, replace};

/// How long a workload that selects no pod is taken for what it was.
const RESOLVE_AGAIN: Duration = Duration::from_secs(5);

/// What is needed of an Engagement resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EngagementView {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) created: Timestamp,
    /// `metadata.generation`.
    pub(crate) observed: Option<i64>,
    pub(crate) terminating: bool,
    pub(crate) spec: EngagementSpec,
    pub(crate) status: Option<EngagementStatus>,
}

impl Identified for EngagementView {
    fn key(&self) -> &Key {
        &self.key
    }

    fn uid(&self) -> &str {
        &self.uid
    }
}

impl From<&Engagement> for EngagementView {
    fn from(engagement: &Engagement) -> Self {
        let metadata = &engagement.metadata;
        Self {
            key: Key::new(
                metadata.namespace.clone().unwrap_or_default(),
                metadata.name.clone().unwrap_or_default(),
            ),
            uid: metadata.uid.clone().unwrap_or_default(),
            created: metadata
                .creation_timestamp
                .as_ref()
                .map_or(Timestamp::MAX, |time| time.0),
            observed: metadata.generation,
            terminating: metadata.deletion_timestamp.is_some(),
            spec: engagement.spec.clone(),
            status: engagement.status.clone(),
        }
    }
}

/// What a workload turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resolution {
    Selector(Selector),
    Missing,
    /// The API server's words on why it cannot be read.
    Unreadable(String),
}

/// An Engagement and what is known of its workload.
#[derive(Debug)]
pub(crate) struct EngagementRecord {
    pub(crate) view: EngagementView,
    /// Which requests it takes, if not all; or why it can take none.
    filter: Result<Option<Filter>, FilterError>,
    /// Its place among all engagements ever seen; tells apart those that were
    /// created within one second.
    arrived: u64,
    pub(crate) workload: Option<Resolution>,
    /// When the workload is to be read again. `None` while it is being read.
    resolve_at: Option<Instant>,
    /// What the resource's status says.
    pub(crate) written: EngagementStatus,
    /// Since when its session does not exist.
    orphan_since: Option<Instant>,
    /// When the resource's deletion was last asked for.
    delete_asked: Option<Instant>,
    /// Since when others are kept from what it asks for.
    pub(super) held_since: Option<Timestamp>,
    /// What agents end clients' TLS with, once the session has given it.
    tls: Option<TlsIdentity>,
    /// It had its claims before this process was started, and agents may still have what they
    /// ended TLS with.
    has_had_tls: bool,
    /// The pod that is read.
    pub(super) reads: Option<Key>,
}

impl Identified for EngagementRecord {
    fn key(&self) -> &Key {
        &self.view.key
    }

    fn uid(&self) -> &str {
        &self.view.uid
    }
}

impl EngagementRecord {
    pub(crate) fn new(view: EngagementView, arrived: u64, now: &Now) -> Self {
        let written = view.status.clone().unwrap_or_default();
        Self {
            held_since: written.held_since.as_ref().map(|time| time.0),
            has_had_tls: was_admitted(&written),
            written,
            filter: compile(&view),
            view,
            arrived,
            workload: None,
            resolve_at: Some(now.instant),
            orphan_since: None,
            delete_asked: None,
            tls: None,
            reads: None,
        }
    }

    /// Takes what the resource says now.
    pub(crate) fn update(&mut self, view: EngagementView, now: &Now) {
        if view.spec.workload != self.view.spec.workload {
            self.workload = None;
            self.resolve_at = Some(now.instant);
        }
        self.filter = compile(&view);
        self.view = view;
    }

    /// Takes what the session gives to end clients' TLS with.
    pub(crate) fn handle_tls_given(&mut self, identity: TlsIdentity) {
        self.tls = Some(identity);
    }

    /// What clients' TLS is ended with, if it is to be.
    pub(super) fn tls(&self) -> Option<&TlsIdentity> {
        self.tls.as_ref().filter(|_| self.view.spec.terminates_tls)
    }

    /// Whether it cannot do anything yet, for lack of that.
    fn lacks_tls(&self) -> bool {
        self.view.spec.terminates_tls && self.tls.is_none() && !self.has_had_tls
    }

    /// Whether a request may fit both, or both want all that no filter takes. Copies take
    /// nothing away.
    fn overlaps(&self, other: &Self) -> bool {
        if [self, other]
            .map(|it| it.view.spec.verb)
            .contains(&Verb::Wiretap)
        {
            return false;
        }
        match (&self.filter, &other.filter) {
            (Ok(ours), Ok(theirs)) => filter::overlap(ours.as_ref(), theirs.as_ref()),
            // What cannot be used takes nothing.
            (Err(_), _) | (_, Err(_)) => false,
        }
    }

    /// Whether nobody answers for its laptop, also when that is not connected.
    pub(super) fn fails_closed(&self) -> bool {
        self.view.spec.on_failure == Some(OnFailure::Unavailable)
    }

    /// Whether the workload should be read now. True once for each reading.
    pub(crate) fn should_resolve(&mut self, pods: &Pods, now: &Now) -> bool {
        let settled = match &self.workload {
            Some(Resolution::Selector(_)) => self.select(pods).next().is_some(),
            Some(Resolution::Missing | Resolution::Unreadable(_)) | None => false,
        };
        let by_name = self.view.spec.workload.kind == WorkloadKind::Pod;
        let due = self.resolve_at.is_some_and(|at| now.instant >= at);
        if by_name || settled || !due {
            return false;
        }
        self.resolve_at = None;
        true
    }

    pub(crate) fn handle_resolved(&mut self, resolution: Resolution, now: &Now) {
        self.workload = Some(resolution);
        self.resolve_at = Some(now.instant + RESOLVE_AGAIN);
    }

    /// The pods that the workload selects, running or not.
    fn select<'a>(&'a self, pods: &'a Pods) -> impl Iterator<Item = &'a PodView> + 'a {
        let workload = &self.view.spec.workload;
        let by_name = workload.kind == WorkloadKind::Pod;
        let named = by_name
            .then(|| Key::new(&self.view.key.namespace, &workload.name))
            .and_then(|key| pods.get(&key));
        let selector = match &self.workload {
            Some(Resolution::Selector(selector)) if !by_name => Some(selector),
            Some(Resolution::Selector(_) | Resolution::Missing | Resolution::Unreadable(_))
            | None => None,
        };
        let selected = selector.into_iter().flat_map(move |selector| {
            pods.in_namespace(&self.view.key.namespace)
                .filter(move |pod| selector.matches(&pod.labels))
        });
        named.into_iter().chain(selected)
    }

    /// Follows the existence of the session. Returns whether the resource
    /// should be deleted now, since it has outlived the session by the grace.
    /// True once, and again when that had no effect.
    pub(crate) fn expires(&mut self, session_exists: bool, grace: Duration, now: &Now) -> bool {
        if session_exists {
            self.orphan_since = None;
            return false;
        }
        self.orphan_since.get_or_insert(now.instant);
        let due = self.delete_at(grace).is_some_and(|at| now.instant >= at);
        if due {
            self.delete_asked = Some(now.instant);
        }
        due
    }

    fn delete_at(&self, grace: Duration) -> Option<Instant> {
        let over = self.orphan_since? + grace;
        let again = self.delete_asked.map(|at| at + DELETE_AGAIN);
        Some(again.map_or(over, |again| over.max(again)))
    }

    /// When time alone changes something.
    pub(crate) fn deadline(&self, grace: Duration, pods: &Pods) -> Option<Instant> {
        let unsettled =
            self.view.spec.workload.kind != WorkloadKind::Pod && self.select(pods).next().is_none();
        let resolve = self.resolve_at.filter(|_| unsettled);
        self.delete_at(grace).into_iter().chain(resolve).min()
    }
}

/// Whether an engagement gets its claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It gets none, for a reason of [`condition`].
    Unclaimed {
        reason: &'static str,
        message: String,
        selected: u32,
    },
    /// It gets them while its session is present, or when nobody may answer for it.
    Admitted {
        pods: Vec<Key>,
        /// Pods that do not run yet, and whose agents do, and those that end. They get
        /// claims like the others, and are not counted.
        passing: Vec<Key>,
        laptop: Laptop,
    },
}

impl Standing {
    fn unclaimed(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Unclaimed {
            reason,
            message: message.into(),
            selected: 0,
        }
    }
}

/// Who keeps others from a port of a pod, or from requests of it.
type Held<'a> = HashMap<(Key, u16, Protocol), Vec<(&'a EngagementRecord, Laptop)>>;

/// Decides about all engagements of one namespace. `engagements` are in any
/// order; of two that want one port, or requests of it that both filters take, the
/// one that has it keeps it, and else the older one gets it. Who is absent for too long
/// keeps nothing from others.
pub(crate) fn decide<'a>(
    engagements: impl Iterator<Item = &'a EngagementRecord>,
    sessions: &BTreeMap<Key, SessionRecord>,
    sessions_namespace: &str,
    pods: &Pods,
    manager: &Key,
) -> BTreeMap<Key, Standing> {
    let mut admitted = Vec::new();
    let mut standings = BTreeMap::new();
    for record in engagements {
        let session = sessions.get(&Key::new(sessions_namespace, &record.view.spec.session));
        let standing = admit(record, session, pods, manager);
        if let Standing::Admitted { laptop, .. } = &standing {
            admitted.push((record, *laptop));
        }
        standings.insert(record.view.key.clone(), standing);
    }
    let present = admitted.iter().filter(|(_, laptop)| laptop.is_present());
    let present: Vec<_> = present.map(|(record, _)| *record).collect();
    for (record, laptop) in &mut admitted {
        if let Laptop::Away(since) = *laptop
            && present.iter().any(|it| record.is_in_its_users_way(it))
        {
            *laptop = Laptop::Idle(since);
        }
    }
    admitted.sort_by_key(|(record, laptop)| record.turn(*laptop));
    let mut held = Held::new();
    for (record, is_at) in admitted {
        let Some(standing) = standings.get_mut(&record.view.key) else {
            continue;
        };
        let Standing::Admitted {
            pods,
            passing,
            laptop,
        } = standing
        else {
            continue;
        };
        *laptop = is_at;
        if !record.holds(is_at) {
            continue;
        }
        let wanted = wanted(record, pods.iter().chain(&*passing));
        let holder = wanted.iter().find_map(|want| {
            let mut holders = held.get(want)?.iter();
            Some((want, holders.find(|(holder, _)| record.overlaps(holder))?))
        });
        if let Some(((_, port, protocol), (holder, laptop))) = holder {
            *standing = Standing::Unclaimed {
                reason: condition::CONFLICT,
                message: holding::conflict((*port, *protocol), holder, *laptop),
                selected: count(pods),
            };
        } else {
            for want in wanted {
                held.entry(want).or_default().push((record, is_at));
            }
        }
    }
    standings
}

/// Decides about an engagement as if it were alone.
fn admit(
    record: &EngagementRecord,
    session: Option<&SessionRecord>,
    pods: &Pods,
    manager: &Key,
) -> Standing {
    let spec = &record.view.spec;
    let session = match session {
        None => {
            let message = format!("session {} does not exist", spec.session);
            return Standing::unclaimed(condition::NO_SESSION, message);
        }
        Some(session) if session.view.user != spec.user => {
            let message = format!("session {} is not {}'s", spec.session, spec.user);
            return Standing::unclaimed(condition::NO_SESSION, message);
        }
        Some(session) => session,
    };
    if let Some(message) = record.view.misfit() {
        return Standing::unclaimed(condition::NOT_SUPPORTED, message);
    }
    if let Err(error) = &record.filter {
        let message = format!("its filter cannot be used: {error}");
        return Standing::unclaimed(condition::NOT_SUPPORTED, message);
    }
    let mut ports = spec.ports.iter();
    if let Some(port) = ports.find(|port| port.protocol == Protocol::Udp)
        && spec.http.is_some()
    {
        let message = format!(
            "port {} is UDP, whose datagrams no filter of HTTP requests can choose among",
            port.container_port
        );
        return Standing::unclaimed(condition::NOT_SUPPORTED, message);
    }
    match &record.workload {
        _ if spec.workload.kind == WorkloadKind::Pod => {
            if record.select(pods).next().is_none() {
                return missing(record);
            }
        }
        None => {
            let message = format!("looking up {}", spec.workload);
            return Standing::unclaimed(condition::PROGRESSING, message);
        }
        Some(Resolution::Missing) => return missing(record),
        Some(Resolution::Unreadable(words)) => {
            let message = format!("{} cannot be read: {words}", spec.workload);
            return Standing::unclaimed(condition::NOT_SUPPORTED, message);
        }
        Some(Resolution::Selector(_)) => {}
    }
    let running: Vec<&PodView> = record.select(pods).filter(|pod| pod.is_running()).collect();
    let passing = record.select(pods);
    let passing = passing.filter(|pod| pod.is_starting() || pod.is_leaving());
    let passing: Vec<Key> = passing.map(|pod| pod.key.clone()).collect();
    if running.is_empty() && passing.is_empty() {
        return Standing::unclaimed(condition::NO_RUNNING_POD, no_running_pod(record));
    }
    let keys: Vec<Key> = running.iter().map(|pod| pod.key.clone()).collect();
    let unsupported = running.iter().find_map(|pod| {
        if pod.key == *manager {
            Some("the traffic manager itself cannot be engaged".to_owned())
        } else if spec.verb == Verb::Ingest {
            reading::obstacle(&record.view, pod)
        } else if pod.host_network {
            Some(format!(
                "pod {} uses its node's network, where an agent would catch the traffic of others",
                pod.key.name
            ))
        } else if spec.verb == Verb::Replace {
            replace::obstacle(&record.view, pod)
        } else {
            None
        }
    });
    match unsupported {
        Some(message) => Standing::Unclaimed {
            reason: condition::NOT_SUPPORTED,
            message,
            selected: count(&keys),
        },
        // Its filter would match nothing, and only seem to be in force.
        None if record.lacks_tls() => Standing::Unclaimed {
            reason: condition::NO_TLS_IDENTITY,
            message: format!(
                "{}'s session has not given the certificate and key for TLS yet",
                spec.user
            ),
            selected: count(&keys),
        },
        None => Standing::Admitted {
            pods: keys,
            passing,
            laptop: Laptop::of(session),
        },
    }
}

/// Why an engagement without any running pod is not active.
pub(crate) fn no_running_pod(record: &EngagementRecord) -> String {
    format!("{} has no running pod", record.view.spec.workload)
}

/// Whether an engagement of this status has had its claims.
fn was_admitted(written: &EngagementStatus) -> bool {
    let mut conditions = written.conditions.iter();
    written.held_since.is_some()
        || conditions
            .any(|it| it.type_ == condition::ACTIVE && it.reason == condition::SESSION_ABSENT)
}

fn compile(view: &EngagementView) -> Result<Option<Filter>, FilterError> {
    view.spec.http.as_ref().map(Filter::try_from).transpose()
}

fn missing(record: &EngagementRecord) -> Standing {
    let message = format!(
        "{} does not exist in namespace {}",
        record.view.spec.workload, record.view.key.namespace
    );
    Standing::unclaimed(condition::NO_SUCH_WORKLOAD, message)
}

fn wanted<'a>(
    record: &EngagementRecord,
    pods: impl Iterator<Item = &'a Key>,
) -> Vec<(Key, u16, Protocol)> {
    let ports = &record.view.spec.ports;
    pods.flat_map(|pod| {
        ports
            .iter()
            .map(|port| (pod.clone(), port.container_port, port.protocol))
    })
    .collect()
}

/// A number of pods, as a status has it.
pub(crate) fn count(pods: &[Key]) -> u32 {
    u32::try_from(pods.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
