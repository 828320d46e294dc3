//! What is watched, and what of it counts.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvpn_proto::{Failure, Reason};

/// What programs write, not people; besides hidden files and editors' copies.
const IGNORED: [&str; 3] = ["target", "node_modules", "__pycache__"];

/// Files and directories that were named, as they are without symbolic links.
pub(super) struct Roots(BTreeSet<PathBuf>);

impl Roots {
    /// Finds what must be there. Of a symbolic link, both it and what it leads to are meant.
    pub(super) fn find(paths: &[PathBuf]) -> Result<Self, Failure> {
        let mut roots = BTreeSet::new();
        for path in paths {
            let found = places(path).map_err(|error| {
                Failure::new(
                    Reason::Usage,
                    format!("{} cannot be watched: {error}", path.display()),
                    "give --watch a file or a directory that is there",
                )
            })?;
            roots.extend(found);
        }
        Ok(Self(roots))
    }

    pub(super) fn all(&self) -> Vec<PathBuf> {
        self.0.iter().cloned().collect()
    }

    /// Whether a path is, or is in, what was named, and counts.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.iter().any(|root| {
            let below = path.strip_prefix(root);
            below.is_ok_and(|below| !below.iter().any(is_ignored))
        })
    }
}

fn places(path: &Path) -> io::Result<Vec<PathBuf>> {
    let target = fs::canonicalize(path)?;
    let is_link = fs::symlink_metadata(path)?.is_symlink();
    let link = match (path.file_name(), is_link) {
        (Some(name), true) => {
            let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
            let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")))?;
            Some(parent.join(name))
        }
        _ => None,
    };
    Ok(link.into_iter().chain([target]).collect())
}

/// By its name: what is hidden, what editors keep beside a file, and what builds make.
fn is_ignored(name: &OsStr) -> bool {
    let octets = name.as_bytes();
    let is_beside = octets.starts_with(b".") || octets.starts_with(b"#") || octets.ends_with(b"~");
    is_beside || IGNORED.iter().any(|it| name == *it)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_nobody_writes_by_hand_does_not_count() {
        let roots = Roots(["/home/me/.shop/target".into()].into());
        let has = |below: &str| roots.has(&Path::new("/home/me/.shop/target").join(below));
        for counts in ["", "a", "src/main.rs", "targets/a", "a.b~c/d#"] {
            assert!(has(counts), "{counts}");
        }
        for ignored in [
            ".git/index",
            "src/.main.rs.swp",
            "src/main.rs~",
            "#main.rs#",
            "target/debug/a",
            "web/node_modules/a",
            "__pycache__/a.pyc",
        ] {
            assert!(!has(ignored), "{ignored}");
        }
        assert!(!roots.has(Path::new("/home/me/.shop/targets")));
        assert!(!roots.has(Path::new("/home/me/.shop")));
    }

    #[test]
    fn link_and_what_it_leads_to_are_meant() {
        let directory = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(directory.path()).unwrap();
        let [file, link] = ["file", "link"].map(|name| top.join(name));
        fs::write(&file, "").unwrap();
        symlink("file", &link).unwrap();
        let roots = Roots::find(std::slice::from_ref(&link)).unwrap();
        assert!(roots.has(&file) && roots.has(&link) && !roots.has(&top.join("else")));

        let failure = Roots::find(&[top.join("nothing")]).err().unwrap();
        assert_eq!(failure.reason, Reason::Usage);
        assert!(failure.message.contains("nothing cannot be watched"));
    }
}
