//! What is remembered of claims.

use kvpn_proto::v1;
use tonic::transport::Endpoint;

use super::*;

fn route(ports: &[u16]) -> Route {
    let claim = |port: &u16| v1::Claim {
        id: format!("e/{port}/tcp"),
        container_port: (*port).into(),
        protocol: v1::Protocol::Tcp.into(),
        ..v1::Claim::default()
    };
    let told = v1::WatchClaimsResponse {
        claims: ports.iter().map(claim).collect(),
        ..v1::WatchClaimsResponse::default()
    };
    // Nobody calls it.
    let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    let tunnel = TunnelClient::new(channel);
    Route::new(Claims::try_from(told).unwrap(), tunnel, Holds::default())
}

#[tokio::test]
async fn claimed_ports_are_remembered_while_the_traffic_manager_is_away() {
    let forwarder = Forwarder::start(Listeners::bind().unwrap());
    assert!(forwarder.ports().is_empty());
    forwarder.set_route(Some(route(&[8080, 9090])));
    forwarder.set_route(None);
    assert_eq!(forwarder.ports(), BTreeSet::from([8080, 9090]));
    forwarder.set_route(Some(route(&[])));
    assert!(forwarder.ports().is_empty(), "nothing is claimed any more");
}
