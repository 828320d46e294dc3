//! A QUIC server (RFC 9000) that sends back what comes on a stream.

use std::sync::Arc;

use anyhow::{Context, Result};
use quinn::{
    Connection, Endpoint, EndpointConfig, RecvStream, SendStream, ServerConfig, TokioRuntime,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::UdpSocket;

/// The name that the certificate is for.
const NAME: &str = "quic";

const MAX_CHUNK: usize = 64 << 10;

/// A server with a certificate of its own.
pub(crate) struct Server {
    endpoint: Endpoint,
    certificate: CertificateDer<'static>,
}

impl Server {
    pub(crate) fn new(socket: UdpSocket) -> Result<Self> {
        let own =
            rcgen::generate_simple_self_signed([NAME.to_owned()]).context("make a certificate")?;
        let certificate = own.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())
            .context("use the certificate")?;
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            Some(config),
            socket.into_std()?,
            Arc::new(TokioRuntime),
        )?;
        Ok(Self {
            endpoint,
            certificate,
        })
    }

    /// What clients must trust.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.certificate.to_vec()
    }

    /// Serves for ever.
    pub(crate) async fn serve(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            tokio::spawn(async move {
                // A client that goes away is not this server's trouble.
                if let Ok(connection) = incoming.await {
                    answer(connection).await;
                }
            });
        }
    }
}

async fn answer(connection: Connection) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(async move { drop(echo(send, receive).await) });
    }
}

async fn echo(mut send: SendStream, mut receive: RecvStream) -> Result<()> {
    while let Some(chunk) = receive.read_chunk(MAX_CHUNK, true).await? {
        send.write_chunk(chunk.bytes).await?;
    }
    send.finish()?;
    Ok(())
}
