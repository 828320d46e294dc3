//! The port of the agents: gRPC over TLS.

use anyhow::Context;
use kvpn_proto::v1::agent_hub_server::AgentHubServer;
use kvpn_tunnel::grpc;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::io::Tagged;
use super::{QUEUED_CONNECTIONS, accept, handshake};
use crate::api::{AgentApi, Peer};

/// Serves agents until the shutdown.
pub(crate) async fn serve_agents(
    listener: TcpListener,
    tls: TlsAcceptor,
    api: AgentApi,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (connections, incoming) = mpsc::channel(QUEUED_CONNECTIONS);
    let accepting = accept(listener, shutdown.clone(), move |socket, peer| {
        let (tls, connections) = (tls.clone(), connections.clone());
        tokio::spawn(async move {
            if let Some(stream) = handshake(&tls, socket, peer).await {
                let tag = Peer(peer.ip().to_canonical());
                let tagged = Tagged::new(stream, tag, std::future::pending());
                // Fails only in a shutdown.
                let _ = connections.send(std::io::Result::Ok(tagged)).await;
            }
        });
    });
    let serving = grpc::server()
        .add_service(AgentHubServer::new(api))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            shutdown.clone().cancelled_owned(),
        );
    let ((), served) = tokio::join!(accepting, serving);
    served.context("serve agents")
}
