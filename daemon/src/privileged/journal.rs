//! What was changed on the host, on disk before each change, so that whoever
//! comes after a crash can take it back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::resolv_conf::Change;

/// The changes of all leases that are held.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Journal {
    pub(super) devices: Vec<Device>,
    /// Absent until resolv.conf is about to be written.
    pub(super) resolv_conf: Option<Change>,
    /// The kernel's numbers of file systems that ask a session.
    #[serde(default)]
    pub(super) mounts: Vec<u64>,
}

/// A device; addresses and routes go with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) index: u32,
}

impl Journal {
    /// Reads the journal; `None` where there is none, `InvalidData` where it
    /// makes no sense.
    pub(super) fn load(run_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(path(run_dir)) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the journal in one step.
    pub(super) fn store(&self, run_dir: &Path) -> io::Result<()> {
        let new = run_dir.join("journal.json.new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, path(run_dir))
    }

    /// Removes the journal, if there is one.
    pub(super) fn remove(run_dir: &Path) -> io::Result<()> {
        match fs::remove_file(path(run_dir)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            outcome => outcome,
        }
    }
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("journal.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        Journal {
            devices: vec![Device {
                name: "kvpn0".into(),
                index: 7,
            }],
            resolv_conf: None,
            mounts: vec![33],
        }
    }

    #[test]
    fn journal_is_read_back_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Journal::load(dir.path()).unwrap(), None);
        journal().store(dir.path()).unwrap();
        assert_eq!(Journal::load(dir.path()).unwrap(), Some(journal()));
        Journal::remove(dir.path()).unwrap();
        Journal::remove(dir.path()).unwrap();
        assert_eq!(Journal::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn broken_journal_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path()), "{").unwrap();
        let error = Journal::load(dir.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
