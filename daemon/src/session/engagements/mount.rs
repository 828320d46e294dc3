//! The files of an engaged container, mounted on this laptop.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvpn_files::client::{self, Link};
use kvpn_proto::crd::{FileAccess, Verb};
use kvpn_proto::flow::{DialError, DialFailure, OpenTarget};
use kvpn_proto::{Failure, Reason, v1};
use kvpn_tunnel::relay::{self, FrameStream};
use tokio::io::duplex;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::table::Key;
use crate::datapath::dial;
use crate::lease::mounter::Mounter;
use crate::session::manager::{FlowClient, Manager};

/// How many bytes wait between the tunnel and the file system, each way.
const WAITING: usize = 1 << 20;

/// How soon the files are asked for again once they have been lost: at first, and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long the files may take to be there at first.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long a directory may take to be free again, after what was mounted there.
const FREE: Duration = Duration::from_secs(2);

/// What is to be mounted, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where the user wants it; nowhere in particular if absent.
    path: Option<PathBuf>,
    read_only: bool,
    root: bool,
    /// Without it, the engagement goes on all the same.
    pub(super) is_optional: bool,
}

impl Mount {
    /// Reads what the user wrote. Who does not take the place of the app changes files only
    /// where that is what it is for.
    pub(crate) fn read(asked: &v1::Mount, verb: Verb) -> Result<Self, Failure> {
        let path = Some(&asked.path).filter(|path| !path.is_empty());
        let path = path.map(PathBuf::from);
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            return Err(unusable(path, "it is not absolute"));
        }
        let changes = match verb {
            Verb::Intercept | Verb::Replace => true,
            Verb::Ingest => asked.writable,
            Verb::Wiretap => false,
        };
        Ok(Self {
            path,
            read_only: asked.read_only || !changes,
            root: asked.root,
            is_optional: asked.is_optional,
        })
    }

    /// Refuses a directory that cannot be used, before anything is engaged for it.
    pub(super) async fn check(&self) -> Result<(), Failure> {
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        let checked = spawn_blocking(move || match path.exists() {
            true => is_empty(&path),
            false => Ok(()),
        });
        match timeout(DEADLINE, checked).await {
            Ok(checked) => checked.map_err(Failure::internal).flatten(),
            Err(_) => Err(late()),
        }
    }

    /// What the custom resource asks for.
    pub(super) fn access(&self) -> FileAccess {
        FileAccess {
            writable: !self.read_only,
            root: self.root,
        }
    }
}

/// Files that are mounted. Dropped without [`Mounted::end`], they end with the lease.
pub(super) struct Mounted {
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    id: u64,
    mounter: Mounter,
    /// The directory is not the user's.
    is_ours: bool,
    _carrier: AbortOnDropHandle<()>,
}

/// Where the files come from.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) manager: Manager,
    pub(super) engagement: Key,
    pub(super) engagement_uid: String,
}

impl Mounted {
    /// Mounts them; `directory` is where a place of our own choice is.
    pub(super) async fn start(
        wanted: &Mount,
        origin: Origin,
        mounter: Mounter,
        directory: &Path,
    ) -> Result<Self, Failure> {
        let first = origin.first().await?;
        let (path, is_ours) = match &wanted.path {
            Some(path) => (path.clone(), made_empty(path.clone()).await?),
            None => {
                let path = directory.join(&origin.engagement.name);
                made_empty(path.clone()).await?;
                (path, true)
            }
        };
        let mounted = Self::attach(wanted, origin, mounter, path.clone(), is_ours, first).await;
        if mounted.is_err() && is_ours {
            free(&path).await;
        }
        mounted
    }

    async fn attach(
        wanted: &Mount,
        origin: Origin,
        mounter: Mounter,
        path: PathBuf,
        is_ours: bool,
        first: Stream,
    ) -> Result<Self, Failure> {
        let engagement = origin.engagement.clone();
        let (id, device) = mounter.open(wanted.read_only).await?;
        let link = Link::default();
        let carrier = AbortOnDropHandle::new(tokio::spawn(origin.carry(link.clone(), first)));
        let runtime = Handle::current();
        let agreed = spawn_blocking(move || client::mount(device, link, runtime)).await;
        let attached = match agreed.map_err(io::Error::other).flatten() {
            // It answers the kernel for as long as that asks.
            Ok(_) => mounter.attach(id, &path).await,
            Err(error) => Err(Failure::internal(error)),
        };
        if let Err(failure) = attached {
            // Otherwise it ends with the lease.
            let _ = mounter.close(id).await;
            return Err(failure);
        }
        info!(%engagement, path = %path.display(), read_only = wanted.read_only, "Files mounted");
        Ok(Self {
            path,
            read_only: wanted.read_only,
            id,
            mounter,
            is_ours,
            _carrier: carrier,
        })
    }

    /// Shows the files no more.
    pub(super) async fn end(self) {
        if let Err(failure) = self.mounter.close(self.id).await {
            debug!(%failure, "The mount ends with the lease");
        }
        if self.is_ours {
            free(&self.path).await;
        }
    }
}

/// A stream over which files are served, and what keeps its connection.
type Stream = (FrameStream, FlowClient);

impl Origin {
    /// The first stream; a reader that has just come may not be known yet everywhere.
    async fn first(&self) -> Result<Stream, Failure> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.open().await {
                Ok(stream) => return Ok(stream),
                Err(failure) if failure.error == DialError::Prohibited => {
                    return Err(unserved(&failure, Reason::NotSupported));
                }
                Err(failure) if Instant::now() >= deadline => {
                    return Err(unserved(&failure, Reason::AgentNotReady));
                }
                Err(_) => sleep(FIRST_PAUSE).await,
            }
        }
    }

    async fn open(&self) -> Result<Stream, DialFailure> {
        let engagement_uid = self.engagement_uid.clone();
        let dialled = dial(&self.manager, OpenTarget::Files { engagement_uid });
        let late = || DialFailure::new(DialError::TimedOut, "nobody serves them in time");
        timeout(DEADLINE, dialled).await.map_err(|_| late())?
    }

    /// Carries requests for files over one stream after the other, whatever becomes of the
    /// pods.
    async fn carry(self, link: Link, first: Stream) {
        let mut opened = Ok(first);
        let mut pause = FIRST_PAUSE;
        loop {
            match opened {
                Ok((frames, _place)) => {
                    let began = Instant::now();
                    let (near, far) = duplex(WAITING);
                    tokio::select! {
                        ended = link.carry(near) => {
                            debug!(engagement = %self.engagement, ?ended, "Files are lost");
                        }
                        ended = relay::splice(far, frames) => {
                            debug!(engagement = %self.engagement, ?ended, "Files are lost");
                        }
                    }
                    if began.elapsed() > LONGEST_PAUSE {
                        pause = FIRST_PAUSE;
                    }
                }
                Err(failure) => {
                    debug!(engagement = %self.engagement, %failure, "Files are not to be had");
                }
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
            opened = self.open().await;
        }
    }
}

/// As [`make_empty`], beside the thread that may have to answer for the directory's own file
/// system.
async fn made_empty(path: PathBuf) -> Result<bool, Failure> {
    match timeout(DEADLINE, spawn_blocking(move || make_empty(&path))).await {
        Ok(made) => made.map_err(Failure::internal).flatten(),
        Err(_) => Err(late()),
    }
}

/// Makes sure that a directory is there and empty; whether it was made. Whatever is in it
/// would be hidden.
fn make_empty(path: &Path) -> Result<bool, Failure> {
    let made = DirBuilder::new()
        .recursive(!path.exists())
        .mode(0o700)
        .create(path);
    match made {
        Ok(()) => return Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(path, &error.to_string())),
    }
    is_empty(path).map(|()| false)
}

fn is_empty(path: &Path) -> Result<(), Failure> {
    let names = fs::read_dir(path).map_err(|error| unusable(path, &error.to_string()))?;
    match names.count() {
        0 => Ok(()),
        _ => Err(unusable(path, "it is not empty")),
    }
}

/// Removes a directory once nothing is mounted there any more, which happens at about the
/// same time.
async fn free(path: &Path) {
    let deadline = Instant::now() + FREE;
    let removed = || {
        let path = path.to_owned();
        let removed = spawn_blocking(move || fs::remove_dir(path));
        async { removed.await.map_err(io::Error::other).flatten() }
    };
    while let Err(error) = removed().await {
        if error.kind() != ErrorKind::ResourceBusy || Instant::now() >= deadline {
            warn!(path = %path.display(), %error, "A directory for files stays");
            return;
        }
        sleep(FIRST_PAUSE).await;
    }
}

fn late() -> Failure {
    Failure::new(
        Reason::TimedOut,
        "the file system where files are to be mounted does not answer",
        "name a directory elsewhere with --mount",
    )
}

fn unusable(path: &Path, why: &str) -> Failure {
    Failure::new(
        Reason::Usage,
        format!("files cannot be mounted at {}: {why}", path.display()),
        "name an empty directory of yours, or one that is not there",
    )
}

fn unserved(failure: &DialFailure, reason: Reason) -> Failure {
    Failure::new(
        reason,
        format!("the container's files cannot be had: {failure}"),
        "do without with --mount=false, or see why in the traffic manager's log",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_take_the_place_of_the_app_changes_files_only_on_purpose() {
        let is_read_only = |verb, read_only, writable| {
            let asked = v1::Mount {
                read_only,
                writable,
                ..v1::Mount::default()
            };
            !Mount::read(&asked, verb).unwrap().access().writable
        };
        let read_only = |verb, read_only| is_read_only(verb, read_only, false);
        assert!(!read_only(Verb::Intercept, false));
        assert!(!read_only(Verb::Replace, false));
        assert!(read_only(Verb::Intercept, true));
        assert!(read_only(Verb::Wiretap, false));
        assert!(read_only(Verb::Ingest, false));
        assert!(!is_read_only(Verb::Ingest, false, true));
        assert!(is_read_only(Verb::Ingest, true, true));
        assert!(is_read_only(Verb::Wiretap, false, true));
    }

    #[test]
    fn nothing_is_hidden_by_a_mount() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        assert_eq!(make_empty(&new), Ok(true));
        assert_eq!(make_empty(&new), Ok(false));
        let full = make_empty(&dir.path().join("a")).unwrap_err();
        assert!(full.message.ends_with("it is not empty"), "{full}");
        fs::write(dir.path().join("file"), "").unwrap();
        let file = make_empty(&dir.path().join("file")).unwrap_err();
        assert_eq!(file.reason, Reason::Usage);
        let relative = v1::Mount {
            path: "files".into(),
            ..v1::Mount::default()
        };
        let relative = Mount::read(&relative, Verb::Intercept).unwrap_err();
        assert!(
            relative.message.ends_with("it is not absolute"),
            "{relative}"
        );
    }
}
