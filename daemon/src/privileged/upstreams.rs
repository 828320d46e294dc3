//! The file in which a session finds the host's own name servers while resolv.conf
//! names the session's.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where it is.
pub(super) fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("upstreams")
}

/// Writes it in one step, in the form of resolv.conf(5).
pub(super) fn store(run_dir: &Path, servers: &[IpAddr]) -> io::Result<()> {
    let lines = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    let new = run_dir.join("upstreams.new");
    fs::write(&new, lines.collect::<String>())?;
    fs::rename(new, path(run_dir))
}

/// Removes it, if it is there.
pub(super) fn remove(run_dir: &Path) -> io::Result<()> {
    match fs::remove_file(path(run_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
