//! What can be engaged in a namespace, and what a user means by a name.

mod fetch;
mod list;
mod ports;
mod target;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodSpec, PodTemplateSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kvpn_proto::crd::{WorkloadKind, WorkloadRef};

pub(crate) use fetch::fetch;
pub(crate) use list::list;
pub(crate) use ports::{RequestedPort, ResolvedPort, resolve_ports};
pub(crate) use target::{Found, find};

/// The objects of one namespace that matter here.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) namespace: String,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) services: Vec<Service>,
}

/// Something that has pods, or is one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Workload {
    pub(crate) reference: WorkloadRef,
    /// Names the controller in charge, when there is one.
    owner: Option<WorkloadRef>,
    /// Labels of its pods.
    labels: BTreeMap<String, String>,
    /// Ports that its containers declare.
    ports: Vec<ContainerPort>,
    pub(crate) pods_wanted: u32,
}

impl Workload {
    fn new(kind: WorkloadKind, metadata: &ObjectMeta) -> Self {
        Self {
            reference: WorkloadRef {
                kind,
                name: metadata.name.clone().unwrap_or_default(),
            },
            owner: owner(metadata),
            labels: BTreeMap::new(),
            ports: Vec::new(),
            pods_wanted: 0,
        }
    }

    fn with_template(self, template: Option<&PodTemplateSpec>) -> Self {
        let labels = template
            .and_then(|template| template.metadata.as_ref())
            .and_then(|metadata| metadata.labels.as_ref());
        self.with_pods(labels, template.and_then(|template| template.spec.as_ref()))
    }

    /// Takes over what its pods are like.
    fn with_pods(
        mut self,
        labels: Option<&BTreeMap<String, String>>,
        spec: Option<&PodSpec>,
    ) -> Self {
        self.labels = labels.cloned().unwrap_or_default();
        if let Some(spec) = spec {
            // A sidecar is an init container that stays.
            let sidecars = spec
                .init_containers
                .iter()
                .flatten()
                .filter(|container| container.restart_policy.as_deref() == Some("Always"));
            self.ports = spec
                .containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .cloned()
                .collect();
        }
        self
    }

    fn wants(mut self, replicas: Option<i32>) -> Self {
        self.pods_wanted = replicas
            .and_then(|count| count.try_into().ok())
            .unwrap_or(0);
        self
    }
}

impl From<&Deployment> for Workload {
    fn from(object: &Deployment) -> Self {
        let spec = object.spec.as_ref();
        Self::new(WorkloadKind::Deployment, &object.metadata)
            .with_template(spec.map(|spec| &spec.template))
            .wants(spec.map(|spec| spec.replicas.unwrap_or(1)))
    }
}

impl From<&StatefulSet> for Workload {
    fn from(object: &StatefulSet) -> Self {
        let spec = object.spec.as_ref();
        Self::new(WorkloadKind::StatefulSet, &object.metadata)
            .with_template(spec.map(|spec| &spec.template))
            .wants(spec.map(|spec| spec.replicas.unwrap_or(1)))
    }
}

impl From<&DaemonSet> for Workload {
    fn from(object: &DaemonSet) -> Self {
        let status = object.status.as_ref();
        Self::new(WorkloadKind::DaemonSet, &object.metadata)
            .with_template(object.spec.as_ref().map(|spec| &spec.template))
            .wants(status.map(|status| status.desired_number_scheduled))
    }
}

impl From<&ReplicaSet> for Workload {
    fn from(object: &ReplicaSet) -> Self {
        let spec = object.spec.as_ref();
        Self::new(WorkloadKind::ReplicaSet, &object.metadata)
            .with_template(spec.and_then(|spec| spec.template.as_ref()))
            .wants(spec.map(|spec| spec.replicas.unwrap_or(1)))
    }
}

impl From<&Pod> for Workload {
    fn from(object: &Pod) -> Self {
        Self::new(WorkloadKind::Pod, &object.metadata)
            .with_pods(object.metadata.labels.as_ref(), object.spec.as_ref())
            .wants(Some(1))
    }
}

fn owner(metadata: &ObjectMeta) -> Option<WorkloadRef> {
    let owners = metadata.owner_references.as_ref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    Some(WorkloadRef {
        kind: WorkloadKind::parse(&owner.kind)?,
        name: owner.name.clone(),
    })
}

impl Inventory {
    /// Pods of a workload that exist at the moment, directly or by way of a
    /// ReplicaSet.
    pub(crate) fn pods_of(&self, workload: &WorkloadRef) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(move |pod| {
            let own = Workload::new(WorkloadKind::Pod, &pod.metadata);
            own.reference == *workload || self.owners(&own).any(|owner| owner == workload)
        })
    }

    /// Who is in charge of a workload, and who of that, as far as they are here.
    fn owners<'a>(&'a self, workload: &Workload) -> impl Iterator<Item = &'a WorkloadRef> {
        let above = |workload: &Workload| self.get(workload.owner.as_ref()?);
        std::iter::successors(above(workload), move |owner| above(owner))
            .map(|owner| &owner.reference)
    }

    fn get(&self, reference: &WorkloadRef) -> Option<&Workload> {
        self.workloads
            .iter()
            .find(|workload| workload.reference == *reference)
    }

    /// Workloads that no other workload here is in charge of.
    fn top_level(&self) -> impl Iterator<Item = &Workload> {
        self.workloads
            .iter()
            .filter(|workload| self.owners(workload).next().is_none())
    }

    /// Services whose selector takes in the workload's pods.
    fn services_of(&self, workload: &Workload) -> impl Iterator<Item = &Service> {
        self.services
            .iter()
            .filter(|service| selects(service, &workload.labels))
    }
}

/// A Service without a selector selects nothing.
fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| {
        !selector.is_empty()
            && selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    })
}

pub(crate) fn is_running(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    is_running(pod)
        && conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
pub(crate) mod fixture;
