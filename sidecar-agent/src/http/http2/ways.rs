//! One client's connections of HTTP/2 to servers: one to each.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::task::JoinSet;
use tracing::debug;

use super::joined::Joined;
use super::{CONNECTION_WINDOW, LONGEST_HEAD, SEND_BUFFER, STREAM_WINDOW};
use crate::http::{End, Server, Servers};

/// What sends requests to one server; none before the first.
type Way = Arc<AsyncMutex<Option<SendRequest<Bytes>>>>;

/// The ways to the servers of a client's requests.
pub(super) struct Ways<'a, S> {
    pub(super) servers: &'a S,
    open: Mutex<HashMap<Server, Way>>,
    /// A connection to the app of which no use was made yet.
    app: Mutex<Option<End>>,
    drivers: Mutex<JoinSet<()>>,
    app_ended: Arc<Notify>,
}

impl<'a, S: Servers> Ways<'a, S> {
    pub(super) fn new(servers: &'a S, app: Option<End>) -> Self {
        Self {
            servers,
            open: Mutex::default(),
            app: Mutex::new(app),
            drivers: Mutex::default(),
            app_ended: Arc::default(),
        }
    }

    /// The way to a server that takes one more request, to the app for a holder who
    /// cannot be had; with whom it leads to.
    pub(super) async fn to(&self, server: Server) -> io::Result<(Server, SendRequest<Bytes>)> {
        match self.ready(&server).await {
            Ok(way) => Ok((server, way)),
            Err(error) if server == Server::App => Err(error),
            Err(error) => {
                debug!(%error, ?server, "The app answers instead");
                Ok((Server::App, self.ready(&Server::App).await?))
            }
        }
    }

    async fn ready(&self, server: &Server) -> io::Result<SendRequest<Bytes>> {
        let way = Way::clone(lock(&self.open).entry(server.clone()).or_default());
        let mut way = way.lock().await;
        if let Some(open) = &*way
            && let Ok(ready) = open.clone().ready().await
        {
            return Ok(ready);
        }
        let new = self.connect(server).await?;
        *way = Some(new.clone());
        new.ready().await.map_err(io::Error::other)
    }

    async fn connect(&self, server: &Server) -> io::Result<SendRequest<Bytes>> {
        let kept = lock(&self.app).take().filter(|_| *server == Server::App);
        let end = match kept {
            Some(end) => end,
            None => self.servers.connect(server).await?,
        };
        let connecting = client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(LONGEST_HEAD)
            .handshake(Joined::new(end))
            .await;
        let (way, connection) = connecting.map_err(io::Error::other)?;
        let app_ended = (*server == Server::App).then(|| Arc::clone(&self.app_ended));
        lock(&self.drivers).spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "A server's connection has ended");
            }
            if let Some(ended) = app_ended {
                ended.notify_one();
            }
        });
        Ok(way)
    }

    /// Resolves when a connection to the app has ended.
    pub(super) async fn app_ended(&self) {
        self.app_ended.notified().await;
    }

    /// Ends the connections, once nothing is awaited on them.
    pub(super) async fn close(self) {
        drop(self.open);
        let mut drivers = self
            .drivers
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        while drivers.join_next().await.is_some() {}
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
