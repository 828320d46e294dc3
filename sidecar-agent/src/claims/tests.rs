//! What is read of claims.

use std::borrow::Cow;

use kvpn_proto::filter::{Condition, Head, HttpFilter};

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
fn port_is_blind_while_nobody_can_see_what_only_a_holder_may_answer() {
    let kept = |claim: v1::Claim| v1::Claim {
        keeps_tls: true,
        fails_closed: claim.id.starts_with("closed"),
        ..claim
    };
    let with = |claim: v1::Claim| v1::Claim {
        tls: Some(v1::TlsIdentity::default()),
        ..claim
    };
    let read = |claims: Vec<v1::Claim>| {
        let claims = read(claims).unwrap();
        let without: Vec<_> = claims.without_tls().map(str::to_owned).collect();
        (claims.get(443).unwrap().is_blind(), without.join(" "))
    };
    let closed = || kept(filtered("closed", 443, "x-user=a"));
    let open = || kept(filtered("open", 443, "x-user=b"));
    let other = || filtered("other", 443, "x-user=c");
    assert_eq!(read(vec![closed(), other()]), (true, "closed".into()));
    assert_eq!(read(vec![open()]), (false, "open".into()));
    // Somebody else's will do, and so will its own.
    assert_eq!(read(vec![closed(), with(other())]), (false, "".into()));
    assert_eq!(read(vec![with(closed())]), (false, "".into()));
    let probed = v1::Claim {
        http_probed: true,
        ..closed()
    };
    assert_eq!(read(vec![probed]), (false, "closed".into()));
    // All of it is the laptop's, whatever is inside.
    let rest = kept(claim("closed", 443, v1::Protocol::Tcp));
    assert_eq!(read(vec![rest]), (false, "".into()));
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
