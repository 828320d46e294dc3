//! Connections that holders of claims want to ports of the pod's localhost.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::Context;
use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget, port};
use kvpn_proto::v1::agent_hub_client::AgentHubClient;
use kvpn_proto::v1::{WatchPodDialsRequest, WatchPodDialsResponse};
use kvpn_tunnel::grpc::TunnelClient;
use kvpn_tunnel::relay;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, info};

use crate::forward::{Forwarder, MAX_POD_DIALS};

/// How long the traffic manager may take to take the call, or a refusal.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long until a call is made again that has ended.
const AGAIN: Duration = Duration::from_secs(2);

/// How long a server of the pod may take to accept.
const ACCEPT: Duration = Duration::from_secs(5);

/// How soon connections end whose claim is gone.
const LEFT: Duration = Duration::from_secs(1);

/// Answers dials for as long as the traffic manager knows of any.
pub(crate) async fn answer(channel: Channel, forwarder: Forwarder) {
    loop {
        let Err(error) = try_answer(channel.clone(), &forwarder).await;
        debug!("Nobody asks for ports of the pod: {error:#}");
        let status = error.downcast_ref::<Status>();
        if status.is_some_and(|status| status.code() == Code::Unimplemented) {
            return;
        }
        sleep(AGAIN).await;
    }
}

async fn try_answer(
    channel: Channel,
    forwarder: &Forwarder,
) -> anyhow::Result<std::convert::Infallible> {
    let tunnel = TunnelClient::new(channel.clone());
    let mut hub = AgentHubClient::new(channel);
    let call = hub.watch_pod_dials(WatchPodDialsRequest {});
    let mut dials = timeout(DEADLINE, call)
        .await
        .context("the traffic manager does not answer")??
        .into_inner();
    while let Some(dial) = dials.message().await? {
        tokio::spawn(carry(tunnel.clone(), dial, forwarder.clone()));
    }
    anyhow::bail!("the traffic manager hung up")
}

/// Carries one connection, until it ends or its claim does not list the port any more.
async fn carry(tunnel: TunnelClient, dial: WatchPodDialsResponse, forwarder: Forwarder) {
    let frames = tunnel.carry(Frame::Open(OpenTarget::Dial(dial.dial_id)));
    let claim_id = dial.claim_id;
    let connected = connect(&claim_id, dial.port, &forwarder).await;
    let answer = match &connected {
        Ok(_) => Frame::Opened,
        Err(failure) => Frame::Failed(failure.clone()),
    };
    if let Err(error) = frames.sender.send(answer).await {
        debug!(%error, "Nobody waits for the pod's port any more");
        return;
    }
    match connected {
        Ok(Connected {
            port,
            socket,
            room: _room,
        }) => {
            info!(port, claim_id, "Connected to a port of the pod");
            tokio::select! {
                spliced = relay::splice_tcp(socket, frames) => match spliced {
                    Ok(moved) => debug!(port, ?moved, "Connection to the pod's port ended"),
                    Err(error) => debug!(port, %error, "Cut off from the pod's port"),
                },
                () = unlisted(&claim_id, port, &forwarder) => {
                    debug!(port, claim_id, "Cut off: the claim is gone");
                }
            }
        }
        Err(failure) => {
            debug!(dial.port, %failure, "A port of the pod cannot be had");
            // Until the refusal has arrived.
            let _ = timeout(DEADLINE, frames.finish()).await;
        }
    }
}

/// A connection to a port of the pod.
#[derive(Debug)]
struct Connected {
    port: u16,
    socket: TcpStream,
    room: OwnedSemaphorePermit,
}

/// Connects to a port that the claim lists, by IPv4 where that is possible.
async fn connect(
    claim_id: &str,
    number: u32,
    forwarder: &Forwarder,
) -> Result<Connected, DialFailure> {
    let prohibited = |detail: String| DialFailure::new(DialError::Prohibited, detail);
    let port = port(number).map_err(|error| prohibited(error.to_string()))?;
    if !forwarder.lists_pod_port(claim_id, port) {
        return Err(prohibited(format!(
            "no claim of that engagement on this pod lists port {port}"
        )));
    }
    let room = forwarder.room_for_pod_dial().ok_or_else(|| {
        let detail = format!("{MAX_POD_DIALS} connections into the pod are open already");
        DialFailure::new(DialError::Refused, detail)
    })?;
    let [v4, v6] = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    let socket = match relay::dial_tcp((v4, port).into(), ACCEPT).await {
        Ok(socket) => socket,
        Err(failure) => relay::dial_tcp((v6, port).into(), ACCEPT)
            .await
            .map_err(|_| failure)?,
    };
    Ok(Connected { port, socket, room })
}

/// Resolves once the claim is gone, or does not list the port.
async fn unlisted(claim_id: &str, port: u16, forwarder: &Forwarder) {
    while forwarder.lists_pod_port(claim_id, port) {
        sleep(LEFT).await;
    }
}

#[cfg(test)]
mod tests {
    use kvpn_proto::v1;
    use tokio::net::TcpListener;
    use tonic::transport::Endpoint;

    use super::*;
    use crate::claims::Claims;
    use crate::forward::{Listeners, Route};
    use crate::holds::Holds;

    /// Of claims with these ids, all of which list a port.
    fn route(ids: &[&str], port: u16) -> Route {
        let claim = |(container_port, id): (u32, &&str)| v1::Claim {
            id: (*id).into(),
            container_port,
            protocol: v1::Protocol::Tcp.into(),
            pod_ports: vec![port.into()],
            ..v1::Claim::default()
        };
        let told = v1::WatchClaimsResponse {
            claims: (8080..).zip(ids).map(claim).collect(),
            ..v1::WatchClaimsResponse::default()
        };
        // Nobody calls it.
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let tunnel = TunnelClient::new(channel);
        Route::new(Claims::try_from(told).unwrap(), tunnel, Holds::default())
    }

    async fn server() -> (TcpListener, u16) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        (server, port)
    }

    #[tokio::test]
    async fn connections_are_those_of_one_claim_and_end_with_it() {
        let (_server, port) = server().await;
        let forwarder = Forwarder::start(Listeners::bind().unwrap());
        forwarder.set_route(Some(route(&["a", "b"], port)));
        for id in ["a", "b"] {
            assert!(connect(id, port.into(), &forwarder).await.is_ok(), "{id}");
        }
        forwarder.set_route(Some(route(&["b"], port)));
        let left = connect("a", port.into(), &forwarder).await.unwrap_err();
        assert_eq!(left.error, DialError::Prohibited);
        assert!(connect("b", port.into(), &forwarder).await.is_ok());
        let deadline = Duration::from_secs(5);
        timeout(deadline, unlisted("a", port, &forwarder))
            .await
            .expect("it ends with its own claim");
        let other = timeout(Duration::ZERO, unlisted("b", port, &forwarder)).await;
        assert!(other.is_err(), "it ended with another's claim");
    }

    #[tokio::test]
    async fn connections_into_the_pod_are_bounded() {
        let (_server, port) = server().await;
        let forwarder = Forwarder::start(Listeners::bind().unwrap());
        forwarder.set_route(Some(route(&["a"], port)));
        let mut open = Vec::new();
        while let Some(room) = forwarder.room_for_pod_dial() {
            open.push(room);
        }
        assert_eq!(open.len(), MAX_POD_DIALS);
        let refused = connect("a", port.into(), &forwarder).await.unwrap_err();
        assert_eq!(refused.error, DialError::Refused);
        assert!(refused.detail.contains("open already"), "{refused}");
        open.pop();
        let connected = connect("a", port.into(), &forwarder).await.unwrap();
        assert!(forwarder.room_for_pod_dial().is_none());
        drop(connected);
        assert!(forwarder.room_for_pod_dial().is_some());
    }
}
