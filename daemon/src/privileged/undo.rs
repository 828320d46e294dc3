//! Taking back what a lease changed. The daemon does it at the end of a lease
//! and when it starts, the guard when the daemon is gone.

use std::io;
use std::path::Path;

use tracing::{info, warn};

use super::address;
use super::journal::Journal;
use super::resolv_conf::{self, Restored};
use super::upstreams;
use crate::netlink::Netlink;

/// Undoes everything that the journal names, then removes the journal. Tries
/// all of it, and returns the first error.
pub(super) async fn undo(run_dir: &Path) -> io::Result<()> {
    let journal = match Journal::load(run_dir) {
        Ok(None) => return Ok(()),
        Ok(Some(journal)) => journal,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            warn!(%error, "The journal makes no sense and is dropped");
            return Journal::remove(run_dir);
        }
        Err(error) => return Err(error),
    };
    let restored = match &journal.resolv_conf {
        Some(change) => change.restore().map(|restored| report(restored, change)),
        None => Ok(()),
    };
    let deleted = delete_device(&journal).await;
    restored.and(deleted)?;
    upstreams::remove(run_dir)?;
    Journal::remove(run_dir)
}

/// Restores a resolv.conf that was left by a kvpn whose journal is lost, as
/// after a power cut.
pub(super) fn restore_orphan(path: &Path) -> io::Result<()> {
    if resolv_conf::restore_embedded(path, &[address::V4.into(), address::V6.into()])? {
        info!(path = %path.display(), "Restored what kvpn left before it was cut off");
    }
    Ok(())
}

async fn delete_device(journal: &Journal) -> io::Result<()> {
    let device = &journal.device;
    Netlink::open()?
        .delete_link(&device.name, device.index)
        .await
}

fn report(restored: Restored, change: &resolv_conf::Change) {
    let path = change.path().display();
    match restored {
        Restored::Yes => info!(%path, "Restored"),
        Restored::NotNeeded => {}
        Restored::ChangedByOthers => {
            warn!(%path, "Left alone: somebody else changed it meanwhile");
        }
    }
}
