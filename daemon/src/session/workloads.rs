//! What can be engaged in a namespace, and what a user means by a name.

mod app_protocol;
mod containers;
mod fetch;
mod list;
mod ports;
mod target;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerPort, Pod, PodSpec, PodTemplateSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kvpn_proto::Failure;
use kvpn_proto::crd::{WorkloadKind, WorkloadRef};
use kvpn_proto::rollout::Rollout;

pub(crate) use app_protocol::{Spoken, check_filters};
pub(crate) use containers::container;
pub(crate) use fetch::fetch;
pub(crate) use list::list;
pub(crate) use ports::{RequestedPort, Resolved, ResolvedPort, resolve_ports};
pub(crate) use target::{Found, find, no_running_pod};

/// The objects of one namespace that matter here.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) namespace: String,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) services: Vec<Service>,
    /// Why Rollouts are not among the workloads, where the user may not read them.
    rollouts_hidden: Option<Failure>,
}

/// Something that has pods, or is one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Workload {
    pub(crate) reference: WorkloadRef,
    /// Names the controller in charge, when there is one.
    owner: Option<WorkloadRef>,
    /// Labels of its pods.
    labels: BTreeMap<String, String>,
    containers: Vec<DeclaredContainer>,
    /// Ports that are those of containers which are not meant, by number and protocol.
    hidden_ports: Vec<(i32, String)>,
    pub(crate) pods_wanted: u32,
}

/// A container, and the ports that it declares.
#[derive(Clone, Debug, PartialEq)]
struct DeclaredContainer {
    name: String,
    ports: Vec<ContainerPort>,
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
            containers: Vec::new(),
            hidden_ports: Vec::new(),
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
            let containers = spec.containers.iter().chain(sidecars);
            self.containers = containers
                .map(|container| DeclaredContainer {
                    name: container.name.clone(),
                    ports: container.ports.clone().unwrap_or_default(),
                })
                .collect();
        }
        self
    }

    /// Ports that its containers declare.
    fn ports(&self) -> impl Iterator<Item = &ContainerPort> {
        self.containers.iter().flat_map(|it| &it.ports)
    }

    /// Takes over what another workload's pods are like.
    fn with_pods_of(mut self, other: &Self) -> Self {
        self.labels.clone_from(&other.labels);
        self.containers.clone_from(&other.containers);
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

impl From<&Job> for Workload {
    fn from(object: &Job) -> Self {
        let spec = object.spec.as_ref();
        Self::new(WorkloadKind::Job, &object.metadata)
            .with_template(spec.map(|spec| &spec.template))
            .wants(Some(pods_of_job(object)))
    }
}

impl Workload {
    /// A Rollout may use the template of another workload, which its own ReplicaSets
    /// have too.
    fn of_rollout(object: &Rollout, replica_sets: &[Self]) -> Self {
        let spec = &object.spec;
        let rollout = Self::new(WorkloadKind::Rollout, &object.metadata)
            .with_template(spec.template.as_ref())
            .wants(Some(spec.replicas.unwrap_or(1)));
        let latest = replica_sets
            .iter()
            .filter(|set| spec.template.is_none() && set.owner.as_ref() == Some(&rollout.reference))
            .max_by_key(|set| set.pods_wanted);
        match latest {
            Some(replica_set) => rollout.with_pods_of(replica_set),
            None => rollout,
        }
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
    let (group, _) = owner.api_version.split_once('/').unwrap_or_default();
    Some(WorkloadRef {
        kind: WorkloadKind::parse(&owner.kind).filter(|kind| kind.group() == group)?,
        name: owner.name.clone(),
    })
}

/// How many pods a Job has while all is well: none when it is suspended or over, and
/// fewer than may run at once towards its end.
fn pods_of_job(job: &Job) -> i32 {
    let Some(spec) = &job.spec else { return 0 };
    let status = job.status.as_ref();
    let mut conditions = status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let is_over = conditions.any(|condition| {
        ["Complete", "Failed"].contains(&condition.type_.as_str()) && condition.status == "True"
    });
    if is_over || spec.suspend == Some(true) {
        return 0;
    }
    let succeeded = status.and_then(|status| status.succeeded).unwrap_or(0);
    let left = spec
        .completions
        .map_or(i32::MAX, |wanted| wanted - succeeded);
    left.min(spec.parallelism.unwrap_or(1))
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
            .filter(|service| self.is_behind(workload, service))
    }

    /// Whether a Service's selector takes in the workload's pods, or all those of one
    /// of its ReplicaSets, as the Services of a Rollout's versions do.
    fn is_behind(&self, workload: &Workload, service: &Service) -> bool {
        let mut own = self.workloads.iter().filter(|other| {
            other.reference.kind == WorkloadKind::ReplicaSet
                && other.owner.as_ref() == Some(&workload.reference)
        });
        selects(service, &workload.labels) || own.any(|other| selects(service, &other.labels))
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::{JobCondition, JobSpec, JobStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::fixture::job;
    use super::*;

    #[test]
    fn a_job_wants_as_many_pods_as_it_has_work_for() {
        let wanted = |change: fn(&mut JobSpec, &mut JobStatus)| {
            let mut job = job("import");
            let status = job.status.insert(JobStatus::default());
            change(job.spec.as_mut().unwrap(), status);
            Workload::from(&job).pods_wanted
        };
        assert_eq!(wanted(|_, _| {}), 1);
        assert_eq!(wanted(|spec, _| spec.parallelism = Some(3)), 3);
        assert_eq!(wanted(|spec, _| spec.suspend = Some(true)), 0);
        let nearly_over = wanted(|spec, status| {
            (spec.parallelism, spec.completions) = (Some(3), Some(5));
            status.succeeded = Some(4);
        });
        assert_eq!(nearly_over, 1);
        let failed = wanted(|_, status| {
            status.conditions = Some(vec![JobCondition {
                type_: "Failed".into(),
                status: "True".into(),
                ..JobCondition::default()
            }]);
        });
        assert_eq!(failed, 0);
    }

    #[test]
    fn a_kind_of_the_same_name_in_another_group_is_in_charge_of_nothing_here() {
        let owned_by = |api_version: &str| {
            owner(&ObjectMeta {
                owner_references: Some(vec![OwnerReference {
                    api_version: api_version.into(),
                    kind: "Job".into(),
                    name: "import".into(),
                    controller: Some(true),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            })
        };
        assert!(owned_by("batch/v1").is_some());
        assert_eq!(owned_by("batch.volcano.sh/v1alpha1"), None);
    }
}
