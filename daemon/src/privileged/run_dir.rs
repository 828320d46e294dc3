//! The daemon's directory, and the lock by which one process at a time changes
//! the host.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How often a lock that is held is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// The lock, held until it is dropped or its process ends, however it ends.
pub(super) struct Lock {
    _file: File,
}

/// Makes the directory, if need be, so that everybody may look into it.
pub(super) fn create(run_dir: &Path) -> io::Result<()> {
    match fs::create_dir(run_dir) {
        Ok(()) => fs::set_permissions(run_dir, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
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
