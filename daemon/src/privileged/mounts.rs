//! File systems of a lease that ask its session (FUSE).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvpn_files::device::{Mount, open_directory};
use kvpn_proto::{Failure, Reason};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{error, warn};

use super::access::Peer;
use super::host::Host;

/// The most file systems of one lease.
const MAX_MOUNTS: usize = 16;

/// How long a directory may take to be found, or a mount to be detached: either may
/// wait for a file system that hangs.
const DEADLINE: Duration = Duration::from_secs(5);

/// File systems by which the kernel tells of itself: proc, sysfs, cgroup and cgroup2
/// (statfs(2)).
const KERNELS: [i64; 4] = [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];

/// Those of one lease, by the kernel's numbers.
#[derive(Debug, Default)]
pub(super) struct Mounts(BTreeMap<u64, Arc<Mount>>);

impl Mounts {
    /// Makes one that only the peer's user may look at. Its /dev/fuse is not kept here,
    /// so that the kernel lets go of who waits when the session ends.
    pub(super) fn open(&mut self, peer: &Peer, read_only: bool) -> Result<(u64, OwnedFd), Failure> {
        if self.0.len() >= MAX_MOUNTS {
            return Err(Failure::new(
                Reason::HostRefused,
                format!("this session has {MAX_MOUNTS} mounts already"),
                "end one of them first, such as with `kvpn leave`",
            ));
        }
        let opened = Mount::open(peer.uid, peer.gid, read_only);
        let (mount, device) = opened.map_err(|error| {
            Failure::new(
                Reason::HostRefused,
                format!("/dev/fuse cannot be used: {error}"),
                "load it with `sudo modprobe fuse`, or do without with --mount=false",
            )
        })?;
        let id = mount.id();
        self.0.insert(id, Arc::new(mount));
        Ok((id, device))
    }

    /// Shows one in place of a directory that is the peer's own.
    pub(super) async fn attach(
        &self,
        id: u64,
        path: PathBuf,
        peer: &Peer,
        host: &Host,
    ) -> Result<(), Failure> {
        let mount = self.0.get(&id).ok_or_else(unknown)?;
        host.note_mount(id).await?;
        let (uid, at) = (peer.uid, path.clone());
        // Nothing is mounted by who finds a directory too late.
        let found = timeout(DEADLINE, spawn_blocking(move || find(&at, uid))).await;
        let found = found.unwrap_or_else(|_| Ok(Err(io::ErrorKind::TimedOut.into())));
        let found = found.map_err(Failure::internal)?;
        let attached = found.and_then(|directory| mount.attach(directory.as_fd()));
        attached.map_err(|error| {
            Failure::new(
                Reason::HostRefused,
                // No more is said, since root may look where the user may not.
                format!("{} cannot be mounted at: {error}", path.display()),
                "choose an empty directory of yours, by a path without symbolic links",
            )
        })
    }

    pub(super) async fn close(&mut self, id: u64, host: &Host) -> Result<(), Failure> {
        let mount = self.0.remove(&id).ok_or_else(unknown)?;
        close(mount, host).await;
        Ok(())
    }

    /// Ends all of them.
    pub(super) async fn close_all(&mut self, host: &Host) {
        let mounts = std::mem::take(&mut self.0);
        let closing = mounts.into_values().map(|mount| close(mount, host));
        futures::future::join_all(closing).await;
    }
}

async fn close(mount: Arc<Mount>, host: &Host) {
    let id = mount.id();
    let detached = spawn_blocking(move || mount.detach());
    match timeout(DEADLINE, detached).await {
        // One that was never attached cannot be detached, nor can one that its owner
        // had detached already.
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::InvalidInput => {}
        // It stays in the journal, by which this is tried again when leases end.
        Ok(Ok(Err(error))) => return error!(%error, "A mount cannot be detached"),
        Ok(Err(error)) => return error!(%error, "A mount cannot be detached"),
        Err(_) => return warn!("A mount takes too long to be detached"),
    }
    host.forget_mount(id).await;
}

/// Finds a directory that is the user's own, in a file system for files.
fn find(path: &Path, uid: u32) -> io::Result<OwnedFd> {
    if !path.is_absolute() {
        return Err(io::Error::other("it is not absolute"));
    }
    let refused = || io::Error::other("it is not a directory of this user's");
    let directory = open_directory(path).map_err(|_| refused())?;
    let found = rustix::fs::fstat(&directory)?;
    if uid != 0 && found.st_uid != uid {
        return Err(refused());
    }
    // A process hides nothing of the system's, either.
    let is_the_kernels = KERNELS.contains(&rustix::fs::fstatfs(&directory)?.f_type);
    match is_the_kernels && uid != 0 {
        true => Err(refused()),
        false => Ok(directory),
    }
}

fn unknown() -> Failure {
    Failure::new(
        Reason::HostRefused,
        "there is no such mount",
        "open it first",
    )
}
