//! The user's sessions, as far as they answer.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use kvpn_proto::names;
use kvpn_proto::v1::session_client::SessionClient;
use kvpn_proto::v1::{ExplainRequest, ExplainResponse, Link, StatusRequest, StatusResponse};
use nix::unistd::Uid;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};

/// How long a session may take to connect and to say who it is.
const DEADLINE: Duration = Duration::from_secs(3);

/// How long it may take to explain; it asks the cluster.
const EXPLAIN_DEADLINE: Duration = Duration::from_secs(12);

/// Those that there are.
pub(super) struct Sessions(Vec<Session>);

pub(super) struct Session {
    client: SessionClient<Channel>,
    status: StatusResponse,
}

impl Sessions {
    pub(super) async fn find() -> Self {
        let mut sessions = Vec::new();
        for socket in sockets() {
            if let Ok(Some(session)) = timeout(DEADLINE, Session::at(&socket)).await {
                sessions.push(session);
            }
        }
        Self(sessions)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.0.iter()
    }

    /// The one that has a device.
    pub(super) fn of_device(&self, device: &str) -> Option<&Session> {
        self.iter().find(|session| session.status.device == device)
    }

    /// One whose cluster has an address, whatever is routed.
    pub(super) fn of_address(&self, address: IpAddr) -> Option<&Session> {
        self.iter().find(|session| session.has(address))
    }
}

impl Session {
    async fn at(socket: &Path) -> Option<Self> {
        let socket = socket.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { dial(&socket).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://session");
        let channel = endpoint.connect_with_connector(connector).await.ok()?;
        let mut client = SessionClient::new(channel);
        let status = client.status(StatusRequest {}).await.ok()?.into_inner();
        Some(Self { client, status })
    }

    /// What it makes of a name and of addresses, if it answers in time.
    pub(super) async fn explain(
        &self,
        name: &str,
        addresses: &[IpAddr],
    ) -> Option<ExplainResponse> {
        let request = ExplainRequest {
            name: name.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
        };
        let mut client = self.client.clone();
        let explained = timeout(EXPLAIN_DEADLINE, client.explain(request)).await;
        Some(explained.ok()?.ok()?.into_inner())
    }

    pub(super) fn context(&self) -> &str {
        &self.status.context
    }

    pub(super) fn is_up(&self) -> bool {
        self.status.link() == Link::Up
    }

    fn has(&self, address: IpAddr) -> bool {
        let status = &self.status;
        let subnets = status.pod_subnets.iter().chain(&status.service_subnets);
        let mut subnets = subnets.filter_map(|text| text.parse::<IpNet>().ok());
        subnets.any(|subnet| subnet.contains(&address))
    }
}

/// Trusts nobody's session but the user's own and root's.
async fn dial(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket).await?;
    let peer = stream.peer_cred()?.uid();
    if peer == 0 || peer == Uid::current().as_raw() {
        Ok(stream)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

fn sockets() -> Vec<PathBuf> {
    let dir = names::sessions_dir(Uid::current().as_raw());
    let files = dir.read_dir().into_iter().flatten().flatten();
    let is_session = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(names::connection_of_socket).is_some()
    };
    let mut sockets: Vec<PathBuf> = files.map(|it| it.path()).filter(is_session).collect();
    sockets.sort();
    sockets
}
