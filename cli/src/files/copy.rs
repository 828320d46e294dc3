//! Copies files, each as a whole or not at all.

use std::fs::{self, DirBuilder, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::BinaryBytes;
use serde::Serialize;

use super::Stop;
use super::place::Place;
use crate::output::{Output, printable};

/// How much is read at once.
const CHUNK: usize = 1 << 20;

/// What has been copied.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Copied {
    from: String,
    to: String,
    files: u64,
    directories: u64,
    symbolic_links: u64,
    bytes: u64,
    /// What is none of these.
    pub(crate) left_out: Vec<String>,
}

/// Copies until it is told to stop.
pub(crate) struct Copier<'a> {
    stop: &'a AtomicBool,
    /// What is copied is to be on a disk before it has its name.
    syncs: bool,
    copied: Copied,
    temporaries: u64,
}

impl<'a> Copier<'a> {
    pub(crate) fn new(stop: &'a AtomicBool, syncs: bool) -> Self {
        Self {
            stop,
            syncs,
            copied: Copied::default(),
            temporaries: 0,
        }
    }

    pub(crate) fn copy(mut self, from: &Place, to: &Place) -> Result<Copied, Stop> {
        self.copied.from.clone_from(&from.shown);
        self.copied.to.clone_from(&to.shown);
        let found = from.look()?;
        self.one(from, to, &found)?;
        Ok(self.copied)
    }

    fn one(&mut self, from: &Place, to: &Place, found: &Metadata) -> Result<(), Stop> {
        self.go_on()?;
        let kind = found.file_type();
        if kind.is_dir() {
            self.directory(from, to, found)?;
        } else if kind.is_file() {
            self.in_place(to, |this, temporary| this.file(from, temporary, found))?;
            self.copied.files += 1;
        } else if kind.is_symlink() {
            let target = fs::read_link(&from.path).map_err(|error| from.failed(&error))?;
            self.in_place(to, |_, temporary| {
                symlink(&target, &temporary.path).map_err(|error| to.failed(&error).into())
            })?;
            self.copied.symbolic_links += 1;
        } else {
            self.copied.left_out.push(printable(&from.shown));
        }
        Ok(())
    }

    /// What is there already stays, but for what is copied.
    fn directory(&mut self, from: &Place, to: &Place, found: &Metadata) -> Result<(), Stop> {
        let is_new = match DirBuilder::new().mode(0o700).create(&to.path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(to.failed(&error).into()),
        };
        let (_, from) = from.enter().map_err(|error| from.failed(&error))?;
        let (made, to) = to.enter().map_err(|error| to.failed(&error))?;
        let entries = fs::read_dir(&from.path).map_err(|error| from.failed(&error))?;
        for entry in entries {
            let entry = entry.map_err(|error| from.failed(&error))?;
            let (from, to) = (from.join(&entry.file_name()), to.join(&entry.file_name()));
            let found = fs::symlink_metadata(&from.path).map_err(|error| from.failed(&error))?;
            self.one(&from, &to, &found)?;
        }
        if is_new {
            keep(&made, found);
        }
        self.copied.directories += 1;
        Ok(())
    }

    /// Has something made under another name, which is renamed once it is whole.
    fn in_place(
        &mut self,
        to: &Place,
        make: impl FnOnce(&mut Self, &Place) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        self.temporaries += 1;
        let temporary = format!(".kvpn-cp-{}-{}", process::id(), self.temporaries);
        let temporary = to.beside(&temporary);
        let made = make(self, &temporary).and_then(|()| {
            let renamed = fs::rename(&temporary.path, &to.path);
            renamed.map_err(|error| to.failed(&error).into())
        });
        if made.is_err() {
            // It may not have been made, and who stops it has heard enough.
            let _ = fs::remove_file(&temporary.path);
        }
        made
    }

    fn file(&mut self, from: &Place, to: &Place, found: &Metadata) -> Result<(), Stop> {
        let mut source = from.open().map_err(|error| from.failed(&error))?;
        let mut options = OpenOptions::new();
        let copy = options.write(true).create_new(true).mode(0o600);
        let mut copy = copy.open(&to.path).map_err(|error| to.failed(&error))?;
        let mut chunk = vec![0; CHUNK.min(usize::try_from(found.len()).unwrap_or(CHUNK) + 1)];
        loop {
            self.go_on()?;
            let read = match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(from.failed(&error).into()),
            };
            copy.write_all(&chunk[..read])
                .map_err(|error| to.failed(&error))?;
            self.copied.bytes += read as u64;
        }
        keep(&copy, found);
        if self.syncs {
            // What is written on a mount may be lost with the pod.
            copy.sync_all().map_err(|error| to.failed(&error))?;
        }
        Ok(())
    }

    fn go_on(&self) -> Result<(), Stop> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Stop::Told),
            false => Ok(()),
        }
    }
}

/// Gives a copy what its original has, where there is such a thing. It does not run as its
/// owner, who is another one; a directory keeps the group that it gives to what is in it.
fn keep(copy: &File, found: &Metadata) {
    let times = || -> io::Result<()> {
        let (accessed, modified) = (found.accessed()?, found.modified()?);
        let times = FileTimes::new();
        copy.set_times(times.set_accessed(accessed).set_modified(modified))
    };
    let mode = || -> io::Result<()> {
        let inherited = copy.metadata()?.permissions().mode() & 0o7000;
        let mode = found.permissions().mode() & 0o777;
        copy.set_permissions(Permissions::from_mode(inherited | mode))
    };
    // Not every file system has these.
    let _ = (mode(), times());
}

impl Output for Copied {
    fn text(&self) -> String {
        let count = |number: u64, one: &str, many: &str| match number {
            0 => None,
            1 => Some(format!("1 {one}")),
            number => Some(format!("{number} {many}")),
        };
        let counts = [
            count(self.files, "file", "files"),
            count(self.directories, "directory", "directories"),
            count(self.symbolic_links, "symbolic link", "symbolic links"),
        ];
        let counts: Vec<String> = counts.into_iter().flatten().collect();
        let counts = match counts.is_empty() {
            true => "nothing".to_owned(),
            false => counts.join(", "),
        };
        format!(
            "Copied {counts} ({}) from {} to {}\n",
            BinaryBytes(self.bytes),
            printable(&self.from),
            printable(&self.to)
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    const PAST: Duration = Duration::from_secs(1_600_000_000);

    fn copy(from: &Path, to: &Path) -> Result<Copied, Stop> {
        let stop = AtomicBool::new(false);
        Copier::new(&stop, true).copy(&Place::at(from), &Place::at(to))
    }

    fn names(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn directory_is_copied_with_links_modes_and_times() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "content").unwrap();
        let mode = |mode| Permissions::from_mode(mode);
        fs::set_permissions(from.join("sub/file"), mode(0o4750)).unwrap();
        symlink("sub/nowhere", from.join("link")).unwrap();
        mkfifo(&from.join("pipe"), Mode::S_IRWXU).unwrap();
        for path in ["sub/file", "sub"] {
            let file = File::open(from.join(path)).unwrap();
            file.set_modified(UNIX_EPOCH + PAST).unwrap();
        }
        fs::set_permissions(from.join("sub"), mode(0o555)).unwrap();

        let copied = copy(&from, &to).unwrap();

        assert_eq!(names(&to), ["link", "sub"]);
        assert_eq!(names(&to.join("sub")), ["file"]);
        assert_eq!(fs::read(to.join("sub/file")).unwrap(), b"content");
        let link = fs::read_link(to.join("link")).unwrap();
        assert_eq!(link, Path::new("sub/nowhere"));
        for (path, mode) in [("sub/file", 0o750), ("sub", 0o555)] {
            let found = fs::metadata(to.join(path)).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, mode, "{path}");
            assert_eq!(found.modified().unwrap(), UNIX_EPOCH + PAST, "{path}");
        }
        let shown = from.join("pipe").display().to_string();
        assert_eq!(copied.left_out, [shown]);
        let counts = (copied.files, copied.directories, copied.symbolic_links);
        assert_eq!((counts, copied.bytes), ((1, 2, 1), 7));
        let text = copied.text();
        let expected = "Copied 1 file, 2 directories, 1 symbolic link (7 B) from ";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn link_in_place_of_a_directory_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, elsewhere] = ["from", "to", "elsewhere"].map(|name| dir.path().join(name));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "content").unwrap();
        for path in [&to, &elsewhere] {
            fs::create_dir(path).unwrap();
        }
        symlink(&elsewhere, to.join("sub")).unwrap();
        let Err(Stop::Failed(failure)) = copy(&from, &to) else {
            panic!("a link was followed");
        };
        let shown = to.join("sub").display().to_string();
        assert!(failure.message.starts_with(&shown), "{failure}");
        assert_eq!(names(&elsewhere), [""; 0]);
    }

    #[test]
    fn copy_that_fails_or_is_stopped_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        let stop = AtomicBool::new(true);
        let stopped = Copier::new(&stop, false).copy(&Place::at(&from), &Place::at(&to));
        assert!(matches!(stopped, Err(Stop::Told)), "{stopped:?}");
        assert_eq!(fs::read(&to).unwrap(), b"old");
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
        let over = dir.path().join("over");
        fs::create_dir(&over).unwrap();
        let Err(Stop::Failed(failure)) = copy(&from, &over) else {
            panic!("a directory was replaced");
        };
        assert!(
            failure.message.starts_with(over.to_str().unwrap()),
            "{failure}"
        );
        assert_eq!(names(dir.path()), ["from", "over", "to"]);
    }
}
