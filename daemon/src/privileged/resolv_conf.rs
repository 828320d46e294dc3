//! The host's resolv.conf(5): written for the time of a lease, and put back.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use kvpn_tunnel::dns::parse_resolv_conf;
use serde::{Deserialize, Serialize};
use tracing::debug;

mod file;
mod text;
mod watch;

use crate::lease::slot;
use file::Attributes;
pub(super) use watch::Watch;

/// A change of resolv.conf that is about to be made, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Change {
    /// The file itself, where the path is a symbolic link to it.
    target: PathBuf,
    /// Absent where there was no file.
    original: Option<Original>,
    /// What is written for the lease.
    written: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Original {
    content: Vec<u8>,
    attributes: Attributes,
}

/// What came of an attempt to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restored {
    Yes,
    /// It is already as it was.
    NotNeeded,
    /// The file is neither as it was nor with our name servers alone.
    ChangedByOthers,
}

impl Change {
    /// Plans the change of the file at `path` to these name servers, with the
    /// search domains before the host's own. Writes nothing.
    pub(super) fn plan(
        path: &Path,
        name_servers: &[IpAddr],
        search_domains: &[String],
    ) -> io::Result<Self> {
        let target = file::resolve(path)?;
        let original = file::read(&target)?.map(|(content, attributes)| Original {
            content,
            attributes,
        });
        let content = original
            .as_ref()
            .map(|original| original.content.as_slice());
        Ok(Self {
            written: text::render(content, name_servers, search_domains),
            target,
            original,
        })
    }

    /// Tells whether somebody has replaced the file at `path` since: it is neither as
    /// it was written, nor that with changes by hand.
    pub(super) fn is_replaced(&self, path: &Path) -> io::Result<bool> {
        let target = file::resolve(path)?;
        Ok(match file::read(&target)? {
            Some((current, _)) => !self.is_ours(&current) && text::embedded(&current).is_none(),
            // Whoever removes it writes another.
            None => false,
        })
    }

    /// The change of the same file to other name servers and search domains.
    pub(super) fn with(&self, name_servers: &[IpAddr], search_domains: &[String]) -> Self {
        let original = self.original.as_ref();
        let content = original.map(|original| original.content.as_slice());
        Self {
            written: text::render(content, name_servers, search_domains),
            ..self.clone()
        }
    }

    /// The file that is changed.
    pub(super) fn path(&self) -> &Path {
        &self.target
    }

    /// The name servers from before the change, without those of an earlier
    /// lease.
    pub(super) fn upstreams(&self) -> Vec<IpAddr> {
        let Some(original) = &self.original else {
            return Vec::new();
        };
        let ours = name_servers(&self.written);
        let mut theirs = name_servers(&original.content);
        theirs.retain(|server| !ours.contains(server));
        theirs
    }

    /// Makes the change.
    pub(super) fn apply(&self) -> io::Result<()> {
        let attributes = match &self.original {
            Some(original) => original.attributes,
            None => Attributes::DEFAULT,
        };
        file::replace(&self.target, &self.written, attributes)
    }

    /// Takes the change back, unless somebody else wrote other name servers
    /// into the file since.
    pub(super) fn restore(&self) -> io::Result<Restored> {
        if let Err(error) = file::remove_leftover(&self.target) {
            // Harmless, unlike a file that is not restored.
            debug!(%error, "A leftover cannot be removed");
        }
        let current = file::read(&self.target)?;
        match (&self.original, current) {
            (None, None) => Ok(Restored::NotNeeded),
            (Some(_), None) => Ok(Restored::ChangedByOthers),
            (Some(original), Some((current, _))) if current == original.content => {
                Ok(Restored::NotNeeded)
            }
            (None, Some((current, _))) if self.is_ours(&current) => {
                fs::remove_file(&self.target)?;
                Ok(Restored::Yes)
            }
            (Some(original), Some((current, _))) if self.is_ours(&current) => {
                file::replace(&self.target, &original.content, original.attributes)?;
                Ok(Restored::Yes)
            }
            (_, Some(_)) => {
                if restore_embedded(&self.target)? {
                    Ok(Restored::Yes)
                } else {
                    Ok(Restored::ChangedByOthers)
                }
            }
        }
    }

    /// Tells whether this is what we wrote, or the start of it: where the file
    /// is written in place, a crash may leave only that.
    fn is_ours(&self, current: &[u8]) -> bool {
        self.written.starts_with(current)
    }
}

/// Restores a file written by kvpn from what is embedded in it, unless somebody
/// added name servers to ours; tells whether it did. This is for when there is
/// no journal, the file was edited since, or it is still that of other leases.
pub(super) fn restore_embedded(path: &Path) -> io::Result<bool> {
    let target = file::resolve(path)?;
    let Some((current, attributes)) = file::read(&target)? else {
        return Ok(false);
    };
    let Some(original) = text::embedded(&current) else {
        return Ok(false);
    };
    if !name_servers(&current).iter().all(slot::is_own) {
        return Ok(false);
    }
    match original {
        None => fs::remove_file(&target)?,
        Some(original) => file::replace(&target, &original, attributes)?,
    }
    Ok(true)
}

fn name_servers(content: &[u8]) -> Vec<IpAddr> {
    parse_resolv_conf(&String::from_utf8_lossy(content)).name_servers
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const OURS: &str = "198.18.0.1";

    struct Etc(tempfile::TempDir);

    impl Etc {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("resolv.conf")
        }

        fn plan(&self) -> Change {
            Change::plan(&self.path(), &[OURS.parse().unwrap()], &["svc.x".into()]).unwrap()
        }

        fn names(&self) -> Vec<String> {
            fs::read_dir(self.0.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        }
    }

    #[test]
    fn change_is_taken_back_with_content_and_mode() {
        let etc = Etc::new();
        fs::write(etc.path(), b"nameserver 10.0.0.1 # \xff").unwrap();
        fs::set_permissions(etc.path(), fs::Permissions::from_mode(0o751)).unwrap();

        let change = etc.plan();
        change.apply().unwrap();

        let during = fs::read(etc.path()).unwrap();
        assert!(String::from_utf8_lossy(&during).contains("\nnameserver 198.18.0.1\n"));
        assert_eq!(change.upstreams(), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(change.restore().unwrap(), Restored::Yes);
        assert_eq!(fs::read(etc.path()).unwrap(), b"nameserver 10.0.0.1 # \xff");
        let mode = fs::metadata(etc.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o751);
        assert_eq!(etc.names(), ["resolv.conf"]);
        assert_eq!(change.restore().unwrap(), Restored::NotNeeded);
    }

    #[test]
    fn missing_file_is_missing_again() {
        let etc = Etc::new();
        let change = etc.plan();
        change.apply().unwrap();
        assert!(etc.path().exists());
        assert_eq!(change.upstreams(), [] as [IpAddr; 0]);
        assert_eq!(change.restore().unwrap(), Restored::Yes);
        assert!(etc.names().is_empty());
    }

    #[test]
    fn symbolic_link_stays_one() {
        let etc = Etc::new();
        let target = etc.0.path().join("real");
        fs::write(&target, "nameserver 10.0.0.1\n").unwrap();
        symlink("real", etc.path()).unwrap();

        let change = etc.plan();
        change.apply().unwrap();

        assert_eq!(fs::read_link(etc.path()).unwrap(), PathBuf::from("real"));
        assert!(fs::read_to_string(&target).unwrap().contains(OURS));
        assert_eq!(change.restore().unwrap(), Restored::Yes);
        assert_eq!(
            fs::read_to_string(&target).unwrap(),
            "nameserver 10.0.0.1\n"
        );
        assert_eq!(fs::read_link(etc.path()).unwrap(), PathBuf::from("real"));
    }

    #[test]
    fn dangling_symbolic_link_dangles_again() {
        let etc = Etc::new();
        symlink("real", etc.path()).unwrap();
        let change = etc.plan();
        change.apply().unwrap();
        assert!(etc.path().exists());
        assert_eq!(change.restore().unwrap(), Restored::Yes);
        assert_eq!(fs::read_link(etc.path()).unwrap(), PathBuf::from("real"));
        assert!(!etc.path().exists());
    }

    #[test]
    fn file_changed_by_others_is_left_alone() {
        let etc = Etc::new();
        fs::write(etc.path(), "nameserver 10.0.0.1\n").unwrap();
        let change = etc.plan();
        change.apply().unwrap();
        fs::write(etc.path(), "nameserver 9.9.9.9\n").unwrap();
        assert_eq!(change.restore().unwrap(), Restored::ChangedByOthers);
        let after = fs::read_to_string(etc.path()).unwrap();
        assert_eq!(after, "nameserver 9.9.9.9\n");
    }

    #[test]
    fn file_that_still_names_our_servers_alone_is_restored() {
        let etc = Etc::new();
        fs::write(etc.path(), "nameserver 10.0.0.1\n").unwrap();
        let change = etc.plan();
        change.apply().unwrap();
        let edited = fs::read_to_string(etc.path()).unwrap() + "options timeout:1\n";
        fs::write(etc.path(), edited).unwrap();
        assert_eq!(change.restore().unwrap(), Restored::Yes);
        let after = fs::read_to_string(etc.path()).unwrap();
        assert_eq!(after, "nameserver 10.0.0.1\n");
    }

    #[test]
    fn crash_before_the_file_was_replaced_leaves_nothing() {
        let etc = Etc::new();
        fs::write(etc.path(), "nameserver 10.0.0.1\n").unwrap();
        let change = etc.plan();
        fs::write(etc.0.path().join(".resolv.conf.kvpn"), &change.written[..9]).unwrap();
        assert_eq!(change.restore().unwrap(), Restored::NotNeeded);
        assert_eq!(etc.names(), ["resolv.conf"]);
    }

    #[test]
    fn half_written_file_is_restored() {
        let etc = Etc::new();
        fs::write(etc.path(), "nameserver 10.0.0.1\n").unwrap();
        let change = etc.plan();
        fs::write(etc.path(), &change.written[..9]).unwrap();
        assert_eq!(change.restore().unwrap(), Restored::Yes);
        let after = fs::read_to_string(etc.path()).unwrap();
        assert_eq!(after, "nameserver 10.0.0.1\n");
    }

    #[test]
    fn file_without_a_journal_is_restored_from_itself() {
        let etc = Etc::new();
        fs::write(etc.path(), "# no end of line").unwrap();
        etc.plan().apply().unwrap();
        assert!(restore_embedded(&etc.path()).unwrap());
        assert_eq!(fs::read(etc.path()).unwrap(), b"# no end of line");
        assert!(!restore_embedded(&etc.path()).unwrap());

        fs::remove_file(etc.path()).unwrap();
        etc.plan().apply().unwrap();
        assert!(restore_embedded(&etc.path()).unwrap());
        assert!(etc.names().is_empty());
    }

    #[test]
    fn name_server_added_by_hand_is_kept_and_ours_is_no_upstream() {
        let etc = Etc::new();
        fs::write(etc.path(), "nameserver 10.0.0.1\n").unwrap();
        etc.plan().apply().unwrap();
        let text = fs::read_to_string(etc.path()).unwrap() + "nameserver 9.9.9.9\n";
        fs::write(etc.path(), &text).unwrap();
        assert!(!restore_embedded(&etc.path()).unwrap());
        assert_eq!(fs::read_to_string(etc.path()).unwrap(), text);
        assert_eq!(
            etc.plan().upstreams(),
            ["9.9.9.9".parse::<IpAddr>().unwrap()]
        );
    }
}
