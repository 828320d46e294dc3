//! HTTP/2 over one byte stream to the traffic manager.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::Uri;
use hyper_util::rt::TokioIo;
use kvpn_proto::{Failure, names};
use kvpn_tunnel::grpc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::Client;
use super::connection::silent;
use super::load::{Counted, Load};
use crate::session::transport::{ByteStream, Transport};

/// How long the traffic manager may take to answer HTTP/2's preface.
const PREFACE_DEADLINE: Duration = Duration::from_secs(5);

/// One connection. When its stream breaks it is dead: a new one must be
/// authenticated first.
#[derive(Debug)]
pub(super) struct Pipe {
    channel: Channel,
    transport: Transport,
    load: Arc<Load>,
    end: CancellationToken,
}

impl Pipe {
    pub(super) async fn new(
        stream: Box<dyn ByteStream>,
        transport: Transport,
    ) -> Result<Self, Failure> {
        let load = Arc::new(Load::new(Instant::now()));
        let end = CancellationToken::new();
        let counted = Counted::new(stream, Arc::clone(&load), end.clone());
        let channel = tokio::time::timeout(PREFACE_DEADLINE, channel(counted))
            .await
            .map_err(|_| silent())??;
        Ok(Self {
            channel,
            transport,
            load,
            end,
        })
    }

    pub(super) fn client(&self) -> Client {
        Client::new(self.channel.clone())
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    pub(super) fn load(&self) -> Arc<Load> {
        Arc::clone(&self.load)
    }

    /// Resolves when the connection is broken.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }
}

async fn channel(stream: Counted<Box<dyn ByteStream>>) -> Result<Channel, Failure> {
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        std::future::ready(stream.ok_or(Broken))
    });
    grpc::client_endpoint(names::MANAGER_SERVICE)
        .connect_with_connector(connector)
        .await
        .map_err(Failure::internal)
}

/// The one stream of a channel has been used up.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the traffic manager is broken")]
struct Broken;
