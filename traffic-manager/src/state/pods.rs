//! Pods, cut down to what engaging them needs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kvpn_proto::names::{AGENT_CONTAINER_PREFIX, HOLDER_CONTAINER_PREFIX, READER_CONTAINER_PREFIX};

use super::{Change, Identified, Key};

/// What engaging a pod needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodView {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) created: Timestamp,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) phase: Phase,
    pub(crate) terminating: bool,
    pub(crate) host_network: bool,
    /// Ports that the kubelet probes over HTTP.
    pub(crate) http_probed: BTreeSet<u16>,
    /// How its containers are probed, but for initial ones, by their names.
    pub(crate) probes: BTreeMap<String, Probes>,
    /// Its containers see each other's processes, or those of the node.
    pub(crate) shares_processes: bool,
    /// Ephemeral containers and sidecars that are named like agents.
    pub(crate) agents: Vec<AgentContainer>,
    /// Containers that can stop the processes of others.
    pub(crate) holders: Vec<CompanionContainer>,
    /// Containers that can read what others have.
    pub(crate) readers: Vec<CompanionContainer>,
    /// The names of the Secrets that its images are pulled with.
    pub(crate) pull_secrets: BTreeSet<String>,
}

/// How the kubelet probes a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probes {
    /// Over HTTP or TCP.
    pub(crate) ports: BTreeSet<u16>,
    /// In a way that only the app can answer, such as by TLS.
    pub(crate) others: bool,
    /// The TCP ports that the container declares, whoever's probes go there.
    pub(crate) declared: BTreeSet<u16>,
}

impl Probes {
    /// Whether who probes that port asks how this container is.
    pub(crate) fn is_own(&self, port: u16) -> bool {
        self.ports.contains(&port) || self.declared.contains(&port)
    }
}

/// A container that is there for another one, whose processes it can stop or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompanionContainer {
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) image: String,
    pub(crate) state: AgentState,
}

impl CompanionContainer {
    /// Whether it has ended, for good.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.state, AgentState::Terminated(_))
    }
}

/// The phases of a pod, as far as they matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// Succeeded or failed: its addresses may be another pod's by now.
    Ended,
    /// Pending or unknown.
    Other,
}

/// A container that is named like an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentContainer {
    pub(crate) name: String,
    pub(crate) image: String,
    /// The pod was born with it.
    pub(crate) is_sidecar: bool,
    pub(crate) state: AgentState,
}

/// What the kubelet says of an agent's container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AgentState {
    Pending,
    /// It cannot start; the kubelet goes on trying.
    Stuck(String),
    Running,
    Terminated(String),
}

impl Identified for PodView {
    fn key(&self) -> &Key {
        &self.key
    }

    fn uid(&self) -> &str {
        &self.uid
    }
}

impl PodView {
    /// Whether new connections may reach the pod.
    pub(crate) fn is_running(&self) -> bool {
        self.phase == Phase::Running && !self.terminating
    }

    /// Whether it is on its way to run, with an agent that runs before its app.
    pub(crate) fn is_starting(&self) -> bool {
        let mut agents = self.agents.iter();
        self.phase == Phase::Other && !self.terminating && agents.any(|agent| agent.is_sidecar)
    }

    /// Whether it ends, and requests may still come to it.
    pub(crate) fn is_leaving(&self) -> bool {
        self.phase == Phase::Running && self.terminating
    }

    /// The addresses that are the pod's alone: pods of the host's network share
    /// its address, and those that ended have given theirs back.
    pub(crate) fn own_ips(&self) -> &[IpAddr] {
        if self.host_network || self.phase == Phase::Ended {
            &[]
        } else {
            &self.ips
        }
    }

    /// The agent's container of that name.
    pub(crate) fn agent(&self, name: &str) -> Option<&AgentContainer> {
        self.agents.iter().find(|agent| agent.name == name)
    }
}

impl From<&Pod> for PodView {
    fn from(pod: &Pod) -> Self {
        let metadata = &pod.metadata;
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let phase = match status.and_then(|status| status.phase.as_deref()) {
            Some("Running") => Phase::Running,
            Some("Succeeded" | "Failed") => Phase::Ended,
            Some(_) | None => Phase::Other,
        };
        let first = status.and_then(|status| status.pod_ip.as_ref());
        let all = status.and_then(|status| status.pod_ips.as_ref());
        let mut ips: Vec<IpAddr> = first
            .into_iter()
            .chain(all.into_iter().flatten().map(|ip| &ip.ip))
            .filter_map(|ip| ip.parse().ok())
            .collect();
        ips.dedup();
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
            ips,
            labels: metadata.labels.clone().unwrap_or_default(),
            phase,
            terminating: metadata.deletion_timestamp.is_some(),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            http_probed: http_probed(pod),
            probes: spec.map(probes).unwrap_or_default(),
            shares_processes: spec.is_some_and(|spec| {
                [spec.share_process_namespace, spec.host_pid].contains(&Some(true))
            }),
            agents: agents(pod),
            holders: companions(pod, HOLDER_CONTAINER_PREFIX),
            readers: companions(pod, READER_CONTAINER_PREFIX),
            pull_secrets: spec.map(pull_secrets).unwrap_or_default(),
        }
    }
}

/// The names of the Secrets that a pod's images are pulled with.
pub(crate) fn pull_secrets(spec: &PodSpec) -> BTreeSet<String> {
    let secrets = spec.image_pull_secrets.iter().flatten();
    secrets.map(|secret| secret.name.clone()).collect()
}

fn probes(spec: &PodSpec) -> BTreeMap<String, Probes> {
    let probes = |container: &Container| {
        let declared = container.ports.iter().flatten();
        let declared = declared.filter(|it| it.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let mut probes = Probes {
            declared: declared
                .filter_map(|port| port.container_port.try_into().ok())
                .collect(),
            ..Probes::default()
        };
        for probe in probes_of(container) {
            match plain_port(probe).and_then(|port| number(container, port)) {
                Some(port) => drop(probes.ports.insert(port)),
                None => probes.others = true,
            }
        }
        (container.name.clone(), probes)
    };
    spec.containers.iter().map(probes).collect()
}

fn companions(pod: &Pod, prefix: &str) -> Vec<CompanionContainer> {
    let spec = pod.spec.as_ref();
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_deref());
    let companions = ephemeral
        .unwrap_or_default()
        .iter()
        .filter(|it| it.name.starts_with(prefix));
    let statuses = pod.status.as_ref();
    let statuses = statuses.and_then(|status| status.ephemeral_container_statuses.as_deref());
    companions
        .map(|it| CompanionContainer {
            name: it.name.clone(),
            target: it.target_container_name.clone().unwrap_or_default(),
            image: it.image.clone().unwrap_or_default(),
            state: statuses
                .unwrap_or_default()
                .iter()
                .find(|status| status.name == it.name)
                .map_or(AgentState::Pending, agent_state),
        })
        .collect()
}

fn agents(pod: &Pod) -> Vec<AgentContainer> {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_deref());
    let ephemeral = ephemeral.unwrap_or_default().iter();
    let ephemeral = ephemeral.map(|it| (&it.name, &it.image, false));
    let initial = spec.and_then(|spec| spec.init_containers.as_deref());
    let sidecars = initial.unwrap_or_default().iter();
    let sidecars = sidecars.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let sidecars = sidecars.map(|it| (&it.name, &it.image, true));
    let statuses: Vec<&ContainerStatus> = status
        .into_iter()
        .flat_map(|status| {
            let ephemeral = status.ephemeral_container_statuses.iter();
            ephemeral.chain(&status.init_container_statuses)
        })
        .flatten()
        .collect();
    ephemeral
        .chain(sidecars)
        .filter(|(name, ..)| name.starts_with(AGENT_CONTAINER_PREFIX))
        .map(|(name, image, is_sidecar)| AgentContainer {
            name: name.clone(),
            image: image.clone().unwrap_or_default(),
            is_sidecar,
            state: statuses
                .iter()
                .find(|status| status.name == *name)
                .map_or(AgentState::Pending, |status| agent_state(status)),
        })
        .collect()
}

fn agent_state(status: &ContainerStatus) -> AgentState {
    let Some(state) = &status.state else {
        return AgentState::Pending;
    };
    let ContainerState {
        running,
        terminated,
        waiting,
    } = state;
    if let Some(terminated) = terminated {
        let reason = terminated.reason.as_deref().unwrap_or("Terminated");
        let code = terminated.exit_code;
        let mut text = format!("{reason}, exit code {code}");
        if let Some(message) = terminated.message.as_deref().map(str::trim) {
            text = format!("{text}: {message}");
        }
        return AgentState::Terminated(text);
    }
    if running.is_some() {
        return AgentState::Running;
    }
    match waiting
        .as_ref()
        .and_then(|waiting| waiting.reason.as_deref())
    {
        None | Some("ContainerCreating" | "PodInitializing") => AgentState::Pending,
        Some(reason) => {
            let message = waiting
                .as_ref()
                .and_then(|waiting| waiting.message.as_deref());
            AgentState::Stuck(match message {
                Some(message) => format!("{reason}: {message}"),
                None => reason.to_owned(),
            })
        }
    }
}

fn http_probed(pod: &Pod) -> BTreeSet<u16> {
    let Some(spec) = &pod.spec else {
        return BTreeSet::new();
    };
    let native_sidecars = spec.init_containers.iter().flatten();
    spec.containers
        .iter()
        .chain(native_sidecars)
        .flat_map(|container| {
            let http = probes_of(container).filter_map(|probe| probe.http_get.as_ref());
            http.filter_map(|http| number(container, &http.port))
        })
        .collect()
}

fn probes_of(container: &Container) -> impl Iterator<Item = &Probe> {
    let probes = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
    ];
    probes.into_iter().flatten()
}

/// The port of a probe by TCP or HTTP that an agent can answer in the app's place: of the
/// pod itself, without TLS, and known by the kubelet's own name for itself.
fn plain_port(probe: &Probe) -> Option<&IntOrString> {
    if let Some(tcp) = &probe.tcp_socket {
        return tcp.host.is_none().then_some(&tcp.port);
    }
    let http = probe.http_get.as_ref()?;
    let is_named = |name: &str| name.eq_ignore_ascii_case("user-agent");
    let mut headers = http.http_headers.iter().flatten();
    let is_plain = http.host.is_none()
        && http.scheme.as_deref().unwrap_or("HTTP") == "HTTP"
        && !headers.any(|header| is_named(&header.name));
    is_plain.then_some(&http.port)
}

/// The number of a probed port, which may be told by its name.
fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
            .or_else(|| name.parse().ok())?,
    };
    number.try_into().ok()
}

/// All pods, by name and by address.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    by_key: BTreeMap<Key, PodView>,
    by_ip: HashMap<IpAddr, Key>,
}

impl Pods {
    /// Follows a watch. Returns the namespaces that changed and the UIDs of
    /// the pods that are gone.
    pub(crate) fn apply(&mut self, change: Change<PodView>) -> (BTreeSet<String>, Vec<String>) {
        let (gone, present) = change.resolve(&self.by_key);
        let mut namespaces = BTreeSet::new();
        let mut uids = Vec::new();
        for key in gone {
            if let Some(pod) = self.by_key.remove(&key) {
                self.forget_ips(&pod);
                uids.push(pod.uid);
                namespaces.insert(key.namespace);
            }
        }
        for pod in present {
            if self.by_key.get(&pod.key) == Some(&pod) {
                continue;
            }
            if let Some(old) = self.by_key.remove(&pod.key) {
                self.forget_ips(&old);
            }
            for ip in pod.own_ips() {
                if !(pod.terminating && self.is_taken(ip)) {
                    self.by_ip.insert(*ip, pod.key.clone());
                }
            }
            namespaces.insert(pod.key.namespace.clone());
            self.by_key.insert(pod.key.clone(), pod);
        }
        (namespaces, uids)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&PodView> {
        self.by_key.get(key)
    }

    pub(crate) fn by_ip(&self, ip: IpAddr) -> Option<&PodView> {
        self.by_ip.get(&ip).and_then(|key| self.by_key.get(key))
    }

    /// Whether an agent may run in a pod whose address is not told yet.
    pub(crate) fn has_newborn(&self) -> bool {
        let mut pods = self.by_key.values();
        pods.any(|pod| pod.is_starting() && pod.ips.is_empty())
    }

    /// The pods of a namespace, in the order of their names.
    pub(crate) fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a PodView> + 'a {
        self.by_key
            .range(Key::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, pod)| pod)
    }

    /// Whether a pod that stays has the address. One that is going still tells
    /// of an address which may have been given away already.
    fn is_taken(&self, ip: &IpAddr) -> bool {
        let holder = self.by_ip.get(ip).and_then(|key| self.by_key.get(key));
        holder.is_some_and(|holder| !holder.terminating)
    }

    fn forget_ips(&mut self, pod: &PodView) {
        for ip in &pod.ips {
            if self.by_ip.get(ip) == Some(&pod.key) {
                self.by_ip.remove(ip);
            }
        }
    }
}

#[cfg(test)]
mod tests;
