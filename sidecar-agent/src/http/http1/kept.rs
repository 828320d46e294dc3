//! A client's connections to servers, kept for its next requests: one to each.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::AsyncWriteExt;
use tokio_util::io::poll_read_buf;
use tracing::debug;

use crate::http::tap::Tap;
use crate::http::{Connection, End, READ, Server, Servers, http2};
use crate::reports::Entry;

/// Connections on which nothing is awaited, and copies that go on with the next request.
#[derive(Default)]
pub(super) struct Kept {
    connections: Vec<Connection>,
    taps: HashMap<String, Tap>,
}

/// What a server does unasked.
pub(super) enum Said {
    Words(Server, End),
    /// It has ended its connection, which is no longer kept.
    End(Server),
}

impl Kept {
    pub(super) fn put(&mut self, connection: Connection) {
        let (server, mut end) = connection;
        end.writer.taps.clear();
        self.connections.push((server, end));
    }

    /// The copies for the holders of these claims, new ones where there are none or they
    /// were given up.
    pub(super) fn taps(&mut self, servers: &impl Servers, claim_ids: Vec<String>) -> Vec<Tap> {
        self.taps.retain(|_, tap| tap.is_open());
        let tap = |id: String| {
            if let Some(tap) = self.taps.get(&id) {
                return Some(tap.clone());
            }
            let tap = servers.tap(&id, true)?;
            self.taps.insert(id, tap.clone());
            Some(tap)
        };
        claim_ids.into_iter().filter_map(tap).collect()
    }

    /// Those copies go on elsewhere.
    pub(super) fn keep_taps(&mut self, elsewhere: &[Tap]) {
        self.taps
            .retain(|_, tap| !elsewhere.iter().any(|it| it.is(tap)));
    }

    /// The copies are whole.
    pub(super) fn finish_taps(&mut self) {
        for (_, tap) in self.taps.drain() {
            tap.finish();
        }
    }

    /// The connection to that server, not kept any more.
    pub(super) fn of(&mut self, server: &Server) -> Option<End> {
        let index = self.connections.iter().position(|(it, _)| it == server)?;
        Some(self.connections.swap_remove(index).1)
    }

    pub(super) fn has(&self, server: &Server) -> bool {
        self.connections.iter().any(|(it, _)| it == server)
    }

    /// The connection to that server, a new one if none is kept; one to the app when
    /// the holder of a claim cannot be had.
    ///
    /// # Errors
    /// When the app cannot be had, nor may answer instead.
    pub(super) async fn take(
        &mut self,
        servers: &impl Servers,
        server: Server,
        entry: &mut Entry,
    ) -> io::Result<Connection> {
        // It may be that no more meanwhile.
        let is_closed = servers.fails_closed(&server);
        let mut server = server;
        loop {
            let connected = match self.of(&server) {
                Some(end) => Ok(end),
                None => servers.connect(&server).await,
            };
            match connected {
                Ok(end) => {
                    entry.taken_by(&server);
                    return Ok((server, end));
                }
                Err(error) if server == Server::App => return Err(error),
                Err(error) => {
                    entry.has_failed();
                    if is_closed {
                        return Err(error);
                    }
                    debug!(%error, ?server, "The app answers instead");
                }
            }
            server = Server::App;
        }
    }

    /// Whether a server has said something that nobody asked for. That it speaks HTTP/2,
    /// it may say before the client does.
    pub(super) fn has_spoken(&self) -> bool {
        self.connections
            .iter()
            .any(|(_, end)| has_words(&end.buffer))
    }

    /// Waits until a server does something; for ever when none is kept.
    pub(super) async fn unasked(&mut self) -> Said {
        let (index, has_words) = poll_fn(|cx| {
            for (index, (_, end)) in self.connections.iter_mut().enumerate() {
                loop {
                    if has_words(&end.buffer) {
                        return Poll::Ready((index, true));
                    }
                    if end.buffer.len() >= READ {
                        break;
                    }
                    let reader = Pin::new(&mut end.reader);
                    match poll_read_buf(reader, cx, &mut end.buffer) {
                        Poll::Ready(Ok(1..)) => {}
                        Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready((index, false)),
                        Poll::Pending => break,
                    }
                }
            }
            Poll::Pending
        })
        .await;
        let (server, mut end) = self.connections.swap_remove(index);
        if has_words {
            return Said::Words(server, end);
        }
        let _ = end.writer.shutdown().await;
        Said::End(server)
    }

    /// Ends them in order.
    pub(super) async fn close(self) {
        for (_, mut end) in self.connections {
            let _ = end.writer.shutdown().await;
        }
    }
}

fn has_words(said: &[u8]) -> bool {
    !said.is_empty() && !http2::is_greeting(said)
}
