//! The daemon's unix socket: one conversation per connection, and a lease that
//! lasts as long as its connection.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf, absolute};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvpn_proto::{Failure, Reason, v1, version};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::access::Access;
use super::conversation::Conversation;
use super::host::Host;
use super::run_dir;
use crate::config::ServeArgs;

/// How long the last leases may take to be undone when the daemon ends, and
/// how long another daemon's guard may take before this one starts.
const PATIENCE: Duration = Duration::from_secs(10);

/// What all conversations share.
pub(super) struct Shared {
    pub(super) access: Access,
    pub(super) host: Host,
    /// Whoever has the permit may hold a lease.
    pub(super) slot: Arc<Semaphore>,
    holder: Mutex<Option<v1::Holder>>,
}

impl Shared {
    /// Who holds the lease.
    pub(super) fn holder(&self) -> Option<v1::Holder> {
        self.holder
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn set_holder(&self, holder: Option<v1::Holder>) {
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = holder;
    }
}

/// Serves until SIGTERM, SIGINT or SIGHUP, then undoes everything.
pub(super) async fn run(args: ServeArgs) -> Result<(), Failure> {
    let shared = Arc::new(Shared {
        access: Access::new(&args)?,
        host: Host {
            run_dir: path(&args.run_dir)?,
            resolv_conf: path(&args.resolv_conf)?,
        },
        slot: Arc::new(Semaphore::new(1)),
        holder: Mutex::new(None),
    });
    let socket = path(&args.socket())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::internal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::internal)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Failure::internal)?;

    refuse_second(&socket).await?;
    let run_dir = &shared.host.run_dir;
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

    let tracker = TaskTracker::new();
    let end = CancellationToken::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => start(&shared, &tracker, &end, stream),
                Err(error) => {
                    warn!(%error, "A connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
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
    if let Err(error) = fs::remove_file(&socket) {
        debug!(%error, "The socket cannot be removed");
    }
    Ok(())
}

fn start(shared: &Arc<Shared>, tracker: &TaskTracker, end: &CancellationToken, stream: UnixStream) {
    match Conversation::new(shared.clone(), stream) {
        Ok(conversation) => {
            let end = end.clone();
            tracker.spawn(async move { conversation.run(&end).await });
        }
        Err(error) => warn!(%error, "The peer's credentials cannot be read"),
    }
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
