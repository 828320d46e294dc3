//! The life of a session: connect, serve, and leave the host as it was.

use std::io::{self, stderr};
use std::time::Duration;

use kvpn_proto::v1::session_server::SessionServer;
use kvpn_proto::{Failure, Reason, names, v1};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use super::api::{self, Api, QuitRequest};
use super::args::SessionArgs;
use super::connect::{Connected, Host, Registered, connect};
use super::engagements::Engagements;
use super::events;
use super::socket::Place;
use crate::fault::point;

/// How long the cluster may take to forget the session.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(3);

/// How long the last answers may take to reach the command line.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Why a connected session ends.
enum End {
    /// Told to by the command line, which waits for the answer.
    Quit(QuitRequest),
    Signal,
    /// The root daemon is gone.
    LeaseLost,
    /// The session cannot go on.
    Failed(Failure),
}

/// Connects and stays until the session ends; the host is then as it was.
pub(crate) async fn run(args: SessionArgs) -> Result<(), Failure> {
    start_log();
    let outcome = live(&args).await;
    if let Err(failure) = &outcome {
        error!(reason = %failure.reason, "{}", failure.message);
        events::failed(failure.clone());
    }
    outcome
}

fn start_log() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,hickory_server=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
}

async fn live(args: &SessionArgs) -> Result<(), Failure> {
    // Fails only when a provider is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut signals = Signals::new().map_err(Failure::internal)?;
    names::check_connection(&args.name)?;
    let place = tokio::select! {
        place = Place::take(args.socket()) => place?,
        () = signals.recv() => return Err(interrupted()),
    };

    let registered = Registered::default();
    let (quit_tx, mut quit_rx) = mpsc::channel(1);
    let connected = tokio::select! {
        connected = connect(args, &registered, quit_tx) => connected,
        () = signals.recv() => Err(interrupted()),
    };
    let outcome = match connected {
        Ok(connected) => {
            let extra = args.connections.saturating_sub(1);
            stay(
                connected,
                extra,
                &place,
                &mut signals,
                &mut quit_rx,
                &registered,
            )
            .await
        }
        Err(failure) => {
            forget(None, &registered).await;
            Err(failure)
        }
    };
    drop(place);
    outcome
}

/// Serves the command line until the session ends. Opens so many connections
/// besides the first.
async fn stay(
    connected: Connected,
    extra_count: usize,
    place: &Place,
    signals: &mut Signals,
    quit: &mut mpsc::Receiver<QuitRequest>,
    registered: &Registered,
) -> Result<(), Failure> {
    let Connected {
        api,
        mut host,
        manager,
        extra,
        engagements,
        mut supervisor,
        mut follower,
    } = connected;
    let about = (
        api.about.context.clone(),
        api.about.namespace.clone(),
        api.cluster.server.clone(),
    );
    let served = place.listen().map(|listener| Serving::start(api, listener));
    let server = match served {
        Ok(server) => server,
        Err(failure) => {
            part(host, &engagements, registered).await;
            return Err(failure);
        }
    };
    point("socket served");
    if let Err(error) = events::ready(&about.0, &about.1, &about.2) {
        warn!(%error, "Nobody waits for this session any more");
        part(host, &engagements, registered).await;
        return Err(interrupted());
    }
    info!(
        context = about.0,
        namespace = about.1,
        server = about.2,
        "Connected"
    );
    let extra = extra.open(extra_count);

    let mut changes = manager.cluster();
    // The lease may be older than the latest change.
    changes.mark_changed();
    let end = loop {
        tokio::select! {
            request = quit.recv() => match request {
                Some(answer) => break End::Quit(answer),
                None => break End::Failed(Failure::internal("the session's socket is not served any more")),
            },
            () = signals.recv() => break End::Signal,
            () = host.lease.closed() => break End::LeaseLost,
            Some(call) = host.mounts.recv() => call.serve(&mut host.lease).await,
            failure = host.datapath.ended() => break End::Failed(failure),
            ended = &mut supervisor => {
                break End::Failed(ended.unwrap_or_else(Failure::internal));
            }
            Ok(()) = changes.changed() => {
                let cluster = changes.borrow_and_update().clone();
                follower.follow(&cluster, &mut host.lease).await;
            }
            () = follower.due() => {
                let cluster = changes.borrow().clone();
                follower.follow(&cluster, &mut host.lease).await;
            }
        }
    };
    match &end {
        End::Quit(_) => info!("Session ends as asked"),
        End::Signal => info!("Session ends by a signal"),
        End::LeaseLost => error!("Session ends because the root daemon is gone"),
        End::Failed(failure) => {
            error!(reason = %failure.reason, "Session ends: {}", failure.message);
        }
    }
    // From here on `kvpn connect` starts another session, which waits for this
    // one to be gone, instead of finding one that is about to go.
    server.close();
    drop(extra);
    point("socket closed");
    let ended = part(host, &engagements, registered).await;
    while let Ok(answer) = quit.try_recv() {
        answer_quit(answer, ended.clone());
    }
    let outcome = match end {
        End::Quit(answer) => {
            answer_quit(answer, ended);
            Ok(())
        }
        End::Signal => Ok(()),
        End::LeaseLost => Err(Failure::new(
            Reason::DaemonNotRunning,
            "the root daemon is gone",
            "start it again, then connect again",
        )),
        End::Failed(failure) => Err(failure),
    };
    server.finish().await;
    outcome
}

fn answer_quit(
    answer: oneshot::Sender<Vec<v1::EngagementStatus>>,
    ended: Vec<v1::EngagementStatus>,
) {
    if answer.send(ended).is_err() {
        info!("Whoever asked to quit is gone");
    }
}

/// Undoes everything: in the cluster and on the host, at the same time.
async fn part(
    host: Host,
    engagements: &Engagements,
    registered: &Registered,
) -> Vec<v1::EngagementStatus> {
    let Host {
        lease,
        datapath,
        name_server,
        mounts,
    } = host;
    // Whoever still asks is told that all ends.
    drop(mounts);
    let restore = async {
        // The next lease needs the addresses of these sockets.
        name_server.stop().await;
        point("name server stopped");
        drop(datapath);
        point("data path stopped");
        lease.release().await;
        point("lease released");
    };
    let (ended, ()) = tokio::join!(forget(Some(engagements), registered), restore);
    ended
}

/// Takes the session out of the cluster. What is left there when that fails,
/// the traffic manager collects.
async fn forget(
    engagements: Option<&Engagements>,
    registered: &Registered,
) -> Vec<v1::EngagementStatus> {
    let farewell = async {
        let ended = match engagements {
            Some(engagements) => engagements.leave("", None).await.unwrap_or_default(),
            None => Vec::new(),
        };
        if let Some(session) = registered.get()
            && let Err(error) = session.delete().await
        {
            warn!(%error, "Session could not be deleted");
        }
        point("Session deleted");
        ended
    };
    let known = engagements.map(Engagements::statuses).unwrap_or_default();
    match tokio::time::timeout(FAREWELL_DEADLINE, farewell).await {
        Ok(ended) => ended,
        Err(_) => {
            warn!("The cluster does not answer; the traffic manager will collect the session");
            known
        }
    }
}

fn interrupted() -> Failure {
    Failure::new(
        Reason::NotConnected,
        "connecting was interrupted",
        "run `kvpn connect` again",
    )
}

/// The unix socket's server.
struct Serving {
    end: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Serving {
    fn start(api: Api, listener: tokio::net::UnixListener) -> Self {
        let end = CancellationToken::new();
        let ended = end.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            let serving = Server::builder()
                .add_service(SessionServer::new(api))
                .serve_with_incoming_shutdown(api::connections(listener), ended);
            if let Err(error) = serving.await {
                error!(%error, "The session's socket is not served any more");
            }
        });
        Self {
            end,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// Takes no more connections. Answers that are under way still arrive.
    fn close(&self) {
        self.end.cancel();
    }

    /// Waits until the last answers have arrived.
    async fn finish(self) {
        self.close();
        if tokio::time::timeout(ANSWER_DEADLINE, self.task)
            .await
            .is_err()
        {
            info!("A client of the session's socket does not hang up");
        }
    }
}

/// The signals that end a session. A terminal that is closed does not.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    _hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
