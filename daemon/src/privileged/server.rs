//! The daemon's unix socket: one conversation per connection, and a lease that
//! lasts as long as its connection.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::time::Duration;

use kvpn_proto::{Failure, Reason, version};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, info, warn};

use super::access::{Access, Peer};
use super::conversation::Conversation;
use super::holders::Holders;
use super::host::Host;
use super::run_dir;
use crate::config::ServeArgs;

/// How long the last leases may take to be undone when the daemon ends, and
/// how long another daemon's guard may take before this one starts.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often that is tried again which could not be undone, as on a full disk.
const UNDO_INTERVAL: Duration = Duration::from_secs(5);

/// The most connections at once: of those who may use the daemon, and of all
/// others. Nobody shall take the file descriptors that undoing needs.
const MAX_CONNECTIONS: usize = 64;
const MAX_STRANGERS: usize = 16;

/// What all conversations share.
pub(super) struct Shared {
    pub(super) access: Access,
    pub(super) host: Host,
    pub(super) holders: Holders,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Shared {
    /// Takes one of the connections that the peer may have.
    fn admit(&self, peer: &Peer) -> Option<OwnedSemaphorePermit> {
        let seats = if self.access.check(peer).is_ok() {
            &self.connections
        } else {
            &self.strangers
        };
        seats.clone().try_acquire_owned().ok()
    }
}

/// Serves until SIGTERM, SIGINT or SIGHUP, then undoes everything.
pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let shared = Arc::new(Shared {
        access: Access::new(&args)?,
        host: Host::new(path(&args.run_dir)?, path(&args.resolv_conf)?),
        holders: Holders::default(),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
    });
    let socket = path(&args.socket())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::internal)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Failure::internal)?;

    refuse_second(&socket).await?;
    let run_dir = shared.host.run_dir();
    run_dir::create(run_dir).map_err(|error| unusable(run_dir, &error))?;
    let _lock = run_dir::lock(run_dir, PATIENCE).await.map_err(|error| {
        if error.kind() == io::ErrorKind::WouldBlock {
            running_already(run_dir)
        } else {
            unusable(run_dir, &error)
        }
    })?;
    shared.host.recover().await?;
    let listener = listen(&socket).map_err(|error| unusable(&socket, &error))?;
    info!(socket = %socket.display(), version = version::VERSION, "kvpnd is ready");

    let keeper = shared.clone();
    let _keeper = AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::join!(keeper.host.keep_changed(), keeper.host.keep_told());
    }));
    let tracker = TaskTracker::new();
    let end = CancellationToken::new();
    let mut undo = interval(UNDO_INTERVAL);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => start(&shared, &tracker, &end, stream),
                Err(error) => {
                    warn!(%error, "A connection cannot be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = undo.tick() => shared.host.undo_leftover().await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => break,
        }
    }
    info!("kvpnd is told to end");
    drop(listener);
    end.cancel();
    tracker.close();
    if timeout(PATIENCE, tracker.wait()).await.is_err() {
        warn!("A lease takes too long to be undone; its guard goes on");
    }
    shared.host.undo_leftover().await;
    if let Err(error) = fs::remove_file(&socket) {
        debug!(%error, "The socket cannot be removed");
    }
    Ok(())
}

fn start(shared: &Arc<Shared>, tracker: &TaskTracker, end: &CancellationToken, stream: UnixStream) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            warn!(%error, "The peer's credentials cannot be read");
            return;
        }
    };
    let Some(seat) = shared.admit(&peer) else {
        debug!(user = peer.user(), "Too many connections; closed this one");
        return;
    };
    let conversation = Conversation::new(shared.clone(), peer, stream);
    let end = end.clone();
    tracker.spawn(async move {
        conversation.run(&end).await;
        drop(seat);
    });
}

/// Opens the socket to everybody; who may do what is decided by credentials,
/// so that a refusal can say why. A socket that nobody serves is replaced.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    let mut new = socket.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o666))?;
    fs::rename(&new, socket)?;
    Ok(listener)
}

async fn refuse_second(socket: &Path) -> Result<(), Failure> {
    match timeout(PATIENCE, UnixStream::connect(socket)).await {
        Ok(Err(_)) => Ok(()),
        Ok(Ok(_)) | Err(_) => Err(running_already(socket)),
    }
}

fn running_already(at: &Path) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("another kvpnd runs at {}", at.display()),
        "use that one, or end it first",
    )
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("{} cannot be used: {error}", path.display()),
        "run kvpnd as root, or name another place with --run-dir or --socket",
    )
}

/// Makes a path absolute, since the guard leaves this directory.
fn path(path: &Path) -> Result<PathBuf, Failure> {
    absolute(path).map_err(|error| unusable(path, &error))
}
