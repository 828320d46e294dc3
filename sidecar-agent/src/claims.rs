//! The claims on this pod, as the traffic manager last told them.

use std::collections::{BTreeMap, BTreeSet};

use kvpn_proto::{
    flow::{self, Malformed, Protocol},
    v1,
};

/// Who gets the connections of which port.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    by_port: BTreeMap<u16, Claim>,
}

/// A port's connections belong to a laptop.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) id: String,
    /// The kubelet's HTTP probes of the port go to the app.
    pub(crate) http_probed: bool,
}

/// Why claims cannot be put in force.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("port {0} is claimed twice")]
    Twice(u16),
    #[error("this version of the agent cannot claim UDP ports such as {0}")]
    Udp(u16),
}

impl Claims {
    /// The ports whose connections have to come to the agent.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.by_port.keys().copied().collect()
    }

    pub(crate) fn get(&self, port: u16) -> Option<&Claim> {
        self.by_port.get(&port)
    }
}

impl TryFrom<Vec<v1::Claim>> for Claims {
    type Error = ClaimError;

    fn try_from(claims: Vec<v1::Claim>) -> Result<Self, ClaimError> {
        let mut by_port = BTreeMap::new();
        for claim in claims {
            let port = flow::port(claim.container_port)?;
            match Protocol::try_from(claim.protocol())? {
                Protocol::Tcp => {}
                Protocol::Udp => return Err(ClaimError::Udp(port)),
            }
            let claim = Claim {
                id: claim.id,
                http_probed: claim.http_probed,
            };
            if by_port.insert(port, claim).is_some() {
                return Err(ClaimError::Twice(port));
            }
        }
        Ok(Self { by_port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(id: &str, port: u32, protocol: v1::Protocol) -> v1::Claim {
        v1::Claim {
            id: id.into(),
            container_port: port,
            protocol: protocol.into(),
            http_probed: id.starts_with("probed"),
        }
    }

    #[test]
    fn claims_are_found_by_their_port() {
        let claims = Claims::try_from(vec![
            claim("plain", 8080, v1::Protocol::Tcp),
            claim("probed", 80, v1::Protocol::Tcp),
        ])
        .unwrap();
        assert_eq!(claims.ports(), BTreeSet::from([80, 8080]));
        assert!(claims.get(80).unwrap().http_probed);
        assert!(!claims.get(8080).unwrap().http_probed);
        assert_eq!(claims.get(443), None);
    }

    #[test]
    fn claims_that_cannot_be_served_are_refused() {
        let refused = |claims: Vec<v1::Claim>| Claims::try_from(claims).unwrap_err();
        assert_eq!(
            refused(vec![claim("a", 53, v1::Protocol::Udp)]),
            ClaimError::Udp(53)
        );
        assert_eq!(
            refused(vec![
                claim("a", 80, v1::Protocol::Tcp),
                claim("b", 80, v1::Protocol::Tcp)
            ]),
            ClaimError::Twice(80)
        );
        assert_eq!(
            refused(vec![claim("a", 0, v1::Protocol::Tcp)]),
            ClaimError::Malformed(Malformed::Port(0))
        );
    }

    #[test]
    fn no_claims_redirect_no_port() {
        let claims = Claims::try_from(vec![]).unwrap();
        assert!(claims.ports().is_empty());
    }
}
