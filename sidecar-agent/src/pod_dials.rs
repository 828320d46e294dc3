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
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status};
use tracing::{debug, info};

use crate::forward::Forwarder;

/// How long the traffic manager may take to take the call, or a refusal.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long until a call is made again that has ended.
const AGAIN: Duration = Duration::from_secs(2);

/// How long a server of the pod may take to accept.
const ACCEPT: Duration = Duration::from_secs(5);

/// How soon connections end whose port no claim lists any more.
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

/// Carries one connection, until it ends or no claim lists its port any more.
async fn carry(tunnel: TunnelClient, dial: WatchPodDialsResponse, forwarder: Forwarder) {
    let frames = tunnel.carry(Frame::Open(OpenTarget::Dial(dial.dial_id)));
    let connected = connect(dial.port, &forwarder).await;
    let answer = match &connected {
        Ok(_) => Frame::Opened,
        Err(failure) => Frame::Failed(failure.clone()),
    };
    if let Err(error) = frames.sender.send(answer).await {
        debug!(%error, "Nobody waits for the pod's port any more");
        return;
    }
    match connected {
        Ok((port, socket)) => {
            info!(port, "Connected to a port of the pod");
            tokio::select! {
                spliced = relay::splice_tcp(socket, frames) => match spliced {
                    Ok(moved) => debug!(port, ?moved, "Connection to the pod's port ended"),
                    Err(error) => debug!(port, %error, "Cut off from the pod's port"),
                },
                () = unlisted(port, &forwarder) => debug!(port, "Cut off: no claim lists the port"),
            }
        }
        Err(failure) => {
            debug!(dial.port, %failure, "A port of the pod cannot be had");
            // Until the refusal has arrived.
            let _ = timeout(DEADLINE, frames.finish()).await;
        }
    }
}

/// Connects to a port that a claim lists, by IPv4 where that is possible.
async fn connect(number: u32, forwarder: &Forwarder) -> Result<(u16, TcpStream), DialFailure> {
    let prohibited = |detail: String| DialFailure::new(DialError::Prohibited, detail);
    let port = port(number).map_err(|error| prohibited(error.to_string()))?;
    if !forwarder.lists_pod_port(port) {
        return Err(prohibited(format!(
            "no claim on this pod lists port {port}"
        )));
    }
    let [v4, v6] = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    match relay::dial_tcp((v4, port).into(), ACCEPT).await {
        Ok(socket) => Ok((port, socket)),
        Err(failure) => match relay::dial_tcp((v6, port).into(), ACCEPT).await {
            Ok(socket) => Ok((port, socket)),
            Err(_) => Err(failure),
        },
    }
}

/// Resolves once no claim lists the port.
async fn unlisted(port: u16, forwarder: &Forwarder) {
    while forwarder.lists_pod_port(port) {
        sleep(LEFT).await;
    }
}
