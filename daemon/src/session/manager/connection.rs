//! One authenticated connection to the traffic manager.

use std::time::Duration;

use bytes::Bytes;
use kvpn_proto::{Failure, Reason, v1, version};
use tonic::{Code, Status, Streaming};

use super::pipe::Pipe;
use super::{Client, Versions};
use crate::session::cluster_info::ClusterInfo;
use crate::session::identity::{OwnSession, SessionKey};
use crate::session::transport::{ByteStream, Transport, Transports};

/// How long a call that only asks may take.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// What proves a session to the traffic manager.
pub(crate) struct Credentials {
    pub(crate) session: OwnSession,
    pub(crate) key: SessionKey,
    /// The session's, of whose Services it wants to hear.
    pub(crate) namespace: String,
}

/// A connection that has not been authenticated yet.
pub(crate) struct Greeting {
    pipe: Pipe,
    nonce: Bytes,
}

/// A connection in use: the session counts as present while it lives.
pub(crate) struct Connection {
    pub(super) pipe: Pipe,
    pub(super) versions: Versions,
    pub(super) cluster: ClusterInfo,
    pub(super) cluster_changes: Streaming<v1::WatchClusterResponse>,
    pub(super) dials: Streaming<v1::WatchDialsResponse>,
}

impl Greeting {
    /// Opens a connection and asks for its nonce.
    pub(crate) async fn open(transports: &Transports) -> Result<Self, Failure> {
        transports.open(Self::receive).await
    }

    /// Opens a connection besides one that is up, and asks for its nonce.
    pub(super) async fn open_further(transports: &Transports) -> Result<Self, Failure> {
        let (stream, transport) = transports.open_further().await?;
        Self::receive(stream, transport).await
    }

    async fn receive(stream: Box<dyn ByteStream>, transport: Transport) -> Result<Self, Failure> {
        let pipe = Pipe::new(stream, transport).await?;
        let challenge = call(pipe.client().challenge(v1::ChallengeRequest {})).await?;
        Ok(Self {
            pipe,
            nonce: challenge.nonce,
        })
    }

    /// Proves who we are, and starts the streams that last as long as the
    /// connection.
    pub(crate) async fn authenticate(
        self,
        credentials: &Credentials,
    ) -> Result<Connection, Failure> {
        let Self { pipe, nonce } = self;
        let answer = sign_in(pipe.client(), &nonce, credentials).await?;
        let versions = Versions {
            manager: answer.version,
            chart: answer.chart_version,
        };
        check(&versions)?;
        let (mut cluster_client, mut dials_client) = (pipe.client(), pipe.client());
        let (mut cluster_changes, dials) = tokio::try_join!(
            call(cluster_client.watch_cluster(v1::WatchClusterRequest {
                namespace: credentials.namespace.clone(),
            })),
            call(dials_client.watch_dials(v1::WatchDialsRequest {})),
        )?;
        let first = tokio::time::timeout(CALL_DEADLINE, cluster_changes.message())
            .await
            .map_err(|_| silent())?
            .map_err(|status| explain(&status))?
            .ok_or_else(silent)?;
        Ok(Connection {
            pipe,
            versions,
            cluster: first.into(),
            cluster_changes,
            dials,
        })
    }

    /// Proves who we are, on a connection that only carries flows.
    pub(super) async fn join(self, credentials: &Credentials) -> Result<Pipe, Failure> {
        sign_in(self.pipe.client(), &self.nonce, credentials).await?;
        Ok(self.pipe)
    }
}

impl Connection {
    pub(crate) fn cluster(&self) -> &ClusterInfo {
        &self.cluster
    }
}

async fn sign_in(
    mut client: Client,
    nonce: &[u8],
    credentials: &Credentials,
) -> Result<v1::AuthenticateResponse, Failure> {
    let Credentials { session, key, .. } = credentials;
    let request = v1::AuthenticateRequest {
        session: session.name.clone(),
        uid: session.uid.clone(),
        signature: key.sign(&session.uid, nonce).into(),
    };
    call(client.authenticate(request)).await
}

fn check(versions: &Versions) -> Result<(), Failure> {
    let chart = (!versions.chart.is_empty()).then_some(("chart", &versions.chart));
    for (what, theirs) in [Some(("traffic manager", &versions.manager)), chart]
        .into_iter()
        .flatten()
    {
        if !version::compatible(version::VERSION, theirs) {
            return Err(Failure::new(
                Reason::VersionMismatch,
                format!(
                    "this is kvpn {}, but the cluster's {what} is of version {theirs}",
                    version::VERSION
                ),
                format!(
                    "install kvpn {theirs} here, or have an administrator run `helm upgrade` with the chart of version {}",
                    version::VERSION
                ),
            ));
        }
    }
    Ok(())
}

async fn call<T>(
    request: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_DEADLINE, request).await {
        Ok(answer) => answer
            .map(tonic::Response::into_inner)
            .map_err(|status| explain(&status)),
        Err(_) => Err(silent()),
    }
}

pub(super) fn silent() -> Failure {
    Failure::new(
        Reason::ManagerUnreachable,
        "the traffic manager does not answer in time",
        "look at the traffic manager's log",
    )
}

/// Reads the failure in a status; one without is told by its code.
pub(super) fn explain(status: &Status) -> Failure {
    if let Ok(failure) = serde_json::from_slice(status.details()) {
        return failure;
    }
    if status.code() == Code::Unauthenticated {
        return Failure::new(
            Reason::Unauthenticated,
            format!(
                "the traffic manager refuses the session: {}",
                status.message()
            ),
            "connect again with `kvpn connect`",
        );
    }
    Failure::new(
        Reason::ManagerUnreachable,
        format!("the traffic manager failed: {}", status.message()),
        "look at the traffic manager's log",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(manager: &str, chart: &str) -> Versions {
        Versions {
            manager: manager.into(),
            chart: chart.into(),
        }
    }

    #[test]
    fn a_foreign_manager_is_named_with_both_versions() {
        let failure = check(&versions("7.3.1", "")).unwrap_err();
        assert_eq!(failure.reason, Reason::VersionMismatch);
        assert!(failure.message.contains(version::VERSION));
        assert!(failure.message.contains("7.3.1"));
    }

    #[test]
    fn a_foreign_chart_is_a_mismatch_too() {
        let failure = check(&versions(version::VERSION, "7.3.1")).unwrap_err();
        assert!(failure.message.contains("chart"), "{}", failure.message);
    }

    #[test]
    fn an_unknown_chart_version_fits() {
        assert_eq!(check(&versions(version::VERSION, "")), Ok(()));
    }

    #[test]
    fn a_status_without_details_is_told_by_its_code() {
        assert_eq!(
            explain(&Status::unauthenticated("no")).reason,
            Reason::Unauthenticated
        );
        assert_eq!(
            explain(&Status::unavailable("no")).reason,
            Reason::ManagerUnreachable
        );
    }

    #[test]
    fn a_failure_in_a_status_survives() {
        let failure = Failure::new(Reason::SessionRevoked, "gone", "connect again");
        assert_eq!(explain(&Status::from(failure.clone())), failure);
    }
}
