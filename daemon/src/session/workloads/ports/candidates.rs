//! The ports of a workload that a user may mean.

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kvpn_proto::crd::ServicePortRef;
use kvpn_proto::flow::{Carried, Protocol};

use crate::session::workloads::{Found, Inventory, Workload};

/// A port that the user may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session::workloads) struct Candidate {
    /// What the user may call it.
    pub(super) number: u16,
    pub(in crate::session::workloads) name: Option<String>,
    pub(super) container_port: u16,
    pub(super) protocol: String,
    /// As the Service has it.
    pub(in crate::session::workloads) app_protocol: Option<String>,
    pub(super) service: Option<ServicePortRef>,
}

impl Candidate {
    /// `None` for one that cannot be engaged.
    pub(super) fn protocol(&self) -> Option<Protocol> {
        match self.protocol.as_str() {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            _ => None,
        }
    }

    /// A port of pods that tell of none. Where they tell of some, another number is more
    /// likely to be a slip.
    pub(super) fn undeclared(remote: &str, protocol: Protocol) -> Option<Self> {
        let number = remote.parse().ok().filter(|number| *number != 0)?;
        Some(Self {
            number,
            name: None,
            container_port: number,
            protocol: Carried::from(protocol).as_str().into(),
            app_protocol: None,
            service: None,
        })
    }

    /// Who has it, such as `Service/web`.
    pub(in crate::session::workloads) fn place(&self) -> String {
        match &self.service {
            Some(service) => format!("Service/{}", service.name),
            None => "its containers".to_owned(),
        }
    }

    /// Whether it is the same port of the pods.
    pub(super) fn is_same_port(&self, other: &Self) -> bool {
        (self.container_port, &self.protocol) == (other.container_port, &other.protocol)
    }

    /// Such as `80 (http) of Service/web` or `8080 of its containers`.
    pub(super) fn describe(&self) -> String {
        let name = self
            .name
            .as_ref()
            .map(|name| format!(" ({name})"))
            .unwrap_or_default();
        let protocol = match self.protocol.as_str() {
            "TCP" => String::new(),
            other => format!("/{other}"),
        };
        format!("{}{protocol}{name} of {}", self.number, self.place())
    }
}

/// All ports that the user may mean.
pub(super) struct Candidates {
    pub(super) by_service: Vec<Candidate>,
    pub(super) by_container: Vec<Candidate>,
}

impl Candidates {
    pub(super) fn new(inventory: &Inventory, found: &Found<'_>) -> Self {
        let workload = found.workload;
        Self {
            by_service: match found.service {
                Some(service) => service_ports(service, workload).collect(),
                None => inventory
                    .services_of(workload)
                    .flat_map(|service| service_ports(service, workload))
                    .collect(),
            },
            by_container: container_ports(workload),
        }
    }

    /// Those of a protocol, or all.
    pub(super) fn of(&self, protocol: Option<Protocol>) -> Self {
        let of = |candidates: &[Candidate]| {
            let candidates = candidates.iter();
            let fits = |it: &&Candidate| protocol.is_none() || it.protocol() == protocol;
            candidates.filter(fits).cloned().collect()
        };
        Self {
            by_service: of(&self.by_service),
            by_container: of(&self.by_container),
        }
    }
}

fn service_ports(service: &Service, workload: &Workload) -> impl Iterator<Item = Candidate> {
    let name = service.metadata.name.as_deref().unwrap_or_default();
    let ports = service
        .spec
        .iter()
        .flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(move |port| {
        let number = u16::try_from(port.port).ok()?;
        let container_port = target(port, workload)?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        if workload.hides(container_port, &protocol) {
            return None;
        }
        Some(Candidate {
            number,
            name: port.name.clone(),
            container_port,
            protocol,
            app_protocol: port.app_protocol.clone(),
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
            let declared = workload.ports().find(|declared| {
                declared.name.as_ref() == Some(name)
                    && declared.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            declared?.container_port.try_into().ok()
        }
    }
}

fn container_ports(workload: &Workload) -> Vec<Candidate> {
    workload
        .ports()
        .filter_map(|port| {
            let number = port.container_port.try_into().ok()?;
            Some(Candidate {
                number,
                name: port.name.clone(),
                container_port: number,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                app_protocol: None,
                service: None,
            })
        })
        .collect()
}
