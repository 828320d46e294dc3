//! What this session engages at the moment.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvpn_proto::crd::{FileAccess, Verb, WorkloadKind, WorkloadRef};
use kvpn_proto::filter::HttpFilter;
use kvpn_proto::flow::Protocol;
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::{Failure, Reason, v1};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::mount::Mounted;
use super::outcome::{Observed, Progress, overlap};
use super::to_pod::{self, ToPod};
use crate::session::workloads::ResolvedPort;

/// Names an Engagement.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One engagement.
pub(super) struct Entry {
    pub(super) verb: Verb,
    pub(super) workload: WorkloadRef,
    pub(super) ports: Vec<ResolvedPort>,
    pub(super) http: Option<HttpFilter>,
    pub(super) fails_closed: bool,
    /// The container that is replaced, or whose ports are meant.
    pub(super) container: Option<String>,
    /// The workload is rolled out where only that brings the agent.
    pub(super) rolls_out: bool,
    /// What clients' TLS is ended with.
    pub(super) tls: Option<TlsIdentity>,
    pub(super) to_pod: Vec<ToPod>,
    /// The container's environment may be read.
    pub(super) environment: bool,
    /// What may be seen of its files.
    pub(super) files: Option<FileAccess>,
    /// Where they are mounted.
    mounted: Option<Mounted>,
    /// What the client has asked for.
    pub(super) asked: v1::InterceptRequest,
    /// The resource's, once it is made.
    uid: Option<String>,
    /// Who lets connections to these in.
    doors: JoinSet<()>,
    pub(super) observed: watch::Sender<Observed>,
    watcher: Option<AbortOnDropHandle<()>>,
    /// Gives that to the traffic manager.
    giver: Option<AbortOnDropHandle<()>>,
}

impl Entry {
    pub(super) fn new(
        verb: Verb,
        workload: WorkloadRef,
        ports: Vec<ResolvedPort>,
        http: Option<HttpFilter>,
        fails_closed: bool,
    ) -> Self {
        Self {
            verb,
            workload,
            ports,
            http,
            fails_closed,
            container: None,
            rolls_out: false,
            tls: None,
            to_pod: Vec::new(),
            environment: false,
            files: None,
            mounted: None,
            asked: v1::InterceptRequest::default(),
            uid: None,
            doors: JoinSet::new(),
            observed: watch::channel(Observed::default()).0,
            watcher: None,
            giver: None,
        }
    }

    pub(super) fn status(&self, key: &Key) -> v1::EngagementStatus {
        let observed = self.observed.borrow();
        let message = match &observed.progress {
            Progress::Waiting { message, .. } => message.clone(),
            Progress::Active => String::new(),
            Progress::Failed(failure) | Progress::RollOutNeeded(failure) => failure.message.clone(),
            Progress::Gone { by: None } => "deleted".to_owned(),
            Progress::Gone { by: Some(by) } => format!("deleted by {by}"),
        };
        v1::EngagementStatus {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            workload: self.workload.to_string(),
            verb: self.verb.as_str().to_owned(),
            ports: self.ports.iter().map(mapping).collect(),
            active: observed.progress == Progress::Active,
            message,
            pods_selected: observed.pods_selected,
            pods_covered: observed.pods_covered,
            filter: self
                .http
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            counts: None,
            // An app that is stopped does not.
            fails_closed: self.fails_closed || self.verb == Verb::Replace,
            container: self.container.clone().unwrap_or_default(),
            terminates_tls: self.tls.is_some(),
            to_pod: self.to_pod.iter().map(|it| (*it).into()).collect(),
            environment: self.environment,
            mounted_at: self
                .mounted
                .as_ref()
                .map(|mounted| mounted.path.display().to_string())
                .unwrap_or_default(),
            mounted_read_only: self.mounted.as_ref().is_some_and(|it| it.read_only),
            asked: Some(self.asked.clone()),
        }
    }

    /// Whether somebody has to look into the container.
    pub(super) fn reads(&self) -> bool {
        self.environment || self.files.is_some()
    }

    /// From now on, what happens to the resource is our own doing.
    pub(super) fn stop_watching(&mut self) {
        self.watcher = None;
    }

    /// Resets connections to ports of the pod, lets no others in, and shows its files no more.
    pub(super) async fn shut_doors(&mut self) {
        self.doors.shutdown().await;
        if let Some(mounted) = self.mounted.take() {
            mounted.end().await;
        }
    }

    /// Where connections and datagrams are handled.
    fn handlers(&self) -> impl Iterator<Item = (SocketAddr, Protocol)> {
        self.ports.iter().map(|port| (port.local, port.protocol))
    }

    fn is_service(&self, name: &str) -> bool {
        let mut services = self.ports.iter().filter_map(|port| port.service.as_ref());
        services.any(|service| service.name == name)
    }
}

fn mapping(port: &ResolvedPort) -> v1::PortMapping {
    v1::PortMapping {
        local: port.local.to_string(),
        container_port: port.container_port.into(),
        service: port
            .service
            .as_ref()
            .map(|service| service.name.clone())
            .unwrap_or_default(),
        service_port: port
            .service
            .as_ref()
            .map_or(0, |service| service.port.into()),
        protocol: v1::Protocol::from(port.protocol).into(),
    }
}

#[derive(Default)]
pub(super) struct Table {
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Table {
    /// Takes a new engagement in, unless a local port that leads into a pod for it, or for one
    /// that is here, is where the other's connections are handled.
    pub(super) fn admit(&self, key: Key, entry: Entry) -> Result<(), Failure> {
        let mut entries = self.lock();
        for (other_key, other) in entries.iter() {
            if let Some(door) = to_pod::in_the_way(&entry.to_pod, other.handlers()) {
                let why = format!("{} has it for what answers there", other_key.name);
                return Err(door.refused(&why));
            }
            if let Some(door) = to_pod::in_the_way(&other.to_pod, entry.handlers()) {
                return Err(Failure::new(
                    Reason::Usage,
                    format!(
                        "--port cannot hand connections to {}: it leads into a pod, by --to-pod \
                         of {}",
                        door.local(),
                        other_key.name
                    ),
                    "choose another local port for what answers",
                ));
            }
        }
        entries.insert(key, entry);
        Ok(())
    }

    /// Puts back what was here.
    pub(super) fn insert(&self, key: Key, entry: Entry) {
        self.lock().insert(key, entry);
    }

    pub(super) fn remove(&self, key: &Key) -> Option<Entry> {
        self.lock().remove(key)
    }

    /// `false` when there is no such entry.
    pub(super) fn keep_watcher(&self, key: &Key, watcher: AbortOnDropHandle<()>) -> bool {
        match self.lock().get_mut(key) {
            Some(entry) => {
                entry.watcher = Some(watcher);
                true
            }
            None => false,
        }
    }

    pub(super) fn keep_uid(&self, key: &Key, uid: Option<String>) {
        if let Some(entry) = self.lock().get_mut(key) {
            entry.uid = uid;
        }
    }

    /// UID of an engagement that may read an environment, and the container that has it.
    pub(super) fn read_by(&self, key: &Key) -> Option<(String, String)> {
        let entries = self.lock();
        let entry = entries.get(key).filter(|entry| entry.environment)?;
        Some((entry.uid.clone()?, entry.container.clone()?))
    }

    /// Why the environment of an engagement cannot be read, where that is known.
    pub(super) fn unreadable(&self, key: &Key) -> Option<Failure> {
        let entries = self.lock();
        let observed = entries.get(key)?.observed.borrow();
        match &observed.environment {
            Progress::Failed(failure) | Progress::RollOutNeeded(failure) => Some(failure.clone()),
            Progress::Waiting { .. } | Progress::Active | Progress::Gone { .. } => None,
        }
    }

    pub(super) fn keep_giver(&self, key: &Key, giver: AbortOnDropHandle<()>) {
        // Without an entry there is nothing to give it for.
        if let Some(entry) = self.lock().get_mut(key) {
            entry.giver = Some(giver);
        }
    }

    /// Gives it back when there is no such entry.
    pub(super) fn keep_mounted(&self, key: &Key, mounted: Mounted) -> Result<(), Mounted> {
        match self.lock().get_mut(key) {
            Some(entry) => {
                entry.mounted = Some(mounted);
                Ok(())
            }
            None => Err(mounted),
        }
    }

    /// UID of an engagement.
    pub(super) fn uid(&self, key: &Key) -> Option<String> {
        self.lock().get(key)?.uid.clone()
    }

    /// The doors are shut once there is no such entry.
    pub(super) fn keep_doors(&self, key: &Key, doors: JoinSet<()>) {
        if let Some(entry) = self.lock().get_mut(key) {
            entry.doors = doors;
        }
    }

    pub(super) fn observe(&self, key: &Key, observed: Observed) {
        if let Some(entry) = self.lock().get(key) {
            entry.observed.send_replace(observed);
        }
    }

    /// Tells what is observed of an engagement for as long as that is there.
    pub(super) fn observed(&self, key: &Key) -> Option<watch::Receiver<Observed>> {
        let entries = self.lock();
        entries.get(key).map(|entry| entry.observed.subscribe())
    }

    pub(super) fn local(
        &self,
        key: &Key,
        container_port: u16,
        protocol: Protocol,
    ) -> Option<SocketAddr> {
        let entries = self.lock();
        let mut ports = entries.get(key)?.ports.iter();
        let wanted = (container_port, protocol);
        let port = ports.find(|port| (port.container_port, port.protocol) == wanted)?;
        Some(port.local)
    }

    pub(super) fn status(&self, key: &Key) -> Option<v1::EngagementStatus> {
        self.lock().get(key).map(|entry| entry.status(key))
    }

    pub(super) fn statuses(&self) -> Vec<v1::EngagementStatus> {
        let entries = self.lock();
        let mut sorted: Vec<_> = entries.iter().collect();
        sorted.sort_by_key(|(key, _)| *key);
        sorted
            .into_iter()
            .map(|(key, entry)| entry.status(key))
            .collect()
    }

    pub(super) fn keys(&self) -> Vec<Key> {
        self.lock().keys().cloned().collect()
    }

    /// The engagement of a port of a workload that is in the way of another one with
    /// this filter, if there is one.
    pub(super) fn of(
        &self,
        namespace: &str,
        workload: &WorkloadRef,
        ports: &[ResolvedPort],
        http: Option<&HttpFilter>,
    ) -> Option<Key> {
        let entries = self.lock();
        let found = entries.iter().find(|(key, entry)| {
            key.namespace == namespace
                && entry.workload == *workload
                && entry.verb != Verb::Wiretap
                && overlap(entry.http.as_ref(), http)
                && entry
                    .ports
                    .iter()
                    .any(|taken| ports.iter().any(|port| port.is_same(taken)))
        });
        found.map(|(key, _)| key.clone())
    }

    /// What a user means: an Engagement's name, a workload, or the Service that
    /// led to it. Never empty.
    pub(super) fn meant(&self, namespace: &str, target: &str) -> Result<Vec<Key>, Failure> {
        let entries = self.lock();
        let matches = |key: &Key, entry: &Entry| {
            let workload = &entry.workload;
            match target.split_once('/') {
                Some((kind, name)) => match WorkloadKind::parse(kind) {
                    Some(kind) => workload.kind == kind && workload.name == name,
                    None => entry.is_service(name),
                },
                None => key.name == target || workload.name == target || entry.is_service(target),
            }
        };
        let keys: Vec<Key> = entries
            .iter()
            .filter(|(key, entry)| key.namespace == namespace && matches(key, entry))
            .map(|(key, _)| key.clone())
            .collect();
        if !keys.is_empty() {
            return Ok(keys);
        }
        let mut there_are: Vec<String> = entries
            .iter()
            .map(|(key, entry)| format!("{} in namespace {}", entry.workload, key.namespace))
            .collect();
        there_are.sort();
        Err(Failure::new(
            Reason::NoSuchEngagement,
            format!("this session does not engage {target} in namespace {namespace}"),
            if there_are.is_empty() {
                "it engages nothing".to_owned()
            } else {
                format!("choose one of: {}", there_are.join(", "))
            },
        ))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
