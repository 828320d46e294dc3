//! The user's running session, over its unix socket.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kvpn_proto::v1::session_client::SessionClient;
use kvpn_proto::v1::{
    DiagnoseRequest, DiagnoseResponse, FlowsRequest, FlowsResponse, GetEnvironmentRequest,
    GetEnvironmentResponse, InterceptRequest, InterceptResponse, JudgeRequest, JudgeResponse,
    LeaveRequest, LeaveResponse, ListRequest, ListResponse, LogRequest, LogResponse, QuitRequest,
    QuitResponse, StatusRequest, StatusResponse,
};
use kvpn_proto::{Failure, Reason, names};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status, Streaming};

use crate::args::Flags;
use crate::kubeconfig::Selection;

const DIAL_DEADLINE: Duration = Duration::from_secs(2);
const STATUS_DEADLINE: Duration = Duration::from_secs(5);
/// The session asks the API server meanwhile.
const CLUSTER_DEADLINE: Duration = Duration::from_secs(30);
const QUIT_DEADLINE: Duration = Duration::from_secs(10);
/// How often to look whether a quitting session is gone.
const GONE_INTERVAL: Duration = Duration::from_millis(10);
/// A namespace with very many workloads makes a long list.
const MAX_MESSAGE: usize = 64 << 20;

/// Where the session's socket is, and its log beside it.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The connection's name.
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
}

impl Place {
    /// The place for a connection of the user who runs this process.
    pub(crate) fn of(name: &str) -> Self {
        let socket = names::session_socket(&sessions_dir(), name);
        let log = socket.with_extension("log");
        Self {
            name: name.into(),
            socket,
            log,
        }
    }

    /// Those where there may be a session, by name.
    fn all() -> Vec<Self> {
        let files = sessions_dir().read_dir().into_iter().flatten().flatten();
        let file_names = files.filter_map(|file| file.file_name().into_string().ok());
        let mut connections: Vec<String> = file_names
            .filter_map(|file| names::connection_of_socket(&file).map(str::to_owned))
            .collect();
        connections.sort();
        connections.iter().map(|name| Self::of(name)).collect()
    }
}

fn sessions_dir() -> PathBuf {
    names::sessions_dir(nix::unistd::getuid().as_raw())
}

/// A session that accepted a connection; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    client: SessionClient<Channel>,
    place: Place,
    pid: Option<i32>,
}

/// Sessions that were looked for.
#[derive(Debug, Default)]
pub(crate) struct Meant {
    pub(crate) sessions: Vec<Session>,
    /// Why others that may be meant cannot be reached, or nothing can be meant.
    pub(crate) failures: Vec<Failure>,
    /// Why one of those left out is not meant.
    pub(crate) elsewhere: Option<Failure>,
}

impl Meant {
    /// What went wrong: nothing when all that are meant were found.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let elsewhere = self.elsewhere.as_ref();
        let elsewhere = elsewhere.filter(|_| self.sessions.is_empty());
        self.failures.first().or(elsewhere).cloned()
    }
}

impl Session {
    /// Finds the user's session for the connection of this name; `None` when there
    /// is none.
    pub(crate) async fn of(name: &str) -> Result<Option<Self>, Failure> {
        Self::at(Place::of(name)).await
    }

    /// Finds those that the flags may mean, by the names of their connections, and in
    /// the cluster that they name.
    pub(crate) async fn meant(flags: &Flags) -> Meant {
        let mut meant = Meant::default();
        let places = match &flags.name {
            Some(name) => match names::check_connection(name) {
                Ok(()) => vec![Place::of(name)],
                Err(failure) => {
                    meant.failures.push(failure);
                    Vec::new()
                }
            },
            None => Place::all(),
        };
        for place in places {
            match Self::at(place).await {
                Ok(found) => meant.sessions.extend(found),
                Err(failure) => meant.failures.push(failure),
            }
        }
        // Without such a flag even a session that cannot tell its status is meant.
        if flags.names_a_cluster() {
            for session in std::mem::take(&mut meant.sessions) {
                let status = session.status().await;
                match status.map(|status| check_selected(flags, &status)) {
                    Ok(Ok(())) => meant.sessions.push(session),
                    Ok(Err(elsewhere)) => meant.elsewhere = Some(elsewhere),
                    Err(failure) => meant.failures.push(failure),
                }
            }
        }
        meant
    }

    /// The connection's name.
    pub(crate) fn name(&self) -> &str {
        &self.place.name
    }

    async fn at(place: Place) -> Result<Option<Self>, Failure> {
        let Some(stream) = dial(&place.socket).await? else {
            return Ok(None);
        };
        let pid = check_peer(&stream, &place.socket)?;
        let client = client(stream).await.map_err(Failure::internal)?;
        Ok(Some(Self { client, place, pid }))
    }

    /// Finds the session that the flags select; `None` when there is none.
    ///
    /// # Errors
    /// `Usage` when there are several to choose from; why one cannot be reached that may
    /// be meant as well, unless the flags name the cluster of the one that is found.
    pub(crate) async fn find(flags: &Flags) -> Result<Option<Self>, Failure> {
        let mut meant = Self::meant(flags).await;
        if meant.sessions.len() > 1 {
            return Err(several(&meant.sessions));
        }
        match (meant.sessions.pop(), meant.failure()) {
            (Some(found), None) => Ok(Some(found)),
            // In the cluster that is named.
            (Some(found), Some(_)) if flags.names_a_cluster() => Ok(Some(found)),
            (Some(found), Some(mut failure)) => {
                let name = found.name();
                failure.next_step = format!("{}; `--name {name}` goes on", failure.next_step);
                Err(failure)
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(None),
        }
    }

    /// Finds the session that the flags select.
    pub(crate) async fn require(flags: &Flags) -> Result<Self, Failure> {
        Self::find(flags).await?.ok_or_else(not_connected)
    }

    pub(crate) async fn status(&self) -> Result<StatusResponse, Failure> {
        let mut client = self.client.clone();
        self.call(STATUS_DEADLINE, client.status(StatusRequest {}))
            .await
    }

    pub(crate) async fn list(&self, request: ListRequest) -> Result<ListResponse, Failure> {
        let mut client = self.client.clone();
        self.call(CLUSTER_DEADLINE, client.list(request)).await
    }

    /// Starts an intercept, which must begin to answer in time; the stream
    /// tells how it goes. Dropping the stream before it says active cancels the
    /// intercept; later it ends one that ends with its call.
    pub(crate) async fn intercept(
        &self,
        request: InterceptRequest,
        deadline: Duration,
    ) -> Result<Streaming<InterceptResponse>, Failure> {
        let mut client = self.client.clone();
        self.call(deadline, client.intercept(request)).await
    }

    pub(crate) async fn leave(&self, request: LeaveRequest) -> Result<LeaveResponse, Failure> {
        let mut client = self.client.clone();
        self.call(CLUSTER_DEADLINE, client.leave(request)).await
    }

    /// Reads the environment that an engagement may read.
    pub(crate) async fn environment(
        &self,
        request: GetEnvironmentRequest,
    ) -> Result<GetEnvironmentResponse, Failure> {
        let mut client = self.client.clone();
        self.call(CLUSTER_DEADLINE, client.get_environment(request))
            .await
    }

    pub(crate) async fn flows(&self, request: FlowsRequest) -> Result<FlowsResponse, Failure> {
        let mut client = self.client.clone();
        self.call(STATUS_DEADLINE, client.flows(request)).await
    }

    /// What becomes of requests. The stream ends when all was told that was asked for.
    pub(crate) async fn log(&self, request: LogRequest) -> Result<Streaming<LogResponse>, Failure> {
        let mut client = self.client.clone();
        self.call(STATUS_DEADLINE, client.log(request)).await
    }

    pub(crate) async fn judge(&self, request: JudgeRequest) -> Result<JudgeResponse, Failure> {
        let mut client = self.client.clone();
        self.call(CLUSTER_DEADLINE, client.judge(request)).await
    }

    pub(crate) async fn diagnose(&self) -> Result<DiagnoseResponse, Failure> {
        let mut client = self.client.clone();
        self.call(CLUSTER_DEADLINE, client.diagnose(DiagnoseRequest {}))
            .await
    }

    /// Ends the session and waits until it is gone.
    pub(crate) async fn quit(self) -> Result<QuitResponse, Failure> {
        timeout(QUIT_DEADLINE, async {
            let mut client = self.client.clone();
            let response = self
                .call(QUIT_DEADLINE, client.quit(QuitRequest {}))
                .await?;
            while dial(&self.place.socket).await?.is_some() {
                sleep(GONE_INTERVAL).await;
            }
            Ok(response)
        })
        .await
        .unwrap_or_else(|_| Err(self.silent(QUIT_DEADLINE)))
    }

    /// Whether it has ended; another one may have taken its place since.
    pub(crate) async fn is_gone(&self) -> bool {
        match Self::at(self.place.clone()).await {
            Ok(found) => found.is_none_or(|found| found.pid != self.pid),
            Err(_) => false,
        }
    }

    /// Turns what went wrong in a call into what the user is told.
    pub(crate) fn failure(&self, status: Status) -> Failure {
        if !status.details().is_empty() {
            return status.into();
        }
        if status.code() == Code::Unimplemented {
            return Failure::new(
                Reason::VersionMismatch,
                "the running session is of another version of kvpn",
                "run `kvpn quit`, then `kvpn connect`",
            );
        }
        Failure::new(
            Reason::Internal,
            format!("the session broke off: {}", status.message()),
            format!(
                "see {}, then run `kvpn connect` again",
                self.place.log.display()
            ),
        )
    }

    async fn call<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        match timeout(deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(status)),
            Err(_) => Err(self.silent(deadline)),
        }
    }

    /// The session did not do what it should in time.
    fn silent(&self, deadline: Duration) -> Failure {
        let log = self.place.log.display();
        Failure::new(
            Reason::TimedOut,
            format!("the session did not answer within {} s", deadline.as_secs()),
            match self.pid {
                Some(pid) => format!("see {log}; `kill {pid}` ends the session"),
                None => format!("see {log}"),
            },
        )
    }
}

fn several(sessions: &[Session]) -> Failure {
    let names: Vec<&str> = sessions.iter().map(Session::name).collect();
    Failure::new(
        Reason::Usage,
        format!("there are several connections: {}", names.join(", ")),
        "choose one of them with `--name NAME`",
    )
}

pub(crate) fn not_connected() -> Failure {
    Failure::new(
        Reason::NotConnected,
        "not connected to a cluster",
        "run `kvpn connect` first",
    )
}

/// Refuses a session that is in another cluster than the flags name.
pub(crate) fn check_selected(flags: &Flags, status: &StatusResponse) -> Result<(), Failure> {
    let selection = Selection::read(flags);
    if selection.matches(status) {
        return Ok(());
    }
    let wanted = match selection.context {
        Some(context) if context != status.context => format!(", not to context {context}"),
        Some(_) | None => ", not to the kubeconfig's cluster of that name".into(),
    };
    Err(Failure::new(
        Reason::AlreadyConnected,
        format!(
            "connected to context {} ({}){wanted}",
            status.context, status.server
        ),
        "run `kvpn quit` to end that connection first",
    ))
}

/// Connects to a socket; `None` when nobody listens on it.
async fn dial(socket: &Path) -> Result<Option<UnixStream>, Failure> {
    match timeout(DIAL_DEADLINE, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => Ok(Some(stream)),
        Ok(Err(error)) if is_absent(&error) => Ok(None),
        Ok(Err(error)) => Err(Failure::new(
            Reason::HostRefused,
            format!("cannot open {}: {error}", socket.display()),
            "remove it, or set XDG_RUNTIME_DIR to a directory of your own",
        )),
        Err(_) => Err(Failure::new(
            Reason::TimedOut,
            format!("nobody answers on {}", socket.display()),
            "end the `kvpnd session` process and run `kvpn connect` again",
        )),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::ConnectionRefused
    )
}

/// Trusts nobody's session but the user's own (and root's); tells its pid.
fn check_peer(stream: &UnixStream, socket: &Path) -> Result<Option<i32>, Failure> {
    let peer = stream.peer_cred().map_err(Failure::internal)?;
    let trusted = [0, nix::unistd::getuid().as_raw()];
    if trusted.contains(&peer.uid()) {
        return Ok(peer.pid());
    }
    Err(Failure::new(
        Reason::HostRefused,
        format!(
            "{} belongs to a session of another user (uid {})",
            socket.display(),
            peer.uid()
        ),
        "set XDG_RUNTIME_DIR to a directory of your own",
    ))
}

/// Speaks gRPC over the one stream; when that breaks the session is gone.
async fn client(stream: UnixStream) -> Result<SessionClient<Channel>, tonic::transport::Error> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().map(TokioIo::new);
        async { stream.ok_or_else(|| io::Error::from(ErrorKind::NotConnected)) }
    });
    let channel = Endpoint::from_static("http://session.kvpn")
        .connect_with_connector(connector)
        .await?;
    Ok(SessionClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}
