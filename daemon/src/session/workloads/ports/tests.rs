//! What users write after `--port`, and what is meant.

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
    let found = find(inventory, target)?;
    let requested = RequestedPort {
        local: "127.0.0.1:9000".parse().unwrap(),
        remote: remote.into(),
    };
    let ports = resolve_ports(inventory, &found, &[requested])?;
    let service = ports[0].service.as_ref();
    Ok((
        ports[0].container_port,
        service.map(|service| format!("{}:{}", service.name, service.port)),
    ))
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
        workload.ports.clear();
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

#[test]
fn of_tcp_and_udp_on_one_number_tcp_is_meant() {
    let mut inventory = with_port("datagrams", 80, "UDP");
    let spec = inventory.services[0].spec.as_mut().unwrap();
    spec.ports.as_mut().unwrap()[1].target_port = Some(IntOrString::Int(8080));
    for remote in ["", "80", "http", "8080"] {
        assert_eq!(ask_in(&inventory, "web", remote).unwrap().0, 8080);
    }
    let failure = ask_in(&inventory, "web", "datagrams").unwrap_err();
    assert_eq!(failure.reason, Reason::NotSupported);
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
    let found = find(&inventory, "web").unwrap();
    let requested = RequestedPort {
        local: "127.0.0.1:9000".parse().unwrap(),
        remote: String::new(),
    };
    let failure = resolve_ports(&inventory, &found, &[requested]).unwrap_err();
    assert_eq!(failure.reason, Reason::NoSuchPort);
}

#[test]
fn udp_is_plainly_not_supported() {
    let failure = ask("dns", "53").unwrap_err();
    assert_eq!(failure.reason, Reason::NotSupported);
    assert!(failure.message.contains("UDP"), "{}", failure.message);
}

#[test]
fn the_same_port_twice_is_refused() {
    let inventory = shop();
    let found = find(&inventory, "web").unwrap();
    let port = |remote: &str| RequestedPort {
        local: "127.0.0.1:9000".parse().unwrap(),
        remote: remote.into(),
    };
    let failure = resolve_ports(&inventory, &found, &[port("80"), port("8080")]).unwrap_err();
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
