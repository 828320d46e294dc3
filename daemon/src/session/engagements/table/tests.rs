//! What the table knows, and whom it refuses.

use std::sync::Arc;

use futures::FutureExt;
use kvpn_proto::crd::ServicePortRef;

use super::*;
use crate::session::engagements::Handlers;

fn table() -> Table {
    let table = Table::default();
    let workload = WorkloadRef {
        kind: WorkloadKind::Deployment,
        name: "web".into(),
    };
    let port = ResolvedPort {
        local: "127.0.0.1:9000".parse().unwrap(),
        container_port: 8080,
        protocol: Protocol::Tcp,
        service: Some(ServicePortRef {
            name: "storefront".into(),
            port: 80,
        }),
        spoken: None,
    };
    table.insert(
        Key::new("shop", "web-alice-1"),
        Entry::new(Verb::Intercept, workload, vec![port], None, false),
    );
    table
}

#[test]
fn only_ports_that_were_asked_for_have_a_local_address() {
    let key = Key::new("shop", "web-alice-1");
    let local = |key, port, protocol| table().local(key, port, protocol);
    assert_eq!(
        local(&key, 8080, Protocol::Tcp),
        Some("127.0.0.1:9000".parse().unwrap())
    );
    assert_eq!(local(&key, 8080, Protocol::Udp), None);
    assert_eq!(local(&key, 22, Protocol::Tcp), None);
    let other = Key::new("other", "web-alice-1");
    assert_eq!(local(&other, 8080, Protocol::Tcp), None);
}

#[test]
fn no_port_leads_into_a_pod_where_connections_are_handled() {
    let entry = |local: &str, to_pod: &[u16]| {
        let workload = WorkloadRef {
            kind: WorkloadKind::Deployment,
            name: "api".into(),
        };
        let port = ResolvedPort {
            local: local.parse().unwrap(),
            container_port: 8080,
            protocol: Protocol::Tcp,
            service: None,
            spoken: None,
        };
        let mut entry = Entry::new(Verb::Intercept, workload, vec![port], None, false);
        let to_pod = to_pod.iter().map(|local| ToPod {
            local: *local,
            port: 9901,
        });
        entry.to_pod = to_pod.collect();
        entry
    };
    let table = table();
    let admit = |name: &str, local: &str, to_pod: &[u16]| {
        let key = Key::new("shop", name);
        let admitted = table.admit(key, entry(local, to_pod));
        admitted.map_err(|failure| (failure.reason, failure.message))
    };
    // The table's own has its handler there.
    let handled = "--to-pod cannot listen at 127.0.0.1:9000: web-alice-1 has it for what \
                   answers there";
    let refused = admit("a", "127.0.0.1:8080", &[15000, 9000]);
    assert_eq!(refused, Err((Reason::Usage, handled.into())));
    assert_eq!(admit("b", "127.0.0.1:8080", &[15000]), Ok(()));
    let led = "--port cannot hand connections to 127.0.0.1:15000: it leads into a pod, by \
               --to-pod of b";
    for local in ["127.0.0.1:15000", "0.0.0.0:15000"] {
        let refused = admit("c", local, &[]);
        assert_eq!(refused, Err((Reason::Usage, led.into())), "{local}");
    }
    // Several may share a handler.
    assert_eq!(admit("d", "127.0.0.1:8080", &[]), Ok(()));
    let mut names: Vec<_> = table.keys().into_iter().map(|key| key.name).collect();
    names.sort();
    assert_eq!(names, ["b", "d", "web-alice-1"]);
    table.remove(&Key::new("shop", "b"));
    assert_eq!(admit("e", "127.0.0.1:15000", &[]), Ok(()));
}

#[test]
fn engagement_is_over_once_its_resource_is_gone() {
    let table = Arc::new(table());
    let handlers = Handlers(Arc::clone(&table));
    let mut over = Box::pin(handlers.over("shop", "web-alice-1"));
    assert!((&mut over).now_or_never().is_none());
    // While that is deleted, the entry may come back.
    let key = Key::new("shop", "web-alice-1");
    let entry = table.remove(&key).unwrap();
    assert!((&mut over).now_or_never().is_none());
    drop(entry);
    assert!(over.now_or_never().is_some());
    assert!(
        handlers
            .over("shop", "web-alice-1")
            .now_or_never()
            .is_some()
    );
}

#[test]
fn an_engagement_is_meant_by_its_name_workload_or_service() {
    for target in [
        "web",
        "web-alice-1",
        "deploy/web",
        "storefront",
        "svc/storefront",
    ] {
        assert_eq!(table().meant("shop", target).unwrap().len(), 1, "{target}");
    }
}

#[test]
fn what_is_not_engaged_lists_what_is() {
    for (namespace, target) in [("shop", "db"), ("other", "web"), ("shop", "sts/web")] {
        let failure = table().meant(namespace, target).unwrap_err();
        assert_eq!(failure.reason, Reason::NoSuchEngagement);
        assert_eq!(
            failure.next_step,
            "choose one of: Deployment/web in namespace shop"
        );
    }
}

#[test]
fn environment_is_read_for_those_engagements_that_asked_for_it() {
    let table = table();
    let key = Key::new("shop", "web-alice-1");
    table.keep_uid(&key, Some("u-1".into()));
    assert_eq!(table.read_by(&key), None);
    let mut entry = table.remove(&key).unwrap();
    entry.environment = true;
    entry.container = Some("app".into());
    table.insert(key.clone(), entry);
    assert_eq!(table.read_by(&key), Some(("u-1".into(), "app".into())));
}

#[test]
fn why_an_environment_cannot_be_read_is_known_once_that_is_observed() {
    let table = table();
    let key = Key::new("shop", "web-alice-1");
    assert_eq!(table.unreadable(&key), None);
    let refused = Failure::new(Reason::AgentRefused, "refused", "ask");
    let observed = Observed {
        environment: Progress::Failed(refused.clone()),
        ..Observed::default()
    };
    table.observe(&key, observed);
    assert_eq!(table.unreadable(&key), Some(refused));
}

#[test]
fn status_tells_ports_and_what_is_waited_for() {
    let statuses = table().statuses();
    assert_eq!(statuses[0].workload, "Deployment/web");
    assert_eq!(statuses[0].ports[0].service_port, 80);
    assert!(!statuses[0].active);
    assert!(!statuses[0].message.is_empty());
}
