//! Connects to the traffic manager.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use hyper_util::rt::TokioIo;
use kvpn_proto::names::MANAGER_TLS_NAME;
use kvpn_tunnel::socket::{read_much, tune};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Uri};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Opens one connection. The channel does not open another when it is lost.
pub(crate) async fn connect(
    manager: SocketAddr,
    tls: Arc<ClientConfig>,
) -> anyhow::Result<Channel> {
    timeout(CONNECT_DEADLINE, open(manager, tls))
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
        .with_context(|| format!("connect to {manager}"))
}

async fn open(manager: SocketAddr, tls: Arc<ClientConfig>) -> anyhow::Result<Channel> {
    let socket = tokio::net::TcpStream::connect(manager).await?;
    tune(&socket);
    let name = ServerName::try_from(MANAGER_TLS_NAME)?;
    let stream = TlsConnector::from(tls)
        .connect(name, read_much(socket))
        .await
        .context("TLS")?;
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_: Uri| {
        let stream = stream.take();
        std::future::ready(stream.ok_or_else(|| io::Error::other("the connection was lost")))
    });
    Ok(kvpn_tunnel::grpc::client_endpoint(MANAGER_TLS_NAME)
        .connect_with_connector(once)
        .await?)
}
