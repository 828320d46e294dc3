//! The daemon's directory, and the lock by which one process at a time changes
//! the host.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::time::{Instant, sleep};

/// How often a lock that is held is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The lock, held until it is dropped or its process ends, however it ends.
pub(super) struct Lock {
    _file: File,
}

/// Mode of the directory: everybody may look into it.
const MODE: u32 = 0o755;

/// Makes the directory, if need be.
pub(super) fn create(run_dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(MODE).create(run_dir) {
        // The umask may have taken too much.
        Ok(()) => fs::set_permissions(run_dir, Permissions::from_mode(MODE)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_owner(run_dir),
        Err(error) => Err(error),
    }
}

/// Refuses a directory that another user may write to: by the journal in it,
/// that user would say what root writes where.
fn check_owner(run_dir: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(run_dir)?;
    let is_ours = metadata.is_dir() && metadata.uid() == geteuid().as_raw();
    if is_ours && metadata.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::other(
        "it is not a directory that only its owner, this user, may write to",
    ))
}

/// Takes the lock; `WouldBlock` where another process keeps it.
pub(super) async fn lock(run_dir: &Path, patience: Duration) -> io::Result<Lock> {
    // Whoever may open it could keep us from the lock.
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(run_dir.join("lock"))?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(RETRY).await,
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        create(&path).unwrap();
        create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, MODE);

        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(create(&dir.path().join("link")).is_err());
        fs::set_permissions(&path, Permissions::from_mode(0o1777)).unwrap();
        assert!(create(&path).is_err());
    }

    #[tokio::test]
    async fn second_holder_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path(), Duration::ZERO).await.unwrap();
        let refused = lock(dir.path(), Duration::ZERO).await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        let second = lock(dir.path(), Duration::from_secs(10));
        let (second, ()) = tokio::join!(second, async { drop(first) });
        second.unwrap();
    }
}
