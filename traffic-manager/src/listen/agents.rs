//! The port of the agents: gRPC over TLS.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kvpn_proto::v1::agent_hub_server::AgentHubServer;
use kvpn_tunnel::grpc::{self, TunnelServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::io::{Tag, Tagged};
use super::{QUEUED_CONNECTIONS, accept, handshake};
use crate::admission::Admission;
use crate::api::{AgentApi, Peer};

/// How many connections may be open at once, in all and from one pod. An agent
/// has one; a pod may have an agent that is on its way out.
const OPEN: (usize, usize) = (16_384, 8);

/// How long a connection waits for a traffic manager that just started to know
/// which pods have agents.
const SYNC: Duration = Duration::from_secs(10);

impl Tag for Peer {
    fn is_known(&self) -> bool {
        Peer::is_known(self)
    }
}

/// Serves agents until the shutdown.
pub(crate) async fn serve_agents(
    listener: TcpListener,
    tls: TlsAcceptor,
    api: AgentApi,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (connections, incoming) = mpsc::channel(QUEUED_CONNECTIONS);
    let admission = Admission::new(OPEN.0, OPEN.1);
    let hub = Arc::clone(&api.hub);
    let accepting = accept(listener, shutdown.clone(), move |socket, peer| {
        let ip = peer.ip().to_canonical();
        let Some(place) = admission.admit(ip) else {
            debug!(%peer, "too many connections from this pod, or in all");
            return;
        };
        let (tls, connections, hub) = (tls.clone(), connections.clone(), Arc::clone(&hub));
        tokio::spawn(async move {
            if !hub.wait_synced(SYNC).await {
                debug!(%peer, "not known yet which pods have agents");
                return;
            }
            let is_expected = hub.expects_agent(ip);
            if !is_expected && !hub.expects_newborn() {
                warn!(
                    %ip,
                    "no agent was brought to this address; agents must reach the traffic manager \
                     from their pod's own, without NAT"
                );
                return;
            }
            if let Some(stream) = handshake(&tls, socket, peer).await {
                let held = async move {
                    let _place = place;
                    std::future::pending().await
                };
                let tagged = Tagged::new(stream, Peer::new(ip, is_expected), held);
                // Fails only in a shutdown.
                let _ = connections.send(std::io::Result::Ok(tagged)).await;
            }
        });
    });
    let serving = grpc::server()
        .add_service(TunnelServer::new(api.clone()))
        .add_service(AgentHubServer::new(api))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            shutdown.clone().cancelled_owned(),
        );
    let ((), served) = tokio::join!(accepting, serving);
    served.context("serve agents")
}
