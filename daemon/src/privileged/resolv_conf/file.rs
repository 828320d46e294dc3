//! Reading and replacing a file that others read all the time.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::debug;

/// The longest file that is taken for a resolv.conf, in bytes.
const MAX_LENGTH: u64 = 1 << 20;

/// Mode of a file until it has its content.
const NEW_MODE: u32 = 0o600;

/// Mode and ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Attributes {
    /// Those of a new file.
    pub(super) const DEFAULT: Self = Self {
        mode: 0o644,
        uid: 0,
        gid: 0,
    };
}

/// Follows symbolic links; the file at their end need not exist.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    match fs::read_link(path) {
        Ok(link) => Ok(path.parent().unwrap_or(Path::new("/")).join(link)),
        Err(_) => Ok(path.to_owned()),
    }
}

/// Reads a file; `None` where there is none.
pub(super) fn read(path: &Path) -> io::Result<Option<(Vec<u8>, Attributes)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        outcome => outcome?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_LENGTH {
        return Err(io::Error::other("not a file of a sensible length"));
    }
    let mut content = Vec::new();
    file.take(MAX_LENGTH).read_to_end(&mut content)?;
    let attributes = Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    };
    Ok(Some((content, attributes)))
}

/// Replaces a file's content: in one step where that works, else in place.
pub(super) fn replace(path: &Path, content: &[u8], attributes: Attributes) -> io::Result<()> {
    let error = match replace_at_once(path, content, attributes) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    // Here even the old content would be lost in place.
    if matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) {
        return Err(error);
    }
    // As with the bind mounts by which containers get theirs.
    debug!(path = %path.display(), %error, "Cannot be replaced at once");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(NEW_MODE)
        .open(path)?;
    fill(file, content, attributes)
}

fn replace_at_once(path: &Path, content: &[u8], attributes: Attributes) -> io::Result<()> {
    let new = new_path(path);
    remove_leftover(path)?;
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(NEW_MODE)
        .open(&new)?;
    let outcome = fill(file, content, attributes).and_then(|()| fs::rename(&new, path));
    if outcome.is_err() {
        // The first error tells more than one about the leftover.
        let _ = fs::remove_file(&new);
    }
    outcome
}

/// Removes what a crash may have left of a replacement.
pub(super) fn remove_leftover(path: &Path) -> io::Result<()> {
    match fs::remove_file(new_path(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Where the new file is written, beside the old one.
fn new_path(path: &Path) -> PathBuf {
    path.with_file_name(".resolv.conf.kvpn")
}

fn fill(mut file: File, content: &[u8], attributes: Attributes) -> io::Result<()> {
    file.write_all(content)?;
    let current = file.metadata()?;
    if (current.uid(), current.gid()) != (attributes.uid, attributes.gid) {
        fchown(&file, Some(attributes.uid), Some(attributes.gid))?;
    }
    if current.mode() & 0o7777 != attributes.mode {
        file.set_permissions(Permissions::from_mode(attributes.mode))?;
    }
    Ok(())
}
