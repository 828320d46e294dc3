//! Messages of peers, as prost reads them and as domain types.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use kvpn_proto::filter::Head;
use kvpn_proto::flow::Frame;
use kvpn_proto::{Failure, duration, identity, v1};
use prost::Message;
use tonic::{Code, Status};

#[path = "../../../sidecar-agent/src/claims.rs"]
mod claims;

use crate::session::cluster_info::ClusterInfo;
use crate::session::subnet_rules::SubnetRules;
use claims::Claims;

/// A flow's frame must survive being sent on.
pub fn frame(bytes: &[u8]) {
    if let Ok(message) = v1::Frame::decode(bytes)
        && let Ok(frame) = Frame::try_from(message)
    {
        let wire = v1::Frame::from(frame.clone()).encode_to_vec();
        let again = v1::Frame::decode(&wire[..]).expect("its own encoding");
        assert_eq!(Frame::try_from(again), Ok(frame));
    }
}

/// The first byte says which message the others are.
pub fn messages(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    match kind % 16 {
        0 => watch_cluster(bytes),
        1 => watch_claims(bytes),
        2 => failure(bytes),
        3 => {
            let text = String::from_utf8_lossy(bytes);
            let _ = duration::parse_duration(&text);
            if let Some(key) = identity::decode_public_key(&text) {
                let again = identity::encode_public_key(&key);
                assert_eq!(again, text.to_ascii_lowercase());
            }
        }
        4 => round_trip::<v1::ChallengeResponse>(bytes),
        5 => round_trip::<v1::AuthenticateRequest>(bytes),
        6 => round_trip::<v1::AuthenticateResponse>(bytes),
        7 => {
            round_trip::<v1::WatchDialsResponse>(bytes);
            if let Ok(dial) = v1::WatchDialsResponse::decode(bytes)
                && let Some(source) = dial.source
                && let Ok(source) = SocketAddr::try_from(source)
            {
                let again = v1::Endpoint::from(source);
                assert_eq!(SocketAddr::try_from(again), Ok(source));
            }
        }
        8 => round_trip::<v1::LookupRequest>(bytes),
        9 => round_trip::<v1::DescribeRequest>(bytes),
        10 => round_trip::<v1::DescribeResponse>(bytes),
        11 => round_trip::<v1::WatchClaimsRequest>(bytes),
        12 => round_trip::<v1::LeaseRequest>(bytes),
        13 => round_trip::<v1::LeaseReply>(bytes),
        14 => round_trip::<v1::InterceptRequest>(bytes),
        _ => round_trip::<v1::StatusResponse>(bytes),
    }
}

fn round_trip<M: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let wire = message.encode_to_vec();
        let again = M::decode(&wire[..]).expect("its own encoding");
        // Not the messages: a number may be NaN.
        assert_eq!(again.encode_to_vec(), wire);
    }
}

fn watch_cluster(bytes: &[u8]) {
    round_trip::<v1::WatchClusterResponse>(bytes);
    let Ok(message) = v1::WatchClusterResponse::decode(bytes) else {
        return;
    };
    let info = ClusterInfo::from(message);
    let protected: [IpAddr; 2] = [[10, 96, 0, 1].into(), [0xfd00; 8].into()];
    let rules = SubnetRules::new(&[], &["10.97.0.0/24".into()], &[]).expect("rules");
    for route in rules.routed(info.subnets().collect(), &protected) {
        assert!(!protected.iter().any(|address| route.contains(address)));
        assert!(info.contains(route.addr()), "{route} is not the cluster's");
    }
}

fn watch_claims(bytes: &[u8]) {
    round_trip::<v1::WatchClaimsResponse>(bytes);
    let Ok(message) = v1::WatchClaimsResponse::decode(bytes) else {
        return;
    };
    let told = message.claims.len() + message.copies.len();
    let closed = message.claims.iter().filter(|claim| claim.fails_closed);
    let closed: BTreeSet<_> = closed.map(|claim| claim.id.clone()).collect();
    let all = message.claims.iter().chain(&message.copies);
    let kept = all.clone().filter(|it| it.keeps_tls);
    let kept: BTreeSet<_> = kept.map(|claim| claim.id.clone()).collect();
    let listed = all.flat_map(|it| it.pod_ports.iter().map(|port| (it.id.clone(), *port)));
    let pod_ports: BTreeSet<(String, u32)> = listed.collect();
    if let Ok(claims) = Claims::try_from(message) {
        let is_listed = |id: &str, port: u32| {
            u16::try_from(port).is_ok_and(|port| claims.lists_pod_port(id, port))
        };
        assert!(pod_ports.iter().all(|(id, port)| is_listed(id, *port)));
        assert!(claims.ids().all(|(id, _)| !is_listed(id, 0)));
        let ports = claims.ports();
        let stopped = claims.stopped();
        assert!(ports.len() <= told && claims.ids().count() == told);
        assert_eq!(claims.is_empty(), told == 0);
        let is_closed = |id: &str, port: Option<u16>| {
            let claims = port.and_then(|port| claims.get(port));
            claims.is_some_and(|it| it.fails_closed(id))
        };
        assert!(
            claims
                .ids()
                .all(|(id, port)| !is_closed(id, port) || closed.contains(id))
        );
        let is_filtered = |port| claims.get(port).is_some_and(|it| it.is_filtered());
        for (port, identity) in claims.tls() {
            assert!(is_filtered(port));
            // It may be no certificate, and hold anything.
            drop(identity.certified_key());
        }
        assert!(claims.without_tls().all(|id| kept.contains(id)));
        let waits = claims.without_tls().next().is_some();
        for (port, claims) in claims.datagrams() {
            assert!(*port != 0 && (claims.holder.is_some() || !claims.copies.is_empty()));
            assert!(!claims.fails_closed || !closed.is_empty());
        }
        for port in ports {
            let claims = claims.get(port).expect("claims on their port");
            let is_claimed = claims.is_filtered() || claims.rest().is_some();
            assert!(port != 0 && (is_claimed || claims.is_copied()));
            assert!(claims.all_copied().len() <= claims.copied(&Bare).len());
            assert!(claims.copied(&Bare).len() <= claims.every_copy().len());
            assert!(claims.of(&Bare).is_some() || claims.rest().is_none());
            assert!(!claims.answers_probes(|_| true) || !stopped.is_empty());
            assert!(!claims.is_clients_word || !claims.is_opaque());
            assert!(!claims.is_blind() || waits && claims.is_filtered());
            // Else a filter would be passed by.
            assert!(!claims.is_opaque() || claims.copied(&Bare) == claims.every_copy());
        }
    }
}

/// A request without anything.
struct Bare;

impl Head for Bare {
    fn method(&self) -> &str {
        "GET"
    }

    fn path(&self) -> &str {
        "/"
    }

    fn query(&self) -> &str {
        ""
    }

    fn field(&self, _: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// A status of the traffic manager, with details.
fn failure(bytes: &[u8]) {
    let (code, details) = bytes.split_first().unwrap_or((&0, bytes));
    let code = Code::from_i32(i32::from(*code) % 17);
    let status = Status::with_details(code, "message", details.to_vec().into());
    let failure = Failure::from(status);
    let again = Failure::from(Status::from(failure.clone()));
    assert_eq!(again, failure);
}
