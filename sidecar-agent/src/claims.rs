//! The claims on this pod, as the traffic manager last told them.

use std::collections::{BTreeMap, BTreeSet};

use kvpn_proto::{
    filter::{Filter, FilterError, Head, HttpFilter, UnknownCondition},
    flow::{self, Malformed, Protocol},
    tls::TlsIdentity,
    v1,
};

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

/// The claims on one port, by their ids.
#[derive(Debug, Default)]
pub(crate) struct PortClaims {
    /// No request fits two of them.
    filtered: Vec<(Filter, String)>,
    /// Who gets what no filter takes.
    rest: Option<String>,
    /// Those of which nobody answers when the laptop does not.
    closed: BTreeSet<String>,
    /// Who gets copies, of the requests that fit or of everything.
    copies: Vec<(Option<Filter>, String)>,
    /// The kubelet's HTTP probes of the port go to the app, or are answered for it.
    pub(crate) http_probed: bool,
    /// The containers whose processes are stopped.
    stopped: BTreeSet<String>,
    /// Those of them for which the probes are answered.
    answered: BTreeSet<String>,
    /// What clients' TLS is ended with.
    tls: Option<TlsIdentity>,
    /// It is known that the client is the first to speak.
    pub(crate) is_clients_word: bool,
    /// By somebody's word, something is spoken of which nothing can be read.
    is_unreadable: bool,
}

impl PortClaims {
    /// Whether requests have to be looked at: to choose among them, or to say of one that
    /// it is not answered.
    pub(crate) fn is_filtered(&self) -> bool {
        !self.closed.is_empty() || self.has_filter()
    }

    /// Whether somebody wants some requests only, be it copies of them.
    fn has_filter(&self) -> bool {
        !self.filtered.is_empty() || self.copies.iter().any(|(filter, _)| filter.is_some())
    }

    /// Whether no request is looked for. What one claim says takes nothing from the filter of
    /// another, whose Service may know better.
    pub(crate) fn is_opaque(&self) -> bool {
        self.is_unreadable && !self.is_clients_word && !self.has_filter()
    }

    /// Whether the kubelet's HTTP probes are answered for the app, as it is stopped.
    pub(crate) fn answers_probes(&self, is_stopped: impl Fn(&str) -> bool) -> bool {
        self.http_probed && self.answered.iter().any(|it| is_stopped(it))
    }

    /// What clients' TLS is ended with: where filters want to look inside, and somebody has
    /// given a certificate for it.
    fn tls(&self) -> Option<&TlsIdentity> {
        self.tls.as_ref().filter(|_| self.has_filter())
    }

    /// Whether nobody answers when the holder of the claim does not.
    pub(crate) fn fails_closed(&self, claim_id: &str) -> bool {
        self.closed.contains(claim_id)
    }

    /// The ids of all claims.
    fn ids(&self) -> impl Iterator<Item = &str> {
        let filtered = self.filtered.iter().map(|(_, id)| id);
        let copies = self.copies.iter().map(|(_, id)| id);
        let all = filtered.chain(&self.rest).chain(copies);
        all.map(String::as_str)
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

    /// All claims on copies.
    pub(crate) fn every_copy(&self) -> Vec<String> {
        self.copies.iter().map(|(_, id)| id.clone()).collect()
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
            let (port, filter, claim) = claims.read(claim)?;
            if claim.fails_closed {
                port.closed.insert(claim.id.clone());
            }
            if !claim.stopped_container.is_empty() {
                port.stopped.insert(claim.stopped_container.clone());
                if claim.answers_probes {
                    port.answered.insert(claim.stopped_container.clone());
                }
            }
            match filter {
                Some(filter) => port.filtered.push((filter, claim.id)),
                None if port.rest.is_some() => return Err(twice(&claim)),
                None => port.rest = Some(claim.id),
            }
        }
        for copy in told.copies {
            if is_of_datagrams(&copy)? {
                let (port, copy) = claims.read_datagrams(copy)?;
                port.copies.push(copy.id);
                continue;
            }
            let (port, filter, copy) = claims.read(copy)?;
            port.copies.push((filter, copy.id));
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

    /// The TCP port of a claim, and its filter.
    fn read(
        &mut self,
        claim: v1::Claim,
    ) -> Result<(&mut PortClaims, Option<Filter>, v1::Claim), ClaimError> {
        let mut claim = claim;
        let port = flow::port(claim.container_port)?;
        let filter = match claim.http.take() {
            Some(filter) => Some(Filter::try_from(&HttpFilter::try_from(filter)?)?),
            None => None,
        };
        let claims = self.by_port.entry(port).or_default();
        claims.http_probed |= claim.http_probed;
        let tls = claim.tls.take().map(TlsIdentity::from);
        claims.tls = claims.tls.take().or(tls);
        match claim.app_protocol() {
            v1::AppProtocol::Http | v1::AppProtocol::Tls => claims.is_clients_word = true,
            v1::AppProtocol::Opaque => claims.is_unreadable = true,
            v1::AppProtocol::Unspecified => {}
        }
        Ok((claims, filter, claim))
    }
}

fn is_of_datagrams(claim: &v1::Claim) -> Result<bool, Malformed> {
    Ok(Protocol::try_from(claim.protocol())? == Protocol::Udp)
}

fn twice(claim: &v1::Claim) -> ClaimError {
    ClaimError::Twice(flow::port(claim.container_port).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use kvpn_proto::filter::Condition;

    use super::*;

    fn read(claims: Vec<v1::Claim>) -> Result<Claims, ClaimError> {
        Claims::try_from(v1::WatchClaimsResponse {
            claims,
            ..v1::WatchClaimsResponse::default()
        })
    }

    fn claim(id: &str, port: u32, protocol: v1::Protocol) -> v1::Claim {
        v1::Claim {
            id: id.into(),
            container_port: port,
            protocol: protocol.into(),
            http_probed: id.starts_with("probed"),
            ..v1::Claim::default()
        }
    }

    fn filtered(id: &str, port: u32, header: &str) -> v1::Claim {
        let filter = HttpFilter {
            any: false,
            conditions: vec![Condition::header(header)],
        };
        v1::Claim {
            http: Some(filter.into()),
            ..claim(id, port, v1::Protocol::Tcp)
        }
    }

    #[test]
    fn claims_are_found_by_their_port() {
        let claims = read(vec![
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
        let mut all = vec![
            filtered("probed-a", 80, "x-user=a"),
            filtered("b", 80, "x-user=b"),
        ];
        let claims = read(all.clone()).unwrap();
        let port = claims.get(80).unwrap();
        assert!(port.is_filtered());
        assert_eq!(port.of(&By("b")), Some("b"));
        assert_eq!(port.of(&By("c")), None);

        all.push(claim("rest", 80, v1::Protocol::Tcp));
        let claims = read(all).unwrap();
        let port = claims.get(80).unwrap();
        assert_eq!(port.of(&By("a")), Some("probed-a"));
        assert_eq!(port.of(&By("c")), Some("rest"));
    }

    #[test]
    fn claims_that_cannot_be_served_are_refused() {
        let refused = |claims: Vec<v1::Claim>| read(claims).unwrap_err();
        let datagrams = v1::Claim {
            protocol: v1::Protocol::Udp.into(),
            ..filtered("a", 53, "x-user=a")
        };
        assert_eq!(refused(vec![datagrams]), ClaimError::Filtered(53));
        let udp = |id| claim(id, 53, v1::Protocol::Udp);
        assert_eq!(refused(vec![udp("a"), udp("b")]), ClaimError::Twice(53));
        assert_eq!(
            refused(vec![claim("a", 53, v1::Protocol::Unspecified)]),
            ClaimError::Malformed(Malformed::Unknown("protocol"))
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

    fn speaking(protocol: v1::AppProtocol, claim: v1::Claim) -> v1::Claim {
        v1::Claim {
            app_protocol: protocol.into(),
            ..claim
        }
    }

    /// Whether the client is known to speak first on the only port, and whether no request
    /// is looked for there.
    fn known(claims: Vec<v1::Claim>, copies: Vec<v1::Claim>) -> (bool, bool) {
        let told = v1::WatchClaimsResponse {
            generation: 1,
            claims,
            copies,
        };
        let mut claims = Claims::try_from(told).unwrap();
        let (_, port) = claims.by_port.pop_first().unwrap();
        (port.is_clients_word, port.is_opaque())
    }

    #[test]
    fn what_a_claim_says_of_its_port_is_known() {
        use v1::AppProtocol::{Http, Opaque, Tls, Unspecified};
        let alone = |protocol| {
            let claim = speaking(protocol, claim("a", 80, v1::Protocol::Tcp));
            known(vec![claim], vec![])
        };
        assert_eq!(alone(Unspecified), (false, false));
        assert_eq!(alone(Http), (true, false));
        assert_eq!(alone(Tls), (true, false));
        assert_eq!(alone(Opaque), (false, true));
    }

    #[test]
    fn requests_are_looked_for_while_anybody_filters_or_says_that_there_are_some() {
        use v1::AppProtocol::{Http, Opaque};
        let whole = |id: &str| claim(id, 80, v1::Protocol::Tcp);
        let opaque = || speaking(Opaque, whole("opaque"));
        let closed = v1::Claim {
            fails_closed: true,
            ..opaque()
        };
        assert_eq!(known(vec![closed], vec![whole("copy")]), (false, true));
        let filter = || filtered("a", 80, "x=a");
        // The other one's word is not that of who filters.
        assert_eq!(known(vec![filter(), opaque()], vec![]), (false, false));
        assert_eq!(known(vec![filter()], vec![opaque()]), (false, false));
        assert_eq!(known(vec![opaque()], vec![filter()]), (false, false));
        let http = speaking(Http, whole("http"));
        assert_eq!(known(vec![opaque()], vec![http]), (true, false));
    }

    #[test]
    fn each_claim_lists_the_ports_that_are_dialled_in_the_pod_for_it() {
        let listing = |id: &str, pod_ports: &[u32]| v1::Claim {
            pod_ports: pod_ports.to_vec(),
            ..claim(id, 80, v1::Protocol::Tcp)
        };
        let told = |copies| v1::WatchClaimsResponse {
            claims: vec![listing("a", &[9901])],
            copies,
            ..v1::WatchClaimsResponse::default()
        };
        let claims = Claims::try_from(told(vec![listing("b", &[9901, 11211])])).unwrap();
        assert!(claims.lists_pod_port("a", 9901) && claims.lists_pod_port("b", 9901));
        assert!(claims.lists_pod_port("b", 11211) && !claims.lists_pod_port("a", 11211));
        assert!(!claims.lists_pod_port("a", 80) && !claims.lists_pod_port("c", 9901));
        assert_eq!(claims.ports(), [80].into());
        // One of them ends; the other goes on to list the port.
        let claims = Claims::try_from(told(vec![])).unwrap();
        assert!(claims.lists_pod_port("a", 9901) && !claims.lists_pod_port("b", 9901));
        let malformed = read(vec![listing("a", &[0])]).unwrap_err();
        assert_eq!(malformed, ClaimError::Malformed(Malformed::Port(0)));
    }

    #[test]
    fn no_claims_redirect_no_port() {
        let claims = read(vec![]).unwrap();
        assert!(claims.ports().is_empty() && claims.is_empty());
    }

    #[test]
    fn claims_on_datagrams_are_told_from_those_on_connections_to_the_same_number() {
        let told = v1::WatchClaimsResponse {
            generation: 1,
            claims: vec![
                claim("tcp", 53, v1::Protocol::Tcp),
                v1::Claim {
                    stopped_container: "dns".into(),
                    fails_closed: true,
                    ..claim("udp", 53, v1::Protocol::Udp)
                },
            ],
            copies: vec![claim("copy", 53, v1::Protocol::Udp)],
        };
        let claims = Claims::try_from(told).unwrap();
        assert_eq!(claims.get(53).unwrap().rest(), Some("tcp"));
        assert!(!claims.get(53).unwrap().is_copied());
        let datagrams = &claims.datagrams()[&53];
        assert_eq!(datagrams.holder.as_deref(), Some("udp"));
        assert!(datagrams.fails_closed);
        assert_eq!(datagrams.copies, ["copy"]);
        assert_eq!(claims.stopped(), ["dns".to_owned()].into());
        let ids: Vec<_> = claims.ids().collect();
        assert_eq!(ids, [("tcp", Some(53)), ("udp", None), ("copy", None)]);
    }

    #[test]
    fn probes_are_answered_while_the_container_that_they_are_of_is_stopped() {
        let claim = |id: &str, port, answers_probes| v1::Claim {
            stopped_container: "app".into(),
            answers_probes,
            ..claim(id, port, v1::Protocol::Tcp)
        };
        let claims = vec![
            claim("probed-a", 80, true),
            claim("probed-b", 81, false),
            claim("c", 82, true),
        ];
        let claims = read(claims).unwrap();
        assert_eq!(claims.stopped(), BTreeSet::from(["app".to_owned()]));
        let answers = |port, stopped: &str| {
            let port = claims.get(port).unwrap();
            port.answers_probes(|container| container == stopped)
        };
        assert!(answers(80, "app"));
        assert!(!answers(80, "none"), "it goes on, and answers itself");
        assert!(!answers(81, "app"), "another container answers");
        assert!(!answers(82, "app"), "the port is not probed over HTTP");
    }

    #[test]
    fn tls_is_ended_for_filters_by_the_certificate_of_the_first() {
        let with = |claim: v1::Claim, certificates: &'static str| v1::Claim {
            tls: Some(v1::TlsIdentity {
                certificates: certificates.into(),
                key: "key".into(),
            }),
            ..claim
        };
        let claims = read(vec![
            filtered("none", 443, "x-user=a"),
            with(filtered("first", 443, "x-user=b"), "first"),
            with(filtered("second", 443, "x-user=c"), "second"),
            with(claim("unfiltered", 8443, v1::Protocol::Tcp), "unfiltered"),
        ]);
        let claims = claims.unwrap();
        let tls: Vec<_> = claims.tls().collect();
        assert_eq!(tls.len(), 1);
        assert_eq!((tls[0].0, &*tls[0].1.certificates), (443, &b"first"[..]));
    }

    #[test]
    fn copies_take_nothing_away() {
        let told = v1::WatchClaimsResponse {
            generation: 1,
            claims: vec![claim("rest", 8080, v1::Protocol::Tcp)],
            copies: vec![
                claim("all", 8080, v1::Protocol::Tcp),
                filtered("some", 8080, "x-user=alice"),
                claim("alone", 9090, v1::Protocol::Tcp),
            ],
        };
        let claims = Claims::try_from(told).unwrap();
        assert_eq!(claims.ports(), [8080, 9090].into());
        let port = claims.get(8080).unwrap();
        assert!(port.is_filtered());
        assert_eq!(port.rest(), Some("rest"));
        assert_eq!(port.all_copied(), ["all"]);
        assert_eq!(port.copied(&By("eve")), ["all"]);
        assert_eq!(port.copied(&By("alice")), ["all", "some"]);
        let alone = claims.get(9090).unwrap();
        assert!(alone.is_copied() && !alone.is_filtered() && alone.rest().is_none());
    }
}
