//! Connections of a port of which only some requests are claimed.

mod tls;

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use kvpn_proto::filter::Head;
use kvpn_tunnel::relay;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{APP_DEADLINE, Route, Shared, hand_over};
use crate::claims::PortClaims;
use crate::http::end::{Pipe, Tcp};
use crate::http::tap::{Connected, Tap};
use crate::http::{self, End, Served, Server, Servers};
use crate::probes::KUBELET;
use crate::reports::Entry;
use crate::tls::Termination;

/// How soon copies end whose claim is gone.
const LEFT: Duration = Duration::from_secs(1);

/// How long a client of TLS may have to wait for what its TLS is ended with. A session gives
/// it as soon as the traffic manager is back.
const TLS_DEADLINE: Duration = if cfg!(test) {
    Duration::from_millis(200)
} else {
    Duration::from_secs(5)
};

/// How often it is looked whether it has come.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How much waits between a connection and the tunnel, in bytes.
const ROOM: usize = 64 << 10;

/// Those who may get the requests of one connection, by the claims as they are.
#[derive(Clone)]
struct PodServers {
    shared: Arc<Shared>,
    source: SocketAddr,
    destination: SocketAddr,
    /// How the app is spoken to where the client's TLS is ended here.
    app: Option<Arc<tls::App>>,
}

/// Serves the requests of a connection. What does not end in order ends with RST.
pub(super) async fn serve(
    socket: TcpStream,
    source: SocketAddr,
    destination: SocketAddr,
    shared: Arc<Shared>,
) {
    let servers = PodServers {
        shared,
        source,
        destination,
        app: None,
    };
    if let Err(error) = serve_client(End::new(Tcp::new(socket)), servers).await {
        debug!(%destination, %error, "Cut off");
    }
}

async fn serve_client(mut client: End, servers: PodServers) -> Result<(), http::Broken> {
    while let Served::Tls(begun) = http::serve(client, &servers).await? {
        let began = Instant::now();
        match timeout(TLS_DEADLINE, servers.awaited_termination()).await {
            Ok(Some(termination)) => return tls::serve(begun, &termination, servers).await,
            // It passes since just now.
            Ok(None) => client = begun,
            Err(_) => {
                servers.note_failed_tls(began);
                return Err(http::Broken::Blind);
            }
        }
    }
    Ok(())
}

/// Serves a connection whose requests are not looked at, be it that somebody gets a copy or
/// that nobody may answer for the claim's holder.
pub(super) async fn serve_whole(
    socket: TcpStream,
    source: SocketAddr,
    destination: SocketAddr,
    shared: Arc<Shared>,
) {
    let servers = PodServers {
        shared,
        source,
        destination,
        app: None,
    };
    let server = servers.other();
    let client = End::new(Tcp::new(socket));
    if let Err(error) = http::serve_whole(client, server, &servers).await {
        debug!(%destination, %error, "Cut off");
    }
}

impl PodServers {
    /// Something of the claims on the port; nothing if there are none.
    fn claims<T: Default>(&self, of: impl FnOnce(&PortClaims) -> T) -> T {
        let route = self.shared.route();
        let claims = route
            .as_ref()
            .and_then(|route| route.claims.get(self.destination.port()));
        claims.map(of).unwrap_or_default()
    }

    /// How the client's TLS is ended, if it is.
    fn termination(&self) -> Option<Termination> {
        let route = self.shared.route()?;
        route.terminations.get(&self.destination.port()).cloned()
    }

    /// The same, but waits while that has yet to come and the app must not answer instead.
    async fn awaited_termination(&self) -> Option<Termination> {
        loop {
            let termination = self.termination();
            if termination.is_some() || !self.claims(PortClaims::is_blind) {
                return termination;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// The client's TLS could not be ended.
    fn note_failed_tls(&self, began: Instant) {
        let port = self.destination.port();
        let reports = &self.shared.reports;
        reports.note_failed_tls(self.source, port, began.into_std());
    }

    /// What the claims on the port say, or the app.
    fn by_claims(&self, claim: impl FnOnce(&PortClaims) -> Option<&str>) -> Server {
        let route = self.shared.route();
        let claims = route
            .as_ref()
            .and_then(|route| route.claims.get(self.destination.port()));
        match claims.and_then(claim) {
            Some(id) => Server::Holder(id.to_owned()),
            None => Server::App,
        }
    }

    fn count_copies(&self, claim_ids: Vec<String>) -> Vec<String> {
        for id in &claim_ids {
            self.shared.reports.count_unlogged(id);
        }
        claim_ids
    }

    /// Resolves once the claim on copies is gone.
    fn until_left(&self, claim_id: String) -> impl Future<Output = ()> + use<> {
        let servers = self.clone();
        async move {
            while servers
                .claims(|claims| claims.every_copy())
                .contains(&claim_id)
            {
                sleep(LEFT).await;
            }
        }
    }

    /// A connection to the holder of a claim, and what carries its bytes.
    async fn open(&self, claim_id: &str) -> io::Result<Connected> {
        let Some(route) = self.shared.route() else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let Route { tunnel, .. } = &*route;
        let frames = hand_over(tunnel, claim_id, self.source).await;
        let frames = frames.map_err(io::Error::other)?;
        let (ours, theirs) = Pipe::new(ROOM);
        let relay = async move {
            if let Err(error) = relay::splice(theirs, frames).await {
                debug!(%error, "Cut off from the claim's holder");
            }
        };
        Ok((End::new(ours), relay.boxed()))
    }
}

async fn dial_app(destination: SocketAddr) -> io::Result<Tcp> {
    let app = relay::dial_tcp(destination, APP_DEADLINE).await;
    Ok(Tcp::new(app.map_err(io::Error::other)?))
}

/// Whether the kubelet asks how the app is.
fn is_probe(claims: &PortClaims, head: &impl Head) -> bool {
    let is_kubelet = |agent: Cow<'_, str>| agent.starts_with(KUBELET);
    claims.http_probed && head.field("user-agent").is_some_and(is_kubelet)
}

impl Servers for PodServers {
    fn is_clients_word(&self) -> bool {
        self.claims(|claims| claims.is_clients_word) || self.ends_tls()
    }

    fn ends_tls(&self) -> bool {
        // There is none within TLS.
        self.app.is_none() && (self.termination().is_some() || self.claims(PortClaims::is_blind))
    }

    fn choose(&self, head: &impl Head) -> Server {
        self.by_claims(|claims| claims.of(head).filter(|_| !is_probe(claims, head)))
    }

    fn other(&self) -> Server {
        self.by_claims(PortClaims::rest)
    }

    fn note(&self, server: &Server, head: &impl Head) -> Entry {
        if self.claims(|claims| is_probe(claims, head)) {
            return Entry::untold();
        }
        let mut entry = self.note_other(server);
        entry.asks(head.method(), head.path());
        entry
    }

    fn note_other(&self, server: &Server) -> Entry {
        let claim_id = match server {
            Server::App => None,
            Server::Holder(id) => Some(id.as_str()),
        };
        let port = self.destination.port();
        Entry::new(&self.shared.reports, self.source, port, claim_id)
    }

    fn fails_closed(&self, server: &Server) -> bool {
        match server {
            Server::App => false,
            Server::Holder(id) => self.claims(|claims| claims.fails_closed(id)),
        }
    }

    async fn connect(&self, server: &Server) -> io::Result<End> {
        match server {
            Server::Holder(claim_id) => {
                let (end, relay) = self.open(claim_id).await?;
                self.shared.flows.spawn(relay);
                Ok(end)
            }
            Server::App => match &self.app {
                Some(app) => app.connect().await,
                None => Ok(End::new(dial_app(self.destination).await?)),
            },
        }
    }

    fn copied(&self, head: &impl Head) -> Vec<String> {
        self.count_copies(self.claims(|claims| match is_probe(claims, head) {
            true => Vec::new(),
            false => claims.copied(head),
        }))
    }

    fn other_copied(&self) -> Vec<String> {
        self.count_copies(self.claims(PortClaims::all_copied))
    }

    fn tap(&self, claim_id: &str, is_answered: bool) -> Option<Tap> {
        let permit = match self.shared.has_missed_copies(claim_id) {
            true => None,
            // Each may hold some megabytes for one that does not take it.
            false => Arc::clone(&self.shared.copies).try_acquire_owned().ok(),
        };
        let Some(permit) = permit else {
            self.shared.reports.count_failure(claim_id);
            return None;
        };
        let copied = claim_id.to_owned();
        let (servers, claim_id) = (self.clone(), claim_id.to_owned());
        let connecting = async move {
            let opened = servers.open(&claim_id).await;
            if opened.is_err() {
                servers.shared.note_missed_copies(claim_id);
            }
            opened
        };
        let (tap, carrying) = Tap::new(connecting, is_answered);
        let left = self.until_left(copied.clone());
        let reports = Arc::clone(&self.shared.reports);
        self.shared.flows.spawn(async move {
            tokio::select! {
                is_taken = carrying => if !is_taken {
                    reports.count_failure(&copied);
                },
                () = left => {}
            }
            drop(permit);
        });
        Some(tap)
    }
}
