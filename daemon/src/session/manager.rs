//! The connections to the traffic manager: opened, authenticated, watched, and
//! made again when they break.

mod connection;
mod connections;
mod extra;
mod load;
mod pipe;
mod supervisor;

use std::time::{Duration, Instant};

use kvpn_proto::v1;
use kvpn_proto::v1::traffic_manager_client::TrafficManagerClient;
use tokio::sync::watch;
use tonic::transport::Channel;

pub(crate) use connection::{Credentials, Greeting};
pub(crate) use connections::FlowClient;
pub(crate) use extra::Extra;
pub(crate) use supervisor::{Opener, supervise};

use super::cluster_info::ClusterInfo;
use super::transport::Transport;
use connections::Connections;

/// A client of the traffic manager, on one connection.
pub(crate) type Client = TrafficManagerClient<Channel>;

/// How long the cluster's DNS may take.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);

/// What the rest of the session sees of the traffic manager, across
/// connections.
#[derive(Clone)]
pub(crate) struct Manager {
    client: watch::Receiver<Option<Client>>,
    connections: Connections,
    cluster: watch::Receiver<ClusterInfo>,
    versions: watch::Receiver<Versions>,
    transport: watch::Receiver<Option<Transport>>,
}

/// What runs in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) manager: String,
    /// Empty when unknown.
    pub(crate) chart: String,
}

/// Why a question was not put to the cluster's DNS, or not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("the tunnel is down")]
    Down,
    #[error("the cluster's DNS did not answer in time")]
    TimedOut,
    #[error("the cluster's DNS failed: {0}")]
    Failed(String),
}

impl Manager {
    /// A client on the control connection, while that is up.
    pub(crate) fn client(&self) -> Option<Client> {
        self.client.borrow().clone()
    }

    /// The clients on the control connections that come and go.
    pub(crate) fn clients(&self) -> watch::Receiver<Option<Client>> {
        self.client.clone()
    }

    /// Waits until the control connection is up.
    pub(crate) async fn wait_for_client(&self) -> Client {
        let mut client = self.client.clone();
        loop {
            if let Some(client) = client.borrow_and_update().clone() {
                return client;
            }
            if client.changed().await.is_err() {
                // Nobody will open it again.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A client for one flow, on the connection that has most room for it.
    pub(crate) fn flow_client(&self) -> Option<FlowClient> {
        self.connections.take(Instant::now())
    }

    pub(crate) fn cluster(&self) -> watch::Receiver<ClusterInfo> {
        self.cluster.clone()
    }

    pub(crate) fn versions(&self) -> Versions {
        self.versions.borrow().clone()
    }

    /// The way to the traffic manager that worked last.
    pub(crate) fn transport(&self) -> Option<Transport> {
        *self.transport.borrow()
    }

    /// Puts a DNS message to the cluster's name servers.
    pub(crate) async fn lookup(&self, query: Vec<u8>) -> Result<Vec<u8>, LookupError> {
        let mut client = self.connections.any().ok_or(LookupError::Down)?;
        let request = v1::LookupRequest {
            query: query.into(),
        };
        match tokio::time::timeout(LOOKUP_DEADLINE, client.lookup(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner().answer.into()),
            Ok(Err(status)) => Err(LookupError::Failed(status.message().to_owned())),
            Err(_) => Err(LookupError::TimedOut),
        }
    }
}

#[cfg(test)]
impl Manager {
    /// One whose tunnel is down, with what was last heard of the cluster.
    pub(crate) fn down(cluster: ClusterInfo) -> Self {
        Self {
            client: watch::channel(None).1,
            connections: Connections::default(),
            cluster: watch::channel(cluster).1,
            versions: watch::channel(Versions::default()).1,
            transport: watch::channel(None).1,
        }
    }
}
