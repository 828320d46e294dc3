//! What users write after `--port`, and what is meant.

use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kvpn_proto::crd::AppProtocol;

use super::*;
use crate::session::workloads::fixture::shop;
use crate::session::workloads::target::find;

fn ask(target: &str, remote: &str) -> Result<(u16, Option<String>), Failure> {
    ask_in(&shop(), target, remote)
}

fn ask_in(
    inventory: &Inventory,
    target: &str,
    remote: &str,
) -> Result<(u16, Option<String>), Failure> {
    let port = &resolved(inventory, target, &[remote])?.ports[0];
    let service = port.service.as_ref();
    Ok((
        port.container_port,
        service.map(|service| format!("{}:{}", service.name, service.port)),
    ))
}

fn resolved(inventory: &Inventory, target: &str, remotes: &[&str]) -> Result<Resolved, Failure> {
    let found = find(inventory, target)?;
    let requested = remotes.iter().map(|remote| port(remote));
    let requested = requested.collect::<Result<Vec<_>, _>>()?;
    resolve_ports(inventory, &found, &requested)
}

fn port(remote: &str) -> Result<RequestedPort, Failure> {
    RequestedPort::new("127.0.0.1:9000".parse().unwrap(), remote)
}

#[test]
fn the_only_service_port_needs_no_name() {
    assert_eq!(ask("web", ""), Ok((8080, Some("storefront:80".into()))));
}

#[test]
fn a_service_port_is_known_by_number_and_name() {
    assert_eq!(ask("web", "80"), Ok((8080, Some("storefront:80".into()))));
    assert_eq!(ask("web", "http"), Ok((8080, Some("storefront:80".into()))));
}

#[test]
fn a_container_port_is_known_by_number_and_name() {
    assert_eq!(ask("web", "8080"), Ok((8080, None)));
    assert_eq!(ask("web", "metrics"), Ok((9100, None)));
}

#[test]
fn an_undeclared_port_that_a_service_targets_is_known() {
    assert_eq!(ask("db", "5432"), Ok((15432, Some("db:5432".into()))));
    assert_eq!(ask("db", "15432"), Ok((15432, Some("db:5432".into()))));
}

#[test]
fn a_number_is_enough_where_pods_tell_of_no_port() {
    let mut inventory = shop();
    for workload in &mut inventory.workloads {
        workload.containers.clear();
    }
    inventory.services.clear();
    assert_eq!(ask_in(&inventory, "web", "9090"), Ok((9090, None)));
    for remote in ["", "http", "0"] {
        let failure = ask_in(&inventory, "web", remote).unwrap_err();
        assert_eq!(failure.reason, Reason::NoSuchPort);
    }
}

/// Namespace `shop`, with another port in the Service storefront.
fn with_port(name: &str, port: i32, protocol: &str) -> Inventory {
    let mut inventory = shop();
    let spec = inventory.services[0].spec.as_mut().unwrap();
    let ports = spec.ports.as_mut().unwrap();
    ports.push(ServicePort {
        name: Some(name.into()),
        port,
        protocol: Some(protocol.into()),
        ..ports[0].clone()
    });
    inventory
}

#[test]
fn several_service_ports_may_lead_to_one_port_of_the_pods() {
    let inventory = with_port("other", 8000, "TCP");
    let storefront = |port: &str| Ok((8080, Some(format!("storefront:{port}"))));
    assert_eq!(ask_in(&inventory, "web", ""), storefront("80"));
    assert_eq!(ask_in(&inventory, "web", "8000"), storefront("8000"));
    assert_eq!(ask_in(&inventory, "web", "other"), storefront("8000"));
}

/// Namespace `shop`, where web's Service has TCP and UDP on one number.
fn with_both() -> Inventory {
    let mut inventory = with_port("datagrams", 80, "UDP");
    let spec = inventory.services[0].spec.as_mut().unwrap();
    spec.ports.as_mut().unwrap()[1].target_port = Some(IntOrString::Int(8080));
    inventory
}

fn protocols(resolved: &Resolved) -> Vec<Protocol> {
    resolved.ports.iter().map(|port| port.protocol).collect()
}

#[test]
fn of_tcp_and_udp_on_one_number_tcp_is_meant_and_the_user_hears_of_the_other() {
    let inventory = with_both();
    for remote in ["", "80", "8080"] {
        let resolved = resolved(&inventory, "web", &[remote]).unwrap();
        assert_eq!(resolved.ports[0].container_port, 8080);
        assert_eq!(protocols(&resolved), [Protocol::Tcp]);
        assert_eq!(
            resolved.warnings,
            [
                "port 80 is both TCP and UDP, and TCP is taken; the pods get the datagrams, \
                 unless you add --port 9000:80/udp"
            ]
        );
    }
}

#[test]
fn protocol_or_name_chooses_between_tcp_and_udp_on_one_number() {
    let inventory = with_both();
    for (remotes, wanted) in [
        (&["80/udp"][..], &[Protocol::Udp][..]),
        (&["/udp"], &[Protocol::Udp]),
        (&["datagrams"], &[Protocol::Udp]),
        (&["datagrams/udp"], &[Protocol::Udp]),
        (&["80/tcp"], &[Protocol::Tcp]),
        (&["http"], &[Protocol::Tcp]),
        (&["80", "80/udp"], &[Protocol::Tcp, Protocol::Udp]),
    ] {
        let resolved = resolved(&inventory, "web", remotes).unwrap();
        assert_eq!(protocols(&resolved), wanted, "{remotes:?}");
        assert!(resolved.warnings.is_empty(), "{:?}", resolved.warnings);
    }
    let failure = resolved(&inventory, "web", &["http/udp"]).unwrap_err();
    assert_eq!(failure.reason, Reason::NoSuchPort);
    assert!(failure.message.contains("no port http of UDP"), "{failure}");
    let twice = resolved(&inventory, "web", &["80/udp", "datagrams"]).unwrap_err();
    assert_eq!(twice.reason, Reason::Usage);
    assert_eq!(port("80/sctp").unwrap_err().reason, Reason::Usage);
}

#[test]
fn protocol_of_a_number_that_nobody_declares_is_as_asked_for() {
    // Its pods tell of TCP ports only.
    let undeclared = resolved(&shop(), "web", &["5353/udp"]).unwrap();
    assert_eq!(undeclared.ports[0].container_port, 5353);
    assert_eq!(protocols(&undeclared), [Protocol::Udp]);
    assert!(undeclared.warnings.is_empty());
}

#[test]
fn without_services_the_only_container_port_needs_no_name() {
    assert_eq!(ask("lonely", ""), Ok((7000, None)));
}

#[test]
fn an_unknown_port_lists_those_there_are() {
    let failure = ask("web", "81").unwrap_err();
    assert_eq!(failure.reason, Reason::NoSuchPort);
    assert_eq!(
        failure.message,
        "Deployment/web has no port 81, or several; there are: 80 (http) of \
         Service/storefront, 8080 (web) of its containers, 9100 (metrics) of its containers"
    );
}

#[test]
fn several_ports_ask_for_a_choice() {
    let mut inventory = shop();
    inventory
        .services
        .retain(|service| service.metadata.name.as_deref() != Some("storefront"));
    let failure = ask_in(&inventory, "web", "").unwrap_err();
    assert_eq!(failure.reason, Reason::NoSuchPort);
}

#[test]
fn the_only_port_may_be_one_of_udp() {
    for remote in ["", "53", "53/udp"] {
        let resolved = resolved(&shop(), "dns", &[remote]).unwrap();
        assert_eq!(resolved.ports[0].container_port, 53);
        assert_eq!(protocols(&resolved), [Protocol::Udp]);
        assert!(resolved.warnings.is_empty());
    }
}

#[test]
fn other_protocols_are_plainly_not_supported() {
    let mut inventory = with_port("signals", 81, "SCTP");
    let spec = inventory.services[0].spec.as_mut().unwrap();
    spec.ports.as_mut().unwrap()[1].target_port = Some(IntOrString::Int(8081));
    let failure = ask_in(&inventory, "web", "signals").unwrap_err();
    assert_eq!(failure.reason, Reason::NotSupported);
    assert!(failure.message.contains("SCTP"), "{}", failure.message);
}

#[test]
fn the_same_port_twice_is_refused() {
    let failure = resolved(&shop(), "web", &["80", "8080"]).unwrap_err();
    assert_eq!(failure.reason, Reason::Usage);
}

#[test]
fn local_ports_are_read_with_and_without_an_address() {
    let read = |local: &str| {
        RequestedPort::try_from(&v1::RequestedPort {
            local: local.into(),
            remote: String::new(),
        })
        .map(|port| port.local.to_string())
    };
    assert_eq!(read("8080").unwrap(), "127.0.0.1:8080");
    assert_eq!(read("localhost:8080").unwrap(), "127.0.0.1:8080");
    assert_eq!(read("[::1]:8080").unwrap(), "[::1]:8080");
    assert_eq!(read("http").unwrap_err().reason, Reason::Usage);
    assert_eq!(read("0").unwrap_err().reason, Reason::Usage);
}

/// Deployment web with a sidecar, whose admin port a Service of its own leads to.
fn with_sidecar() -> Inventory {
    let mut inventory = with_port("admin", 9000, "TCP");
    let spec = inventory.services[0].spec.as_mut().unwrap();
    spec.ports.as_mut().unwrap()[1].target_port = Some(IntOrString::Int(9901));
    let web = inventory.workloads.iter_mut();
    for workload in web.filter(|it| it.reference.to_string() == "Deployment/web") {
        let mut sidecar = workload.containers[0].clone();
        sidecar.name = "envoy".into();
        sidecar.ports.truncate(1);
        sidecar.ports[0].container_port = 9901;
        sidecar.ports[0].name = Some("admin".into());
        workload.containers.push(sidecar);
    }
    inventory
}

#[test]
fn ports_are_looked_up_in_the_container_that_is_named() {
    let inventory = with_sidecar();
    let found = find(&inventory, "web").unwrap();
    let ask = |container: &str, remote: &str| {
        let workload = &found.workload.in_container(container)?;
        let found = Found { workload, ..found };
        let ports = resolve_ports(&inventory, &found, &[port(remote)?])?.ports;
        Ok::<_, Failure>(ports[0].container_port)
    };
    assert!(ask_in(&inventory, "web", "").is_err(), "there are two");
    assert_eq!(ask("app", ""), Ok(8080));
    assert_eq!(ask("envoy", ""), Ok(9901));
    assert_eq!(ask("envoy", "admin"), Ok(9901));
    let elsewhere = ask("envoy", "metrics").unwrap_err();
    assert_eq!(elsewhere.reason, Reason::NoSuchPort);
    assert!(!elsewhere.message.contains("8080"), "{elsewhere}");
    let unknown = ask("nginx", "").unwrap_err();
    assert_eq!(unknown.message, "Deployment/web has no container nginx");
    assert_eq!(unknown.next_step, "name one with --container: app, envoy");
}

#[test]
fn what_is_spoken_is_told_by_the_service_before_the_names_of_ports() {
    let spoken = |inventory: &Inventory, target: &str, remote: &str| {
        let ports = resolved(inventory, target, &[remote]).unwrap().ports;
        let spoken = ports[0].spoken.clone();
        spoken.map(|spoken| (spoken.protocol, spoken.by))
    };
    let by = |protocol, by: &str| Some((protocol, by.to_owned()));
    let mut inventory = shop();
    let by_name = by(
        AppProtocol::Http,
        "the name http of the port of Service/storefront",
    );
    assert_eq!(spoken(&inventory, "web", "80"), by_name);
    // The container's number, too, is that of the Service's port.
    assert_eq!(spoken(&inventory, "web", "8080"), by_name);
    assert_eq!(spoken(&inventory, "web", "metrics"), None);
    let spec = inventory.services[0].spec.as_mut().unwrap();
    spec.ports.as_mut().unwrap()[0].app_protocol = Some("mysql".into());
    let declared = "appProtocol mysql of Service/storefront";
    let opaque = by(AppProtocol::Opaque, declared);
    assert_eq!(spoken(&inventory, "web", "80"), opaque);
    assert_eq!(spoken(&inventory, "web", "8080"), opaque);
}

/// Namespace `shop`, where two Services lead to web's port 8080: storefront by 80 and other
/// by 81. Each has an `appProtocol`, and a name for its port.
fn with_two_services(storefront: [Option<&str>; 2], other: [Option<&str>; 2]) -> Inventory {
    let mut inventory = shop();
    let mut second = inventory.services[0].clone();
    second.metadata.name = Some("other".into());
    inventory.services.push(second);
    let last = inventory.services.len() - 1;
    for (i, number, [app_protocol, name]) in [(0, 80, storefront), (last, 81, other)] {
        let spec = inventory.services[i].spec.as_mut().unwrap();
        let port = &mut spec.ports.as_mut().unwrap()[0];
        port.port = number;
        port.app_protocol = app_protocol.map(str::to_owned);
        port.name = name.map(str::to_owned);
    }
    inventory
}

#[test]
fn of_services_that_contradict_each_other_the_one_that_was_named_is_believed() {
    let spoken = |inventory: &Inventory, remote: &str| {
        let ports = resolved(inventory, "web", &[remote]).unwrap().ports;
        ports[0].spoken.as_ref().map(|spoken| spoken.protocol)
    };
    let (http, opaque) = (Some(AppProtocol::Http), Some(AppProtocol::Opaque));
    let declared = with_two_services([Some("http"), None], [Some("amqp"), None]);
    assert_eq!(spoken(&declared, "80"), http);
    assert_eq!(spoken(&declared, "81"), opaque);
    // By the container's number both are others.
    assert_eq!(spoken(&declared, "8080"), None);
    let named = with_two_services([None, Some("http")], [Some("amqp"), None]);
    assert_eq!(spoken(&named, "80"), http);
    assert_eq!(spoken(&named, "8080"), opaque, "a declaration counts more");
    let names = with_two_services([None, Some("http")], [None, Some("redis")]);
    assert_eq!(spoken(&names, "8080"), None);
    let agreed = with_two_services([Some("http"), None], [Some("grpc"), None]);
    assert_eq!(spoken(&agreed, "8080"), http);
    // A name that speaks of no HTTP gives way to who knows better.
    let vague = with_two_services([None, Some("tcp-web")], [Some("http"), None]);
    assert_eq!(spoken(&vague, "80"), http);
    let vague = with_two_services([None, Some("tcp-web")], [None, None]);
    let port = &resolved(&vague, "web", &["80"]).unwrap().ports[0];
    assert!(!port.spoken.as_ref().unwrap().is_declared);
}

#[test]
fn ports_of_other_containers_are_hidden_by_number_and_protocol() {
    let mut inventory = with_sidecar();
    let web = inventory.workloads.iter_mut();
    for workload in web.filter(|it| it.reference.to_string() == "Deployment/web") {
        // The app has the sidecar's number, for datagrams.
        let mut datagrams = workload.containers[1].ports[0].clone();
        datagrams.protocol = Some("UDP".into());
        datagrams.name = None;
        workload.containers[0].ports.push(datagrams);
        let mut agent = workload.containers[1].clone();
        agent.name = format!("{}x", kvpn_proto::names::AGENT_CONTAINER_PREFIX);
        workload.containers.push(agent);
    }
    let found = find(&inventory, "web").unwrap();
    let ask = |container: &str, remote: &str| {
        let workload = &found.workload.in_container(container)?;
        let found = Found { workload, ..found };
        let ports = resolve_ports(&inventory, &found, &[port(remote)?])?.ports;
        Ok::<_, Failure>((ports[0].container_port, ports[0].protocol))
    };
    // The Service's port 9000 leads to the sidecar's.
    assert_eq!(ask("envoy", "9000"), Ok((9901, Protocol::Tcp)));
    assert_eq!(ask("app", "9000").unwrap_err().reason, Reason::NoSuchPort);
    assert_eq!(ask("app", "9901/udp"), Ok((9901, Protocol::Udp)));
    let agent = ask(
        &format!("{}x", kvpn_proto::names::AGENT_CONTAINER_PREFIX),
        "",
    );
    let next_step = "name one with --container: app, envoy";
    assert_eq!(agent.unwrap_err().next_step, next_step);
}
