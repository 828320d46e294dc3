//! Taking back what a lease changed. The daemon does it at the end of a lease
//! and when it starts, the guard when the daemon is gone.

use std::io;
use std::path::Path;

use kvpn_files::device::detach_all;
use tracing::{info, warn};

use super::journal::{Device, Journal};
use super::resolv_conf::{self, Restored};
use super::upstreams;
use crate::fault::point;
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
    point("resolv.conf restored");
    let deleted = delete_devices(&journal.devices).await;
    // Last, since a path that leads to one may be of a file system that hangs.
    let detached = detach_all(&journal.mounts);
    restored.and(deleted).and(detached)?;
    point("devices deleted");
    upstreams::remove_all(run_dir)?;
    point("upstreams removed");
    Journal::remove(run_dir)?;
    point("journal removed");
    Ok(())
}

/// Restores a resolv.conf that was left by a kvpn whose journal is lost, as
/// after a power cut.
pub(super) fn restore_orphan(path: &Path) -> io::Result<()> {
    if resolv_conf::restore_embedded(path)? {
        info!(path = %path.display(), "Restored what kvpn left before it was cut off");
    }
    Ok(())
}

async fn delete_devices(devices: &[Device]) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let mut outcome = Ok(());
    for device in devices {
        outcome = outcome.and(netlink.delete_link(&device.name, device.index).await);
    }
    outcome
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
