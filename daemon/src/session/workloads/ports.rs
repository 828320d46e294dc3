//! From `--port LOCAL[:REMOTE][/PROTOCOL]` to a port of the workload's pods.

mod candidates;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kvpn_proto::crd::ServicePortRef;
use kvpn_proto::flow::{Carried, Protocol};
use kvpn_proto::{Failure, Reason, v1};

pub(super) use candidates::Candidate;
use candidates::Candidates;

use super::{Found, Inventory, Spoken};

/// One `--port`, as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestedPort {
    pub(crate) local: SocketAddr,
    /// Number or name of a Service's or container's port; empty for the only
    /// one there is.
    pub(crate) remote: String,
    /// None for TCP, or else UDP.
    pub(crate) protocol: Option<Protocol>,
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
            Some(local) => Self::new(local, &port.remote),
            None => Err(Failure::new(
                Reason::Usage,
                format!("{} is not a local port", port.local),
                "write a port such as 8080, or an address such as 127.0.0.1:8080",
            )),
        }
    }
}

impl RequestedPort {
    /// What the user wrote of the remote port, such as `53`, `dns/udp` or `/tcp`.
    pub(crate) fn new(local: SocketAddr, text: &str) -> Result<Self, Failure> {
        let (remote, protocol) = match text.split_once('/') {
            None => (text, None),
            Some((remote, "tcp")) => (remote, Some(Protocol::Tcp)),
            Some((remote, "udp")) => (remote, Some(Protocol::Udp)),
            Some((_, protocol)) => {
                return Err(Failure::new(
                    Reason::Usage,
                    format!("{protocol} is not a protocol that can be engaged"),
                    "write /tcp or /udp after the port, or nothing",
                ));
            }
        };
        Ok(Self {
            local,
            remote: remote.to_owned(),
            protocol,
        })
    }

    /// Whether it may be of TCP as well as of UDP. A name is of one port.
    fn is_ambiguous(&self) -> bool {
        let is_number = self.remote.parse::<u16>().is_ok();
        self.protocol.is_none() && (self.remote.is_empty() || is_number)
    }
}

/// A port of the pods, and the Service port that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResolvedPort {
    pub(crate) local: SocketAddr,
    pub(crate) container_port: u16,
    pub(crate) protocol: Protocol,
    pub(crate) service: Option<ServicePortRef>,
    /// What is spoken there, if that is known.
    pub(crate) spoken: Option<Spoken>,
}

impl ResolvedPort {
    /// Whether it is the same port of the pods.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (self.container_port, self.protocol) == (other.container_port, other.protocol)
    }
}

/// Ports of the pods, and what the user should know of how they were chosen.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) ports: Vec<ResolvedPort>,
    pub(crate) warnings: Vec<String>,
}

/// Finds every port that was asked for; each port of the pods only once.
pub(crate) fn resolve_ports(
    inventory: &Inventory,
    found: &Found<'_>,
    requested: &[RequestedPort],
) -> Result<Resolved, Failure> {
    if requested.is_empty() {
        return Err(Failure::new(
            Reason::Usage,
            "no port was named",
            "name the local port with --port, such as --port 8080",
        ));
    }
    let candidates = Candidates::new(inventory, found);
    let mut ports: Vec<ResolvedPort> = Vec::new();
    for port in requested {
        let next = resolve(found, &candidates, port)?;
        if ports.iter().any(|before| before.is_same(&next)) {
            return Err(Failure::new(
                Reason::Usage,
                format!("port {} of the pods is named twice", next.container_port),
                "name each port once",
            ));
        }
        ports.push(next);
    }
    let chosen = requested.iter().zip(&ports);
    let warnings = chosen
        .filter(|(requested, _)| requested.is_ambiguous())
        .filter_map(|(_, port)| left_out(&candidates, port, &ports))
        .collect();
    Ok(Resolved { ports, warnings })
}

/// What the user is told when TCP was taken for a number that UDP has as well.
fn left_out(
    candidates: &Candidates,
    chosen: &ResolvedPort,
    ports: &[ResolvedPort],
) -> Option<String> {
    let is_meant = |other: &&Candidate| {
        let same_service = other.service == chosen.service && chosen.service.is_some();
        other.protocol() == Some(Protocol::Udp)
            && (other.container_port == chosen.container_port || same_service)
    };
    let all = [&candidates.by_service, &candidates.by_container];
    let other = all.into_iter().flatten().find(is_meant)?;
    let is_named = ports
        .iter()
        .any(|port| port.protocol == Protocol::Udp && port.container_port == other.container_port);
    if chosen.protocol == Protocol::Udp || is_named {
        return None;
    }
    let (number, local) = (other.number, chosen.local.port());
    Some(format!(
        "port {number} is both TCP and UDP, and TCP is taken; the pods get the datagrams, \
         unless you add --port {local}:{number}/udp"
    ))
}

fn resolve(
    found: &Found<'_>,
    all: &Candidates,
    requested: &RequestedPort,
) -> Result<ResolvedPort, Failure> {
    let Candidates {
        by_service,
        by_container,
    } = all.of(requested.protocol);
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
            let protocol = requested.protocol.unwrap_or(Protocol::Tcp);
            let undeclared = || Candidate::undeclared(&requested.remote, protocol);
            none_known.then(undeclared).flatten()
        })
    };
    let Some(chosen) = chosen else {
        return Err(no_such_port(found, requested, all));
    };
    let Some(protocol) = chosen.protocol() else {
        return Err(Failure::new(
            Reason::NotSupported,
            format!(
                "port {} of {} is of {}, and only TCP and UDP can be engaged",
                chosen.number, found.workload.reference, chosen.protocol
            ),
            "choose a port of TCP or UDP",
        ));
    };
    let others = by_service.iter().chain(&by_container);
    let others = others.filter(|other| other.is_same_port(&chosen));
    let spoken = match protocol {
        Protocol::Tcp => Spoken::of(&chosen, others),
        Protocol::Udp => None,
    };
    Ok(ResolvedPort {
        local: requested.local,
        container_port: chosen.container_port,
        protocol,
        service: chosen.service,
        spoken,
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
        let candidates = by_service.iter();
        let leads_there = |it: &&Candidate| Some(it.container_port) == number;
        the_only(candidates.filter(leads_there).cloned().collect())
    };
    matching(by_service)
        .or_else(|| matching(by_container))
        .or_else(targeted)
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

fn no_such_port(found: &Found<'_>, requested: &RequestedPort, all: &Candidates) -> Failure {
    let workload = &found.workload.reference;
    let there_are = match all
        .by_service
        .iter()
        .chain(&all.by_container)
        .map(Candidate::describe)
        .collect::<Vec<_>>()[..]
    {
        [] => "it has none".to_owned(),
        ref ports => format!("there are: {}", ports.join(", ")),
    };
    let protocol = requested.protocol.map(|it| Carried::from(it).as_str());
    let of = protocol.map_or(String::new(), |protocol| format!(" of {protocol}"));
    let message = match requested.remote.as_str() {
        "" => format!("{workload} does not have just one port{of}; {there_are}"),
        remote => format!("{workload} has no port {remote}{of}, or several; {there_are}"),
    };
    Failure::new(
        Reason::NoSuchPort,
        message,
        "name one of its ports after the local one, such as --port 8080:80",
    )
}

#[cfg(test)]
mod tests;
