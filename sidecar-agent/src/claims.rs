//! The claims on this pod, as the traffic manager last told them.

// With its path, since a fuzzer has this file under another one.
#[path = "claims/port.rs"]
mod port;

use std::collections::{BTreeMap, BTreeSet};

use kvpn_proto::{
    filter::{FilterError, UnknownCondition},
    flow::{self, Malformed, Protocol},
    tls::TlsIdentity,
    v1,
};

pub(crate) use port::PortClaims;

/// Who gets the traffic of which port.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Of TCP ports.
    by_port: BTreeMap<u16, PortClaims>,
    /// Of UDP ports.
    datagrams: BTreeMap<u16, DatagramClaims>,
    /// Ports of the pod's localhost that holders may have dialled, by the ids of their claims.
    pod_ports: BTreeMap<String, BTreeSet<u16>>,
}

/// The claims on one UDP port, by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DatagramClaims {
    /// Who gets all that comes.
    pub(crate) holder: Option<String>,
    /// Nobody gets what the holder does not take.
    pub(crate) fails_closed: bool,
    /// Who gets copies.
    pub(crate) copies: Vec<String>,
    /// The containers whose processes are stopped.
    stopped: BTreeSet<String>,
}

impl DatagramClaims {
    fn ids(&self) -> impl Iterator<Item = &str> {
        self.holder.iter().chain(&self.copies).map(String::as_str)
    }
}

/// Why claims cannot be put in force.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Unknown(#[from] UnknownCondition),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error("port {0} is claimed twice")]
    Twice(u16),
    #[error("the claim on UDP port {0} has a filter, and datagrams are no requests of HTTP")]
    Filtered(u16),
}

impl Claims {
    /// The TCP ports whose connections have to come to the agent.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.by_port.keys().copied().collect()
    }

    /// The UDP ports whose datagrams have to come to the agent.
    pub(crate) fn datagrams(&self) -> &BTreeMap<u16, DatagramClaims> {
        &self.datagrams
    }

    /// Whether the holder of a claim may have a port of the pod's localhost dialled.
    pub(crate) fn lists_pod_port(&self, claim_id: &str, port: u16) -> bool {
        let ports = self.pod_ports.get(claim_id);
        ports.is_some_and(|ports| ports.contains(&port))
    }

    /// Whether nothing has to come to the agent.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_port.is_empty() && self.datagrams.is_empty()
    }

    /// The containers whose processes are to be stopped.
    pub(crate) fn stopped(&self) -> BTreeSet<String> {
        let ports = self.by_port.values().map(|port| &port.stopped);
        let datagrams = self.datagrams.values().map(|port| &port.stopped);
        ports.chain(datagrams).flatten().cloned().collect()
    }

    /// The claims on a TCP port.
    pub(crate) fn get(&self, port: u16) -> Option<&PortClaims> {
        self.by_port.get(&port)
    }

    /// What clients' TLS is ended with, by port.
    pub(crate) fn tls(&self) -> impl Iterator<Item = (u16, &TlsIdentity)> {
        let ports = self.by_port.iter();
        ports.filter_map(|(port, claims)| Some((*port, claims.tls()?)))
    }

    /// The ids of claims that are to end TLS and have nothing to do it with.
    pub(crate) fn without_tls(&self) -> impl Iterator<Item = &str> {
        self.by_port.values().flat_map(PortClaims::without_tls)
    }

    /// The ids of all claims, each with its TCP port; without one on UDP ports.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (&str, Option<u16>)> {
        let ports = self.by_port.iter();
        let ports = ports.flat_map(|(port, claims)| claims.ids().map(|id| (id, Some(*port))));
        let datagrams = self.datagrams.values().flat_map(DatagramClaims::ids);
        ports.chain(datagrams.map(|id| (id, None)))
    }
}

impl TryFrom<v1::WatchClaimsResponse> for Claims {
    type Error = ClaimError;

    fn try_from(told: v1::WatchClaimsResponse) -> Result<Self, ClaimError> {
        let mut claims = Self::default();
        let all = told.claims.iter().chain(&told.copies);
        for claim in all.filter(|claim| !claim.pod_ports.is_empty()) {
            let ports = claims.pod_ports.entry(claim.id.clone()).or_default();
            for pod_port in &claim.pod_ports {
                ports.insert(flow::port(*pod_port)?);
            }
        }
        for claim in told.claims {
            if is_of_datagrams(&claim)? {
                claims.hold_datagrams(claim)?;
                continue;
            }
            claims.port_of(&claim)?.hold(claim)?;
        }
        for copy in told.copies {
            if is_of_datagrams(&copy)? {
                let (port, copy) = claims.read_datagrams(copy)?;
                port.copies.push(copy.id);
                continue;
            }
            claims.port_of(&copy)?.copy(copy)?;
        }
        Ok(claims)
    }
}

impl Claims {
    fn hold_datagrams(&mut self, claim: v1::Claim) -> Result<(), ClaimError> {
        let (port, claim) = self.read_datagrams(claim)?;
        if port.holder.is_some() {
            return Err(twice(&claim));
        }
        port.fails_closed = claim.fails_closed;
        if !claim.stopped_container.is_empty() {
            port.stopped.insert(claim.stopped_container);
        }
        port.holder = Some(claim.id);
        Ok(())
    }

    /// The UDP port of a claim.
    fn read_datagrams(
        &mut self,
        claim: v1::Claim,
    ) -> Result<(&mut DatagramClaims, v1::Claim), ClaimError> {
        let port = flow::port(claim.container_port)?;
        match claim.http {
            Some(_) => Err(ClaimError::Filtered(port)),
            None => Ok((self.datagrams.entry(port).or_default(), claim)),
        }
    }

    /// The claims on the TCP port of one.
    fn port_of(&mut self, claim: &v1::Claim) -> Result<&mut PortClaims, Malformed> {
        let port = flow::port(claim.container_port)?;
        Ok(self.by_port.entry(port).or_default())
    }
}

fn is_of_datagrams(claim: &v1::Claim) -> Result<bool, Malformed> {
    Ok(Protocol::try_from(claim.protocol())? == Protocol::Udp)
}

fn twice(claim: &v1::Claim) -> ClaimError {
    ClaimError::Twice(flow::port(claim.container_port).unwrap_or_default())
}

#[cfg(test)]
#[path = "claims/tests.rs"]
mod tests;
