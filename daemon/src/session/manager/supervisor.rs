//! Keeps the connection to the traffic manager: follows its streams, and makes
//! a new connection when it breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvpn_proto::{Failure, Reason, v1};
use tokio::sync::watch;
use tonic::Status;
use tracing::{debug, info, warn};

use super::Manager;
use super::connection::{self, Connection, Credentials, Greeting};
use super::connections::{Connections, FlowClient, Role};
use super::extra::Extra;
use crate::session::cluster_info::ClusterInfo;
use crate::session::transport::Transports;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What another connection of the same session takes.
pub(crate) struct Opener {
    pub(crate) transports: Transports,
    pub(crate) credentials: Credentials,
}

/// Follows a connection and its successors. Gives what the rest of the session
/// sees of them, the connections that may be opened besides, and a task that
/// ends only when the session cannot go on, with the reason.
pub(crate) fn supervise(
    opener: Opener,
    first: Connection,
    on_dial: impl Fn(FlowClient, v1::WatchDialsResponse) + Send + Sync + 'static,
) -> (
    Manager,
    Extra,
    impl Future<Output = Failure> + Send + 'static,
) {
    let (client, client_rx) = watch::channel(Some(first.pipe.client()));
    let (info, info_rx) = watch::channel(first.cluster.clone());
    let (versions, versions_rx) = watch::channel(first.versions.clone());
    let (transport, transport_rx) = watch::channel(Some(first.pipe.transport()));
    let opener = Arc::new(opener);
    let connections = Connections::default();
    let mut entry = connections.add(Role::Control, first.pipe.channel(), first.pipe.load());
    let manager = Manager {
        client: client_rx.clone(),
        connections: connections.clone(),
        cluster: info_rx,
        versions: versions_rx,
        transport: transport_rx,
    };
    let extra = Extra {
        opener: Arc::clone(&opener),
        connections: connections.clone(),
        control: client_rx,
    };
    let task = async move {
        let mut connection = first;
        loop {
            let outcome = follow(&mut connection, &info, &connections, &on_dial).await;
            drop(entry);
            client.send_replace(None);
            // What is left of it would count as a session that is present.
            drop(connection);
            if let Err(failure) = outcome {
                return failure;
            }
            connection = match reconnect(&opener).await {
                Ok(connection) => connection,
                Err(failure) => return failure,
            };
            info!("Tunnel is up again");
            let pipe = &connection.pipe;
            entry = connections.add(Role::Control, pipe.channel(), pipe.load());
            update(&info, connection.cluster.clone());
            versions.send_replace(connection.versions.clone());
            transport.send_replace(Some(pipe.transport()));
            client.send_replace(Some(pipe.client()));
        }
    };
    (manager, extra, task)
}

/// Handles what the traffic manager sends, until the connection breaks (`Ok`)
/// or the session is over (`Err`).
async fn follow(
    connection: &mut Connection,
    info: &watch::Sender<ClusterInfo>,
    connections: &Connections,
    on_dial: &impl Fn(FlowClient, v1::WatchDialsResponse),
) -> Result<(), Failure> {
    loop {
        tokio::select! {
            change = connection.cluster_changes.message() => match change {
                Ok(Some(change)) => update(info, change.into()),
                Ok(None) => return broken(None),
                Err(status) => return broken(Some(&status)),
            },
            dial = connection.dials.message() => match dial {
                Ok(Some(dial)) => match connections.take_for_dial(Instant::now()) {
                    Some(client) => on_dial(client, dial),
                    None => debug!("A dial came over a connection that has ended"),
                },
                Ok(None) => return broken(None),
                Err(status) => return broken(Some(&status)),
            },
        }
    }
}

fn update(info: &watch::Sender<ClusterInfo>, new: ClusterInfo) {
    info.send_if_modified(|current| {
        let changed = *current != new;
        *current = new;
        changed
    });
}

fn broken(status: Option<&Status>) -> Result<(), Failure> {
    let Some(status) = status else {
        warn!("Tunnel was closed by the traffic manager");
        return Ok(());
    };
    let failure = connection::explain(status);
    if failure.reason == Reason::SessionRevoked {
        return Err(failure);
    }
    warn!(error = %failure, "Tunnel is down");
    Ok(())
}

/// Tries until it works or the session turns out to be over.
async fn reconnect(opener: &Opener) -> Result<Connection, Failure> {
    let Opener {
        transports,
        credentials,
    } = opener;
    let mut pause = FIRST_PAUSE;
    let mut told = None;
    loop {
        let attempt = async {
            Greeting::open(transports)
                .await?
                .authenticate(credentials)
                .await
        };
        let failure = match attempt.await {
            Ok(connection) => return Ok(connection),
            Err(failure) => failure,
        };
        if is_final(failure.reason) {
            return Err(failure);
        }
        if told.as_ref() != Some(&failure) {
            info!(error = %failure, "Cannot reconnect yet");
            told = Some(failure);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tells the failures that trying again does not mend.
fn is_final(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SessionRevoked | Reason::Unauthenticated | Reason::VersionMismatch
    )
}
