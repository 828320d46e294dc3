//! The unix socket of this user's session: one session at a time, and nobody
//! else's hands on it.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use kvpn_proto::v1::session_client::SessionClient;
use kvpn_proto::{Failure, Reason, v1};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Endpoint, Uri};

/// How long another session may take to say who it is.
const QUESTION_DEADLINE: Duration = Duration::from_secs(1);

/// How long a session that is starting or ending may take to do so.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(8);

/// How often to look whether it has; flock(2) cannot be waited for without
/// blocking a thread.
const HANDOVER_INTERVAL: Duration = Duration::from_millis(20);

/// The right to be this user's session. Held from the start, so that two that
/// start at once do not both go on.
pub(crate) struct Place {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Place {
    /// Takes the place, unless another session has it. Waits for one that is
    /// about to leave it.
    pub(crate) async fn take(path: PathBuf) -> Result<Self, Failure> {
        Self::take_within(path, HANDOVER_DEADLINE).await
    }

    async fn take_within(path: PathBuf, patience: Duration) -> Result<Self, Failure> {
        let unusable = |error: io::Error| {
            Failure::new(
                Reason::Usage,
                format!(
                    "the session's socket cannot be at {}: {error}",
                    path.display()
                ),
                "set XDG_RUNTIME_DIR to a directory of your own, or name another place with --socket",
            )
        };
        let directory = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        make_private(directory).map_err(unusable)?;
        let lock_path = path.with_extension("lock");
        let mut lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(unusable)?;
        let deadline = Instant::now() + patience;
        loop {
            match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    note_process(&lock).map_err(unusable)?;
                    return Ok(Self { path, _lock: lock });
                }
                Err((file, Errno::EWOULDBLOCK)) => lock = file,
                Err((_, error)) => return Err(unusable(error.into())),
            }
            if let Ok(Some(status)) = timeout(QUESTION_DEADLINE, ask(&path)).await {
                return Err(taken(&status));
            }
            if Instant::now() >= deadline {
                return Err(busy(&lock_path));
            }
            sleep(HANDOVER_INTERVAL).await;
        }
    }

    /// Listens; a socket that a dead session left is replaced.
    pub(crate) fn listen(&self) -> Result<UnixListener, Failure> {
        let listening = || {
            match fs::remove_file(&self.path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let listener = UnixListener::bind(&self.path)?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        listening().map_err(|error| {
            Failure::new(
                Reason::HostRefused,
                format!("cannot listen on {}: {error}", self.path.display()),
                "make room on that file system, or name another place with --socket",
            )
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The lock file stays: removing it would let two sessions hold locks
        // on two files of that name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes sure that the directory is ours and that nobody else can put anything
/// in its place.
fn make_private(directory: &Path) -> io::Result<()> {
    let made = DirBuilder::new().mode(0o700).create(directory);
    match made {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let metadata = fs::symlink_metadata(directory)?;
    if !metadata.is_dir() {
        return Err(io::Error::other(format!(
            "{} is not a directory",
            directory.display()
        )));
    }
    if metadata.uid() != Uid::current().as_raw() {
        return Err(io::Error::other(format!(
            "{} belongs to another user",
            directory.display()
        )));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "others may write to {}",
            directory.display()
        )));
    }
    Ok(())
}

/// Writes down whose lock it is, for people.
fn note_process(mut lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all(std::process::id().to_string().as_bytes())
}

/// Explains that there is a session already, and to what.
fn taken(status: &v1::StatusResponse) -> Failure {
    Failure::new(
        Reason::AlreadyConnected,
        format!(
            "already connected to context {} (namespace {}) at {}",
            status.context, status.namespace, status.server
        ),
        "end that connection first with `kvpn quit`",
    )
}

/// Explains that a session takes its time to start or to end.
fn busy(lock_path: &Path) -> Failure {
    let noted = fs::read_to_string(lock_path).unwrap_or_default();
    let next_step = match noted.parse::<u32>() {
        Ok(process) => format!("try again in a moment, or end that session with `kill {process}`"),
        Err(_) => "try again in a moment".to_owned(),
    };
    Failure::new(
        Reason::AlreadyConnected,
        "another session of yours is starting or ending",
        next_step,
    )
}

async fn ask(path: &Path) -> Option<v1::StatusResponse> {
    let path = path.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://session");
    let channel = endpoint.connect_with_connector(connector).await.ok()?;
    let answer = SessionClient::new(channel)
        .status(v1::StatusRequest {})
        .await;
    Some(answer.ok()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_directory_is_made_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvpn/session.sock");
        let place = Place::take(path.clone()).await.unwrap();
        let listener = place.listen().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(&path), 0o600);
        drop(listener);
        drop(place);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvpn/session.sock");
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o700)).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let place = Place::take(path.clone()).await.unwrap();
        let _listener = place.listen().unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn a_session_that_does_not_get_on_is_told_by_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvpn/session.sock");
        let _first = Place::take(path.clone()).await.unwrap();
        let failure = Place::take_within(path, Duration::ZERO)
            .await
            .err()
            .unwrap();
        assert_eq!(failure.reason, Reason::AlreadyConnected);
        let kill = format!("`kill {}`", std::process::id());
        assert!(failure.next_step.contains(&kill), "{}", failure.next_step);
    }

    #[tokio::test]
    async fn a_session_that_is_ending_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kvpn/session.sock");
        let first = Place::take(path.clone()).await.unwrap();
        let second = Place::take(path);
        tokio::pin!(second);
        // It has found the place taken by the time that it waits.
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        second.await.unwrap();
    }

    #[tokio::test]
    async fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let failure = Place::take(dir.path().join("session.sock"))
            .await
            .err()
            .unwrap();
        assert_eq!(failure.reason, Reason::Usage);
    }

    #[tokio::test]
    async fn a_symlink_in_place_of_the_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("kvpn")).unwrap();
        let failure = Place::take(dir.path().join("kvpn/session.sock"))
            .await
            .err()
            .unwrap();
        assert!(
            failure.message.contains("not a directory"),
            "{}",
            failure.message
        );
    }
}
