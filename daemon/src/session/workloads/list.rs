//! What `kvpn list` shows of a namespace.

use kvpn_proto::crd::{Engagement, WorkloadRef};
use kvpn_proto::flow::Protocol;
use kvpn_proto::v1::WorkloadStatus;

use super::{Inventory, is_ready};

/// The workloads that are nobody's, by name.
pub(crate) fn list(inventory: &Inventory, engagements: &[Engagement]) -> Vec<WorkloadStatus> {
    let mut workloads: Vec<WorkloadStatus> = inventory
        .top_level()
        .map(|workload| {
            let reference = &workload.reference;
            let ready = inventory
                .pods_of(reference)
                .filter(|pod| is_ready(pod))
                .count();
            WorkloadStatus {
                kind: reference.kind.as_str().to_owned(),
                name: reference.name.clone(),
                namespace: inventory.namespace.clone(),
                pods_ready: u32::try_from(ready).unwrap_or(u32::MAX),
                pods_wanted: workload.pods_wanted,
                services: inventory
                    .services_of(workload)
                    .filter_map(|service| service.metadata.name.clone())
                    .collect(),
                engaged_by: engagers(engagements, reference),
            }
        })
        .collect();
    workloads.sort_by(|a, b| (&a.name, &a.kind).cmp(&(&b.name, &b.kind)));
    workloads
}

/// Who engages a workload, such as `alice (intercept, port 80)`, with the filter if there is
/// one.
fn engagers(engagements: &[Engagement], workload: &WorkloadRef) -> Vec<String> {
    engagements
        .iter()
        .filter(|engagement| engagement.spec.workload == *workload)
        .flat_map(|engagement| {
            let spec = &engagement.spec;
            let only = spec.http.as_ref();
            let only = only.map_or(String::new(), |filter| format!(", requests with {filter}"));
            let (user, verb) = (&spec.user, spec.verb.as_str());
            let without_ports = spec.ports.is_empty().then(|| format!("{user} ({verb})"));
            let by_port = spec.ports.iter().map(move |port| {
                let number = port.container_port;
                let protocol = match port.protocol {
                    Protocol::Tcp => "",
                    Protocol::Udp => "/udp",
                };
                format!("{user} ({verb}, port {number}{protocol}{only})")
            });
            without_ports.into_iter().chain(by_port)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use kvpn_proto::crd::Verb;
    use kvpn_proto::filter::{Condition, HttpFilter};

    use super::super::fixture::{engagement, shop};
    use super::*;

    #[test]
    fn what_belongs_to_another_workload_is_not_listed() {
        let listed = list(&shop(), &[]);
        let names: Vec<_> = listed
            .iter()
            .map(|w| format!("{}/{}", w.kind, w.name))
            .collect();
        assert_eq!(
            names,
            [
                "Deployment/blue",
                "Rollout/blue",
                "StatefulSet/db",
                "Deployment/dns",
                "Deployment/idle",
                "Job/import",
                "Pod/lonely",
                "Deployment/web"
            ]
        );
    }

    #[test]
    fn a_rollout_has_the_pods_and_services_of_its_replica_sets() {
        let listed = list(&shop(), &[]);
        let blue = listed.iter().find(|workload| workload.kind == "Rollout");
        let blue = blue.unwrap();
        assert_eq!((blue.pods_ready, blue.pods_wanted), (1, 1));
        assert_eq!(blue.services, ["blue-active"]);
    }

    #[test]
    fn readiness_services_and_engagers_are_shown() {
        let bobs = engagement("web-bob-1", "bob", "web", 8080);
        let mut alices = engagement("web-alice-1", "alice", "web", 8080);
        alices.spec.http = Some(HttpFilter {
            any: false,
            conditions: vec![Condition::header("x-user=alice")],
        });
        let listed = list(&shop(), &[bobs, alices]);
        let web = listed
            .iter()
            .find(|workload| workload.name == "web")
            .unwrap();
        assert_eq!((web.pods_ready, web.pods_wanted), (1, 2));
        assert_eq!(web.services, ["storefront"]);
        assert_eq!(
            web.engaged_by,
            [
                "bob (intercept, port 8080)",
                "alice (intercept, port 8080, requests with header x-user=alice)"
            ]
        );
        let mut ingest = engagement("web-carol-1", "carol", "web", 8080);
        (ingest.spec.verb, ingest.spec.ports) = (Verb::Ingest, Vec::new());
        let listed = list(&shop(), &[ingest]);
        let mut engaged = listed.iter().flat_map(|workload| &workload.engaged_by);
        assert_eq!(engaged.next().map(String::as_str), Some("carol (ingest)"));
    }
}
