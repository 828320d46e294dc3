//! One client's connections of HTTP/2 to servers: one to each.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use h2::SendStream;
use h2::client::{self, ResponseFuture, SendRequest};
use http::Request;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::{
    CONNECTION_WINDOW, FIRST_STREAMS, FRAME_BUDGET, LONGEST_HEAD, MAX_RESETS, SEND_BUFFER,
    STREAM_WINDOW,
};
use crate::http::joined::Joined;
use crate::http::{End, READ, Server, Servers};
use crate::reports::Entry;

/// The ways to the servers of a client's requests.
pub(super) struct Ways<'a, S> {
    pub(super) servers: &'a S,
    ways: Mutex<HashMap<Server, Arc<AsyncMutex<Way>>>>,
    /// A connection to the app of which no use was made yet.
    app: Mutex<Option<End>>,
    drivers: Mutex<JoinSet<()>>,
    app_ended: Arc<Notify>,
}

/// The way to one server.
#[derive(Default)]
struct Way {
    sender: Option<SendRequest<Bytes>>,
    /// When it could not be had the last time.
    failed: Option<Instant>,
}

impl<'a, S: Servers> Ways<'a, S> {
    pub(super) fn new(servers: &'a S, app: Option<End>) -> Self {
        Self {
            servers,
            ways: Mutex::default(),
            app: Mutex::new(app),
            drivers: Mutex::default(),
            app_ended: Arc::default(),
        }
    }

    /// Sends a request to a server, to the app for a holder who cannot be had. It goes as
    /// soon as the server takes one more.
    ///
    /// # Errors
    /// When the app cannot be had, nor may answer instead.
    pub(super) async fn send(
        &self,
        server: &Server,
        request: Request<()>,
        is_whole: bool,
        entry: &mut Entry,
    ) -> io::Result<(ResponseFuture, SendStream<Bytes>)> {
        // It may be that no more meanwhile.
        let is_closed = self.servers.fails_closed(server);
        let mut taker = server;
        let mut sender = match self.sender(server).await {
            Ok(sender) => sender,
            Err(error) if *server == Server::App => return Err(error),
            Err(error) => {
                entry.has_failed();
                if is_closed {
                    return Err(error);
                }
                taker = &Server::App;
                debug!(%error, ?server, "The app answers instead");
                self.sender(&Server::App).await?
            }
        };
        entry.taken_by(taker);
        let sent = sender.send_request(request, is_whole);
        sent.map_err(io::Error::other)
    }

    /// What sends a request to a server, over the connection that is there or a new one.
    async fn sender(&self, server: &Server) -> io::Result<SendRequest<Bytes>> {
        let came = Instant::now();
        let way = Arc::clone(lock(&self.ways).entry(server.clone()).or_default());
        let mut way = way.lock().await;
        if let Some(sender) = way.sender.clone() {
            // A clone knows of no request that waits, so it fails or is ready at once.
            match sender.ready().await {
                Ok(sender) => return Ok(sender),
                Err(error) => debug!(%error, ?server, "It takes no more requests"),
            }
            way.sender = None;
            self.note_end(server);
        }
        // Who came earlier has just tried.
        if way.failed.is_some_and(|failed| failed > came) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        match self.connect(server).await {
            Ok(sender) => {
                way.sender = Some(sender.clone());
                Ok(sender)
            }
            Err(error) => {
                way.failed = Some(Instant::now());
                self.note_end(server);
                Err(error)
            }
        }
    }

    async fn connect(&self, server: &Server) -> io::Result<SendRequest<Bytes>> {
        let kept = match server {
            // It may have waited in vain for somebody's word.
            Server::App => lock(&self.app).take().and_then(not_ended),
            Server::Holder(_) => None,
        };
        let end = match kept {
            Some(end) => end,
            None => self.servers.connect(server).await?,
        };
        let connecting = client::Builder::new()
            .enable_push(false)
            .initial_max_send_streams(FIRST_STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .data_frame_budget(FRAME_BUDGET)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(LONGEST_HEAD)
            .max_concurrent_reset_streams(MAX_RESETS)
            .max_local_error_reset_streams(None)
            .handshake(Joined::new(end))
            .await;
        let (sender, connection) = connecting.map_err(io::Error::other)?;
        let ended = (*server == Server::App).then(|| Arc::clone(&self.app_ended));
        let mut drivers = lock(&self.drivers);
        while drivers.try_join_next().is_some() {}
        drivers.spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "A server's connection has ended");
            }
            if let Some(ended) = ended {
                ended.notify_one();
            }
        });
        Ok(sender)
    }

    fn note_end(&self, server: &Server) {
        if *server == Server::App {
            self.app_ended.notify_one();
        }
    }

    /// Resolves when the app takes no more requests.
    pub(super) async fn app_ended(&self) {
        self.app_ended.notified().await;
    }

    /// Ends the connections, once nothing is awaited on them.
    pub(super) async fn close(self) {
        drop(self.ways);
        let unused = lock(&self.app).take();
        if let Some(mut end) = unused {
            let _ = end.writer.shutdown().await;
        }
        let mut drivers = self
            .drivers
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        while drivers.join_next().await.is_some() {}
    }
}

/// The end of a connection on which nothing was asked, unless the server has ended it. What
/// the server has said waits for who reads on.
fn not_ended(mut end: End) -> Option<End> {
    while end.buffer.len() < READ {
        match end.fill().now_or_never() {
            Some(Ok(1..)) => {}
            Some(Ok(0) | Err(_)) => return None,
            None => break,
        }
    }
    Some(end)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
