//! Clients whose TLS is ended here, so that their requests can be seen. The app gets TLS of
//! the agent's own, with the protocol that client and app agree on; laptops get none.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::{StartHandshake, TlsStream};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client};
use tracing::debug;

use super::{APP_DEADLINE, PodServers, dial_app};
use crate::http::end::Tcp;
use crate::http::joined::Joined;
use crate::http::{self, End};
use crate::tls::Termination;

/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a connection to the app of which no use was made is good for: the app may end
/// it at any time, and a request be lost with it.
const UNUSED: Duration = if cfg!(test) {
    Duration::from_millis(100)
} else {
    Duration::from_secs(1)
};

/// How long the app may take to agree, before it counts as not there.
const MEET_DEADLINE: Duration = Duration::from_secs(3);

/// Protocols by which requests come (RFC 7301), where the app cannot be asked.
const KNOWN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Serves the requests within a client's TLS.
///
/// # Errors
/// What did not end in order; the client's connection should be aborted.
pub(super) async fn serve(
    client: End,
    termination: &Termination,
    mut servers: PodServers,
) -> Result<(), http::Broken> {
    let began = Instant::now();
    let shaken = shake_hands(client, termination, servers.destination).await;
    let (client, app) = shaken.inspect_err(|_| servers.note_failed_tls(began))?;
    let app = Arc::new(app);
    servers.app = Some(Arc::clone(&app));
    // There is no other TLS within.
    let served = http::serve(End::new(client), &servers).await.map(drop);
    app.finish().await;
    served
}

/// Ends the client's TLS, as the app agrees to it.
async fn shake_hands(
    client: End,
    termination: &Termination,
    destination: SocketAddr,
) -> io::Result<(TlsStream<Joined>, App)> {
    let mut start = hello(client).await?;
    let offer = Offer::of(&start, destination);
    let (app, protocol) = match App::meet(termination, offer, destination).await {
        Ok(met) => met,
        // So the app would have ended it.
        Err(error) => {
            let _ = start.io.shutdown().await;
            return Err(error);
        }
    };
    match accept(start, termination, protocol).await {
        Ok(client) => Ok((client, app)),
        Err(error) => {
            app.finish().await;
            Err(error)
        }
    }
}

/// Reads what the client says first.
async fn hello(client: End) -> io::Result<StartHandshake<Joined>> {
    let mut accepting = LazyConfigAcceptor::new(Acceptor::default(), Joined::new(client));
    let start = timeout(HANDSHAKE_DEADLINE, &mut accepting).await;
    let start = start.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    if start.is_err()
        && let Some(mut client) = accepting.take_io()
    {
        // It has been told why; RST would take that back.
        let _ = client.shutdown().await;
    }
    start
}

/// Ends the handshake with the client, by what was agreed on with the app.
async fn accept(
    start: StartHandshake<Joined>,
    termination: &Termination,
    protocol: Option<Vec<u8>>,
) -> io::Result<TlsStream<Joined>> {
    let accepting = start.into_stream(termination.clients(protocol));
    let accepting = timeout(HANDSHAKE_DEADLINE, accepting.into_fallible());
    match accepting.await.map_err(|_| io::ErrorKind::TimedOut)? {
        Ok(client) => Ok(client),
        Err((error, mut client)) => {
            // It has been told why; RST would take that back.
            let _ = client.shutdown().await;
            Err(error)
        }
    }
}

/// What a client wants of the app.
struct Offer {
    name: ServerName<'static>,
    /// The protocols that it speaks.
    protocols: Vec<Vec<u8>>,
}

impl Offer {
    fn of(start: &StartHandshake<Joined>, destination: SocketAddr) -> Self {
        let hello = start.client_hello();
        let name = hello
            .server_name()
            .map(|it| ServerName::try_from(it.to_owned()));
        let name = match name {
            Some(Ok(name)) => name,
            // Of an address the app is not told.
            Some(Err(_)) | None => ServerName::IpAddress(destination.ip().into()),
        };
        let protocols = hello.alpn().into_iter().flatten();
        let protocols = protocols.map(<[u8]>::to_vec).collect();
        Self { name, protocols }
    }
}

/// The way to the app for one client.
pub(super) struct App {
    destination: SocketAddr,
    name: ServerName<'static>,
    /// With the protocol that was agreed on.
    config: Arc<ClientConfig>,
    /// The connection by which it was agreed on, until somebody wants it.
    unused: Mutex<Option<(Instant, End)>>,
}

impl App {
    /// Agrees with the app on what the client gets to speak: nothing, or one of the
    /// protocols that it offers.
    ///
    /// # Errors
    /// When the app is there and does not speak TLS with it.
    async fn meet(
        termination: &Termination,
        offer: Offer,
        destination: SocketAddr,
    ) -> io::Result<(Self, Option<Vec<u8>>)> {
        let Offer { name, protocols } = offer;
        let met = timeout(MEET_DEADLINE, async {
            let app = dial_app(destination).await?;
            connect(termination.app(protocols.clone()), &name, app).await
        });
        let met = met.await;
        let (protocol, unused) = match met.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(app) => {
                let protocol = app.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                (protocol, Some((Instant::now(), End::new(app))))
            }
            // It speaks, but no TLS that fits.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
            // It may be stopped, and a request be for somebody else.
            Err(error) => {
                debug!(%destination, %error, "The app does not answer");
                let known = |protocol: &Vec<u8>| KNOWN.contains(&protocol.as_slice());
                (protocols.into_iter().find(known), None)
            }
        };
        let app = Self {
            destination,
            name,
            config: termination.app(protocol.clone().into_iter().collect()),
            unused: Mutex::new(unused),
        };
        Ok((app, protocol))
    }

    /// A connection of its own for requests.
    pub(super) async fn connect(&self) -> io::Result<End> {
        match self.take_unused() {
            Some((since, app)) if since.elapsed() < UNUSED => return Ok(app),
            Some((_, app)) => app.end().await,
            None => {}
        }
        let app = dial_app(self.destination).await?;
        let app = connect(Arc::clone(&self.config), &self.name, app).await?;
        Ok(End::new(app))
    }

    /// Nobody wants a connection any more.
    async fn finish(&self) {
        if let Some((_, app)) = self.take_unused() {
            app.end().await;
        }
    }

    fn take_unused(&self) -> Option<(Instant, End)> {
        let unused = self.unused.lock();
        unused.unwrap_or_else(PoisonError::into_inner).take()
    }
}

async fn connect(
    config: Arc<ClientConfig>,
    name: &ServerName<'static>,
    app: Tcp,
) -> io::Result<client::TlsStream<Tcp>> {
    let connecting = TlsConnector::from(config).connect(name.clone(), app);
    let connected = timeout(APP_DEADLINE, connecting).await;
    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests;
