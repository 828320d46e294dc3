//! From `NAME`, `KIND/NAME` or `svc/NAME` to a workload.

use k8s_openapi::api::core::v1::Service;
use kvpn_proto::crd::{WorkloadKind, WorkloadRef};
use kvpn_proto::{Failure, Reason};

use super::{Inventory, Workload, is_running};

/// How alike two names must be for one to be suggested for the other.
const ALIKE: f64 = 0.75;

/// The workload that was meant, by way of which Service if the user named one.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) service: Option<&'a Service>,
}

/// Finds the workload and makes sure that it has a running pod.
pub(crate) fn find<'a>(inventory: &'a Inventory, target: &str) -> Result<Found<'a>, Failure> {
    let found = match target.split_once('/') {
        Some((kind, name)) => by_kind(inventory, kind, name)?,
        None => by_name(inventory, target)?,
    };
    let reference = &found.workload.reference;
    if inventory.pods_of(reference).any(is_running) {
        return Ok(found);
    }
    Err(no_running_pod(&inventory.namespace, reference))
}

/// The failure of a workload that has nothing to engage.
pub(crate) fn no_running_pod(namespace: &str, workload: &WorkloadRef) -> Failure {
    let what = match workload.kind {
        WorkloadKind::Deployment
        | WorkloadKind::StatefulSet
        | WorkloadKind::ReplicaSet
        | WorkloadKind::Rollout => "scale it up, or see why its pods do not run",
        WorkloadKind::DaemonSet => "see why its pods do not run",
        WorkloadKind::Job => "see whether it is suspended or over, or why its pods do not run,",
        WorkloadKind::Pod => "see why it does not run",
    };
    let described = workload.to_string().to_ascii_lowercase();
    Failure::new(
        Reason::NoRunningPod,
        format!("{workload} in namespace {namespace} has no running pod"),
        format!("{what} with `kubectl -n {namespace} describe {described}`"),
    )
}

/// Tells whether a kind is kubectl's word for a Service.
pub(crate) fn is_service(kind: &str) -> bool {
    matches!(
        kind.to_ascii_lowercase().as_str(),
        "svc" | "service" | "services"
    )
}

fn by_kind<'a>(inventory: &'a Inventory, kind: &str, name: &str) -> Result<Found<'a>, Failure> {
    if is_service(kind) {
        return match service(inventory, name) {
            Some(service) => behind(inventory, service),
            None => Err(unknown(inventory, &format!("Service/{name}"), name)),
        };
    }
    let Some(kind) = WorkloadKind::parse(kind) else {
        return Err(unknown_kind(inventory, kind));
    };
    let reference = WorkloadRef {
        kind,
        name: name.to_owned(),
    };
    match (inventory.get(&reference), &inventory.rollouts_hidden) {
        (Some(workload), _) => Ok(Found {
            workload,
            service: None,
        }),
        (None, Some(hidden)) if reference.kind == WorkloadKind::Rollout => Err(hidden.clone()),
        (None, _) => Err(unknown(inventory, &reference.to_string(), name)),
    }
}

fn unknown_kind(inventory: &Inventory, kind: &str) -> Failure {
    let next_step = match kind.to_ascii_lowercase().as_str() {
        "cronjob" | "cronjobs" | "cj" => format!(
            "name one of its Jobs, such as job/NAME; see them with `kvpn list -n {}`",
            inventory.namespace
        ),
        _ => {
            let kinds: Vec<_> = WorkloadKind::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("name one of {}, Service", kinds.join(", "))
        }
    };
    Failure::new(
        Reason::Usage,
        format!("{kind} is not a kind that can be engaged"),
        next_step,
    )
}

fn by_name<'a>(inventory: &'a Inventory, name: &str) -> Result<Found<'a>, Failure> {
    let named: Vec<&Workload> = WorkloadKind::ALL
        .into_iter()
        .filter_map(|kind| {
            let name = name.to_owned();
            inventory.get(&WorkloadRef { kind, name })
        })
        .collect();
    // A Deployment whose pods are a Rollout's by now often has the same name.
    let running = named
        .iter()
        .find(|workload| inventory.pods_of(&workload.reference).any(is_running));
    if let Some(workload) = running.or(named.first()).copied() {
        return Ok(Found {
            workload,
            service: None,
        });
    }
    match service(inventory, name) {
        Some(service) => behind(inventory, service),
        None => Err(unknown(inventory, name, name)),
    }
}

fn service<'a>(inventory: &'a Inventory, name: &str) -> Option<&'a Service> {
    inventory
        .services
        .iter()
        .find(|service| service.metadata.name.as_deref() == Some(name))
}

/// The workload whose pods a Service selects.
fn behind<'a>(inventory: &'a Inventory, service: &'a Service) -> Result<Found<'a>, Failure> {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let candidates: Vec<&Workload> = inventory
        .top_level()
        .filter(|workload| inventory.is_behind(workload, service))
        .collect();
    // Old workloads that were scaled to nothing often keep their labels.
    let running: Vec<&Workload> = candidates
        .iter()
        .copied()
        .filter(|workload| inventory.pods_of(&workload.reference).any(is_running))
        .collect();
    let chosen = if running.is_empty() {
        &candidates
    } else {
        &running
    };
    match chosen[..] {
        [workload] => Ok(Found {
            workload,
            service: Some(service),
        }),
        [] if service
            .spec
            .as_ref()
            .is_none_or(|spec| spec.selector.is_none()) =>
        {
            Err(Failure::new(
                Reason::NotSupported,
                format!("Service/{name} has no selector, so no workload is behind it"),
                "engage the workload that answers for it by its own name",
            ))
        }
        [] => Err(Failure::new(
            Reason::NoRunningPod,
            format!(
                "Service/{name} in namespace {} selects no pod",
                inventory.namespace
            ),
            format!(
                "look at its selector with `kubectl -n {} describe service {name}`",
                inventory.namespace
            ),
        )),
        ref several => {
            let names: Vec<String> = several
                .iter()
                .map(|workload| workload.reference.to_string())
                .collect();
            Err(Failure::new(
                Reason::Usage,
                format!(
                    "Service/{name} has several workloads behind it: {}",
                    names.join(", ")
                ),
                "name one of them instead",
            ))
        }
    }
}

fn unknown(inventory: &Inventory, what: &str, name: &str) -> Failure {
    let namespace = &inventory.namespace;
    let near = near(inventory, name);
    let hint = if near.is_empty() {
        String::new()
    } else {
        format!("; did you mean {}?", near.join(" or "))
    };
    let hidden = match &inventory.rollouts_hidden {
        Some(failure) => format!(", which has no Rollouts, as {}", failure.message),
        None => String::new(),
    };
    Failure::new(
        Reason::NoSuchWorkload,
        format!("there is no {what} in namespace {namespace}{hint}"),
        format!("see what there is with `kvpn list -n {namespace}`{hidden}"),
    )
}

/// Up to three names that look like the one asked for, best first.
fn near(inventory: &Inventory, name: &str) -> Vec<String> {
    let workloads = inventory
        .top_level()
        .map(|workload| workload.reference.name.as_str());
    let services = inventory
        .services
        .iter()
        .filter_map(|service| service.metadata.name.as_deref());
    let mut scored: Vec<(f64, &str)> = workloads
        .chain(services)
        .map(|candidate| (likeness(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.dedup_by_key(|(_, candidate)| *candidate);
    scored
        .iter()
        .take(3)
        .map(|(_, candidate)| (*candidate).to_owned())
        .collect()
}

/// People leave out the start or the end of a long name as often as they
/// mistype a short one.
fn likeness(asked: &str, candidate: &str) -> f64 {
    let part = asked.len() >= 3 && (candidate.contains(asked) || asked.contains(candidate));
    let slip = asked.len() >= 3 && strsim::osa_distance(asked, candidate) == 1;
    let likeness = strsim::jaro_winkler(asked, candidate);
    if part || slip {
        likeness.max(0.9)
    } else {
        likeness
    }
}

#[cfg(test)]
mod tests;
