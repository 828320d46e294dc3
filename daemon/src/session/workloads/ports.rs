//! From `--port LOCAL[:REMOTE]` to a port of the workload's pods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kvpn_proto::crd::ServicePortRef;
use kvpn_proto::{Failure, Reason, v1};

use super::{Found, Inventory, Workload};

/// One `--port`, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestedPort {
    pub(crate) local: SocketAddr,
    /// Number or name of a Service's or container's port; empty for the only
    /// one there is.
    pub(crate) remote: String,
}

impl TryFrom<&v1::RequestedPort> for RequestedPort {
    type Error = Failure;

    fn try_from(port: &v1::RequestedPort) -> Result<Self, Failure> {
        let local = port
            .local
            .parse::<SocketAddr>()
            .ok()
            .or_else(|| {
                let number = port.local.strip_prefix("localhost:").unwrap_or(&port.local);
                let number = number.parse().ok()?;
                Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), number))
            })
            .filter(|local| local.port() != 0);
        match local {
            Some(local) => Ok(Self {
                local,
                remote: port.remote.clone(),
            }),
            None => Err(Failure::new(
                Reason::Usage,
                format!("{} is not a local port", port.local),
                "write a port such as 8080, or an address such as 127.0.0.1:8080",
            )),
        }
    }
}

/// A port of the pods, and the Service port that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvedPort {
    pub(crate) local: SocketAddr,
    pub(crate) container_port: u16,
    pub(crate) service: Option<ServicePortRef>,
}

/// A port that the user may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    /// What the user may call it.
    number: u16,
    name: Option<String>,
    container_port: u16,
    protocol: String,
    service: Option<ServicePortRef>,
}

/// Finds every port that was asked for; each port of the pods only once.
pub(crate) fn resolve_ports(
    inventory: &Inventory,
    found: &Found<'_>,
    requested: &[RequestedPort],
) -> Result<Vec<ResolvedPort>, Failure> {
    if requested.is_empty() {
        return Err(Failure::new(
            Reason::Usage,
            "no port was named",
            "name the local port with --port, such as --port 8080",
        ));
    }
    let mut resolved: Vec<ResolvedPort> = Vec::new();
    for port in requested {
        let next = resolve(inventory, found, port)?;
        if resolved
            .iter()
            .any(|before| before.container_port == next.container_port)
        {
            return Err(Failure::new(
                Reason::Usage,
                format!("port {} of the pods is named twice", next.container_port),
                "name each port once",
            ));
        }
        resolved.push(next);
    }
    Ok(resolved)
}

fn resolve(
    inventory: &Inventory,
    found: &Found<'_>,
    requested: &RequestedPort,
) -> Result<ResolvedPort, Failure> {
    let workload = found.workload;
    let by_service: Vec<Candidate> = match found.service {
        Some(service) => service_ports(service, workload).collect(),
        None => inventory
            .services_of(workload)
            .flat_map(|service| service_ports(service, workload))
            .collect(),
    };
    let by_container = container_ports(workload);
    let chosen = if requested.remote.is_empty() {
        let all = if by_service.is_empty() {
            &by_container
        } else {
            &by_service
        };
        the_only(all.clone())
    } else {
        named(&by_service, &by_container, &requested.remote).or_else(|| {
            let none_known = by_service.is_empty() && by_container.is_empty();
            none_known.then(|| undeclared(&requested.remote)).flatten()
        })
    };
    let Some(chosen) = chosen else {
        return Err(no_such_port(
            found,
            &requested.remote,
            &by_service,
            &by_container,
        ));
    };
    if chosen.protocol != "TCP" {
        return Err(Failure::new(
            Reason::NotSupported,
            format!(
                "port {} of {} is a {} port, and only TCP can be engaged",
                chosen.number, workload.reference, chosen.protocol
            ),
            "choose a TCP port",
        ));
    }
    Ok(ResolvedPort {
        local: requested.local,
        container_port: chosen.container_port,
        service: chosen.service,
    })
}

/// Services come first: their ports are what callers use.
fn named(by_service: &[Candidate], by_container: &[Candidate], remote: &str) -> Option<Candidate> {
    let number: Option<u16> = remote.parse().ok();
    let matching = |candidates: &[Candidate]| {
        let matches = candidates
            .iter()
            .filter(|candidate| {
                Some(candidate.number) == number || candidate.name.as_deref() == Some(remote)
            })
            .cloned()
            .collect();
        the_only(matches)
    };
    // A container need not declare the port that a Service targets.
    let targeted = || {
        by_service
            .iter()
            .find(|candidate| Some(candidate.container_port) == number)
            .cloned()
    };
    matching(by_service)
        .or_else(|| matching(by_container))
        .or_else(targeted)
}

/// A port of pods that tell of none. Where they tell of some, another number is more
/// likely to be a slip.
fn undeclared(remote: &str) -> Option<Candidate> {
    let number = remote.parse().ok().filter(|number| *number != 0)?;
    Some(Candidate {
        number,
        name: None,
        container_port: number,
        protocol: "TCP".into(),
        service: None,
    })
}

/// The one candidate there is. TCP goes before UDP of the same number, and
/// several ways to the same port of the pods count as one.
fn the_only(candidates: Vec<Candidate>) -> Option<Candidate> {
    let (tcp, other): (Vec<_>, Vec<_>) = candidates
        .into_iter()
        .partition(|candidate| candidate.protocol == "TCP");
    let mut candidates = if tcp.is_empty() { other } else { tcp }.into_iter();
    let first = candidates.next()?;
    candidates
        .all(|candidate| candidate.container_port == first.container_port)
        .then_some(first)
}

fn service_ports(service: &Service, workload: &Workload) -> impl Iterator<Item = Candidate> {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let ports = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(move |port| {
        let number = u16::try_from(port.port).ok()?;
        Some(Candidate {
            number,
            name: port.name.clone(),
            container_port: target(port, workload)?,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            service: Some(ServicePortRef {
                name: name.to_owned(),
                port: number,
            }),
        })
    })
}

/// Where a Service port leads in a pod of the workload.
fn target(port: &ServicePort, workload: &Workload) -> Option<u16> {
    match &port.target_port {
        None => port.port.try_into().ok(),
        Some(IntOrString::Int(0)) => port.port.try_into().ok(),
        Some(IntOrString::Int(number)) => (*number).try_into().ok(),
        Some(IntOrString::String(name)) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let declared = workload.ports.iter().find(|declared| {
                declared.name.as_ref() == Some(name)
                    && declared.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            declared?.container_port.try_into().ok()
        }
    }
}

fn container_ports(workload: &Workload) -> Vec<Candidate> {
    workload
        .ports
        .iter()
        .filter_map(|port| {
            let number = port.container_port.try_into().ok()?;
            Some(Candidate {
                number,
                name: port.name.clone(),
                container_port: number,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                service: None,
            })
        })
        .collect()
}

fn no_such_port(
    found: &Found<'_>,
    remote: &str,
    by_service: &[Candidate],
    by_container: &[Candidate],
) -> Failure {
    let workload = &found.workload.reference;
    let there_are = match by_service
        .iter()
        .chain(by_container)
        .map(describe)
        .collect::<Vec<_>>()[..]
    {
        [] => "it has none".to_owned(),
        ref ports => format!("there are: {}", ports.join(", ")),
    };
    let message = if remote.is_empty() {
        format!("{workload} does not have just one port; {there_are}")
    } else {
        format!("{workload} has no port {remote}, or several; {there_are}")
    };
    Failure::new(
        Reason::NoSuchPort,
        message,
        "name one of its ports after the local one, such as --port 8080:80",
    )
}

/// Such as `80 (http) of Service/web` or `8080 of its containers`.
fn describe(candidate: &Candidate) -> String {
    let name = candidate
        .name
        .as_ref()
        .map(|name| format!(" ({name})"))
        .unwrap_or_default();
    let protocol = match candidate.protocol.as_str() {
        "TCP" => String::new(),
        other => format!("/{other}"),
    };
    let place = match &candidate.service {
        Some(service) => format!("Service/{}", service.name),
        None => "its containers".to_owned(),
    };
    format!("{}{protocol}{name} of {place}", candidate.number)
}

#[cfg(test)]
mod tests;
