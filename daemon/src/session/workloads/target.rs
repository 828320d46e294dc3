//! From `NAME`, `KIND/NAME` or `svc/NAME` to a workload.

use k8s_openapi::api::core::v1::Service;
use kvpn_proto::crd::{WorkloadKind, WorkloadRef};
use kvpn_proto::{Failure, Reason};

use super::{Inventory, Workload, is_running, selects};

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
    Err(Failure::new(
        Reason::NoRunningPod,
        format!(
            "{reference} in namespace {} has no running pod",
            inventory.namespace
        ),
        format!(
            "scale it up or see why its pods do not run with `kubectl -n {} describe {}`",
            inventory.namespace,
            reference.to_string().to_ascii_lowercase()
        ),
    ))
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
        let kinds: Vec<_> = WorkloadKind::ALL.iter().map(|kind| kind.as_str()).collect();
        return Err(Failure::new(
            Reason::Usage,
            format!("{kind} is not a kind that can be engaged"),
            format!("name one of {}, Service", kinds.join(", ")),
        ));
    };
    let reference = WorkloadRef {
        kind,
        name: name.to_owned(),
    };
    match inventory.get(&reference) {
        Some(workload) => Ok(Found {
            workload,
            service: None,
        }),
        None => Err(unknown(inventory, &reference.to_string(), name)),
    }
}

fn by_name<'a>(inventory: &'a Inventory, name: &str) -> Result<Found<'a>, Failure> {
    for kind in WorkloadKind::ALL {
        let reference = WorkloadRef {
            kind,
            name: name.to_owned(),
        };
        if let Some(workload) = inventory.get(&reference) {
            return Ok(Found {
                workload,
                service: None,
            });
        }
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
        .filter(|workload| selects(service, &workload.labels))
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
    Failure::new(
        Reason::NoSuchWorkload,
        format!("there is no {what} in namespace {namespace}{hint}"),
        format!("see what there is with `kvpn list -n {namespace}`"),
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
mod tests {
    use super::super::fixture::shop;
    use super::*;

    fn reference(target: &str) -> String {
        find(&shop(), target)
            .unwrap()
            .workload
            .reference
            .to_string()
    }

    #[test]
    fn a_bare_name_means_the_workload_before_the_service() {
        assert_eq!(reference("web"), "Deployment/web");
        assert!(find(&shop(), "web").unwrap().service.is_none());
    }

    #[test]
    fn a_bare_name_falls_back_to_the_service() {
        let inventory = shop();
        let found = find(&inventory, "storefront").unwrap();
        assert_eq!(found.workload.reference.to_string(), "Deployment/web");
        assert_eq!(
            found
                .service
                .and_then(|service| service.metadata.name.as_deref()),
            Some("storefront")
        );
    }

    #[test]
    fn kinds_are_read_as_kubectl_reads_them() {
        assert_eq!(reference("deploy/web"), "Deployment/web");
        assert_eq!(reference("svc/storefront"), "Deployment/web");
        assert_eq!(reference("sts/db"), "StatefulSet/db");
        assert_eq!(reference("pod/lonely"), "Pod/lonely");
        assert_eq!(reference("rs/web-5d"), "ReplicaSet/web-5d");
    }

    #[test]
    fn an_unknown_kind_names_the_kinds_there_are() {
        let failure = find(&shop(), "job/web").unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
        assert!(failure.next_step.contains("StatefulSet"));
    }

    #[test]
    fn an_unknown_name_suggests_near_ones() {
        let failure = find(&shop(), "wbe").unwrap_err();
        assert_eq!(failure.reason, Reason::NoSuchWorkload);
        assert_eq!(
            failure.message,
            "there is no wbe in namespace shop; did you mean web?"
        );
        assert!(failure.next_step.contains("kvpn list"));
    }

    #[test]
    fn part_of_a_name_suggests_the_whole() {
        let failure = find(&shop(), "store").unwrap_err();
        assert!(
            failure.message.ends_with("did you mean storefront?"),
            "{}",
            failure.message
        );
    }

    #[test]
    fn a_name_like_nothing_suggests_nothing() {
        let failure = find(&shop(), "zzzzzz").unwrap_err();
        assert_eq!(failure.message, "there is no zzzzzz in namespace shop");
    }

    #[test]
    fn a_workload_without_pods_has_no_running_pod() {
        let failure = find(&shop(), "idle").unwrap_err();
        assert_eq!(failure.reason, Reason::NoRunningPod);
        assert!(failure.message.contains("Deployment/idle"));
    }

    #[test]
    fn a_service_without_selector_is_not_supported() {
        let failure = find(&shop(), "svc/external").unwrap_err();
        assert_eq!(failure.reason, Reason::NotSupported);
    }

    #[test]
    fn a_service_with_two_workloads_asks_for_one() {
        let mut inventory = shop();
        for workload in &mut inventory.workloads {
            if workload.reference.name == "db" {
                workload.labels.insert("app".into(), "web".into());
            }
        }
        let failure = find(&inventory, "storefront").unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
        assert!(
            failure.message.contains("Deployment/web, StatefulSet/db"),
            "{}",
            failure.message
        );
    }
}
