//! The claims on this pod, as the traffic manager last told them.

use std::collections::{BTreeMap, BTreeSet};

use kvpn_proto::{
    filter::{Filter, FilterError, Head, HttpFilter, UnknownCondition},
    flow::{self, Malformed, Protocol},
    v1,
};

/// Who gets the traffic of which port.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_port: BTreeMap<u16, PortClaims>,
}

/// The claims on one port, by their ids.
#[derive(Debug, Default)]
pub(crate) struct PortClaims {
    /// No request fits two of them.
    filtered: Vec<(Filter, String)>,
    /// Who gets what no filter takes.
    rest: Option<String>,
    /// Who gets copies, of the requests that fit or of everything.
    copies: Vec<(Option<Filter>, String)>,
    /// The kubelet's HTTP probes of the port go to the app.
    pub(crate) http_probed: bool,
}

impl PortClaims {
    /// Whether requests have to be looked at.
    pub(crate) fn is_filtered(&self) -> bool {
        !self.filtered.is_empty() || self.copies.iter().any(|(filter, _)| filter.is_some())
    }

    /// Whether somebody gets copies.
    pub(crate) fn is_copied(&self) -> bool {
        !self.copies.is_empty()
    }

    /// The claims on copies of a request.
    pub(crate) fn copied(&self, head: &impl Head) -> Vec<String> {
        let copies = self.copies.iter();
        let fits = |filter: &Option<Filter>| filter.as_ref().is_none_or(|it| it.matches(head));
        copies
            .filter(|(filter, _)| fits(filter))
            .map(|(_, id)| id.clone())
            .collect()
    }

    /// The claims on copies of everything.
    pub(crate) fn all_copied(&self) -> Vec<String> {
        let all = self.copies.iter().filter(|(filter, _)| filter.is_none());
        all.map(|(_, id)| id.clone()).collect()
    }

    /// The claim on what no filter takes.
    pub(crate) fn rest(&self) -> Option<&str> {
        self.rest.as_deref()
    }

    /// The claim on a request.
    pub(crate) fn of(&self, head: &impl Head) -> Option<&str> {
        let mut filtered = self.filtered.iter();
        let fitting = filtered.find(|(filter, _)| filter.matches(head));
        fitting.map(|(_, id)| id.as_str()).or(self.rest())
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
    #[error("this version of the agent cannot claim UDP ports such as {0}")]
    Udp(u16),
}

impl Claims {
    /// The ports whose connections have to come to the agent.
    pub(crate) fn ports(&self) -> BTreeSet<u16> {
        self.by_port.keys().copied().collect()
    }

    pub(crate) fn get(&self, port: u16) -> Option<&PortClaims> {
        self.by_port.get(&port)
    }
}

impl TryFrom<Vec<v1::Claim>> for Claims {
    type Error = ClaimError;

    fn try_from(claims: Vec<v1::Claim>) -> Result<Self, ClaimError> {
        let mut by_port: BTreeMap<u16, PortClaims> = BTreeMap::new();
        for claim in claims {
            let port = flow::port(claim.container_port)?;
            match Protocol::try_from(claim.protocol())? {
                Protocol::Tcp => {}
                Protocol::Udp => return Err(ClaimError::Udp(port)),
            }
            let claims = by_port.entry(port).or_default();
            claims.http_probed |= claim.http_probed;
            let filter = match claim.http {
                Some(filter) => Some(Filter::try_from(&HttpFilter::try_from(filter)?)?),
                None => None,
            };
            match filter {
                filter if claim.copy => claims.copies.push((filter, claim.id)),
                Some(filter) => claims.filtered.push((filter, claim.id)),
                None if claims.rest.is_some() => return Err(ClaimError::Twice(port)),
                None => claims.rest = Some(claim.id),
            }
        }
        Ok(Self { by_port })
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use kvpn_proto::filter::Condition;

    use super::*;

    fn claim(id: &str, port: u32, protocol: v1::Protocol) -> v1::Claim {
        v1::Claim {
            id: id.into(),
            container_port: port,
            protocol: protocol.into(),
            http_probed: id.starts_with("probed"),
            http: None,
            copy: false,
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
        assert!(claims.get(443).is_none());
        assert_eq!(claims.get(80).unwrap().rest(), Some("probed"));
    }

    /// A request of a user.
    struct By(&'static str);

    impl Head for By {
        fn method(&self) -> &str {
            "GET"
        }

        fn path(&self) -> &str {
            "/"
        }

        fn query(&self) -> &str {
            ""
        }

        fn field(&self, name: &str) -> Option<Cow<'_, str>> {
            (name == "x-user").then_some(self.0.into())
        }
    }

    #[test]
    fn filters_come_before_the_rest() {
        let filtered = |id: &str, header: &str| v1::Claim {
            http: Some(
                HttpFilter {
                    any: false,
                    conditions: vec![Condition::header(header)],
                }
                .into(),
            ),
            ..claim(id, 80, v1::Protocol::Tcp)
        };
        let mut all = vec![filtered("probed-a", "x-user=a"), filtered("b", "x-user=b")];
        let claims = Claims::try_from(all.clone()).unwrap();
        let port = claims.get(80).unwrap();
        assert!(port.is_filtered());
        assert_eq!(port.of(&By("b")), Some("b"));
        assert_eq!(port.of(&By("c")), None);

        all.push(claim("rest", 80, v1::Protocol::Tcp));
        let claims = Claims::try_from(all).unwrap();
        let port = claims.get(80).unwrap();
        assert_eq!(port.of(&By("a")), Some("probed-a"));
        assert_eq!(port.of(&By("c")), Some("rest"));
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
