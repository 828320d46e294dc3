//! The files in which sessions find whom to ask for names of other networks while
//! resolv.conf names a session.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::lease::slot::Slot;

/// Writes it in one step, in the form of resolv.conf(5).
pub(super) fn store(run_dir: &Path, slot: Slot, servers: &[IpAddr]) -> io::Result<()> {
    let lines = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    let new = run_dir.join("upstreams.new");
    fs::write(&new, lines.collect::<String>())?;
    fs::rename(new, slot.upstreams(run_dir))
}

/// Removes it, if it is there.
pub(super) fn remove(run_dir: &Path, slot: Slot) -> io::Result<()> {
    match fs::remove_file(slot.upstreams(run_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Removes those of all leases.
pub(super) fn remove_all(run_dir: &Path) -> io::Result<()> {
    Slot::all().try_for_each(|slot| remove(run_dir, slot))
}
