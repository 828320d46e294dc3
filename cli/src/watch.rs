//! Notices that something changes below paths, by inotify(7).

mod roots;

use std::collections::HashMap;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvpn_proto::{Failure, Reason};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::report;
use roots::Roots;

/// How long nothing may happen before a change is told, so that many are one.
const QUIET: Duration = Duration::from_millis(150);

/// Watches files and directories, with all that is in them but for what nobody writes by
/// hand.
pub(crate) struct Watch {
    inotify: AsyncFd<Descriptor>,
    roots: Roots,
    /// The directories that are watched.
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// What has changed first since the last change was told.
    changed: Option<PathBuf>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Refuses what is not there.
    pub(crate) fn check(paths: &[PathBuf]) -> Result<(), Failure> {
        Roots::find(paths).map(drop)
    }

    /// Watches what must be there.
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self, Failure> {
        let roots = Roots::find(paths)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        let inotify = inotify.map_err(|errno| {
            if errno == Errno::EMFILE {
                return used_up("what is given", "max_user_instances");
            }
            Failure::internal(errno)
        })?;
        let mut watch = Self {
            inotify: register(Descriptor(inotify)).map_err(Failure::internal)?,
            roots,
            directories: HashMap::new(),
            changed: None,
        };
        for root in watch.roots.all() {
            watch.add_root(&root)?;
        }
        Ok(watch)
    }

    fn add_root(&mut self, root: &Path) -> Result<(), Failure> {
        let is_directory = fs::symlink_metadata(root).is_ok_and(|it| it.is_dir());
        // A file is seen where it is, and a directory that is made anew.
        if let Some(parent) = root.parent()
            && let Err(errno) = self.add(parent)
            && !(is_directory && is_passed_over(errno))
        {
            return Err(not_watched(parent, errno));
        }
        if is_directory {
            let added = self.add(root);
            added.map_err(|errno| not_watched(root, errno))?;
            let added = self.add_below(root);
            added.map_err(|(below, errno)| not_watched(&below, errno))?;
        }
        Ok(())
    }

    /// Waits until something has changed, and then nothing for a moment; gives what it was,
    /// the first if there is more. Cancel-safe: no change is lost.
    pub(crate) async fn changed(&mut self) -> io::Result<PathBuf> {
        loop {
            let Some(changed) = self.changed.clone() else {
                self.changed = Some(self.next().await?);
                continue;
            };
            match timeout(QUIET, self.next()).await {
                Ok(more) => drop(more?),
                Err(_) => {
                    self.changed = None;
                    return Ok(changed);
                }
            }
        }
    }

    /// Takes what has changed up to now as told.
    pub(crate) fn pass_over(&mut self) {
        while let Ok(events) = self.inotify.get_ref().0.read_events() {
            self.take(events);
        }
        self.changed = None;
    }

    /// Waits for the next change. Cancel-safe.
    async fn next(&mut self) -> io::Result<PathBuf> {
        loop {
            let events = self.inotify.async_io(Interest::READABLE, |it| {
                it.0.read_events().map_err(io::Error::from)
            });
            if let Some(path) = events.await.map(|events| self.take(events))? {
                return Ok(path);
            }
        }
    }

    /// Gives the first of these events that is a change, and watches new directories.
    fn take(&mut self, events: Vec<InotifyEvent>) -> Option<PathBuf> {
        let changes: Vec<PathBuf> = events
            .into_iter()
            .filter_map(|event| self.take_one(event))
            .collect();
        changes.into_iter().next()
    }

    fn take_one(&mut self, event: InotifyEvent) -> Option<PathBuf> {
        let is = |flag| event.mask.contains(flag);
        if is(AddWatchFlags::IN_Q_OVERFLOW) {
            // Directories that have come meanwhile, too.
            let roots = self.roots.all();
            for root in &roots {
                self.add_later(root);
            }
            return roots.into_iter().next();
        }
        if is(AddWatchFlags::IN_IGNORED) {
            self.directories.remove(&event.wd);
            return None;
        }
        let path = self.directories.get(&event.wd)?.join(event.name?);
        if !self.roots.has(&path) {
            return None;
        }
        match (is(AddWatchFlags::IN_ISDIR), is(AddWatchFlags::IN_CREATE)) {
            (true, true) => self.add_later(&path),
            (true, false) => {
                // It has come or gone, with all that is in it.
                self.forget(&path);
                self.add_later(&path);
                Some(path)
            }
            // Its writer will close it.
            (false, true) if is_plain(&path) => None,
            (false, _) => Some(path),
        }
    }

    /// Watches a directory that was not there before; gives one of the files in it.
    fn add_later(&mut self, path: &Path) -> Option<PathBuf> {
        let added = match self.add(path) {
            Ok(()) => self.add_below(path),
            Err(errno) if is_passed_over(errno) => Ok(None),
            Err(errno) => Err((path.to_owned(), errno)),
        };
        added.unwrap_or_else(|(below, errno)| {
            report::warning(&not_watched(&below, errno).message);
            None
        })
    }

    /// Watches what is in a directory and in those below, as far as that may be read; gives
    /// one of the files.
    fn add_below(&mut self, top: &Path) -> Result<Option<PathBuf>, (PathBuf, Errno)> {
        let mut found = None;
        let mut rest = vec![top.to_owned()];
        while let Some(directory) = rest.pop() {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            for entry in entries {
                let path = entry.path();
                if !self.roots.has(&path) {
                    continue;
                }
                if !entry.file_type().is_ok_and(|it| it.is_dir()) {
                    found.get_or_insert(path);
                    continue;
                }
                match self.add(&path) {
                    Ok(()) => rest.push(path),
                    Err(errno) if is_passed_over(errno) => {}
                    Err(errno) => return Err((path, errno)),
                }
            }
        }
        Ok(found)
    }

    fn add(&mut self, directory: &Path) -> Result<(), Errno> {
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        let added = self.inotify.get_ref().0.add_watch(directory, events)?;
        self.directories.insert(added, directory.to_owned());
        Ok(())
    }

    fn forget(&mut self, top: &Path) {
        let inotify = &self.inotify.get_ref().0;
        self.directories.retain(|watched, directory| {
            let is_kept = !directory.starts_with(top);
            if !is_kept {
                // One that was deleted is not watched any more.
                let _ = inotify.rm_watch(*watched);
            }
            is_kept
        });
    }
}

/// Whether a directory may be left out: it is gone, or others' alone.
fn is_passed_over(errno: Errno) -> bool {
    [Errno::ENOENT, Errno::ENOTDIR, Errno::EACCES].contains(&errno)
}

/// Whether this is a file that somebody is writing, and no other name of one.
fn is_plain(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|it| it.is_file() && it.nlink() == 1)
}

fn not_watched(directory: &Path, errno: Errno) -> Failure {
    if errno == Errno::ENOSPC {
        return used_up(directory.display(), "max_user_watches");
    }
    Failure::new(
        Reason::Usage,
        format!(
            "{} cannot be watched: {}",
            directory.display(),
            errno.desc()
        ),
        "give --watch what you may read",
    )
}

/// A limit of the kernel's, which all programs of the user share.
fn used_up(what: impl Display, limit: &str) -> Failure {
    let now = fs::read_to_string(format!("/proc/sys/fs/inotify/{limit}")).unwrap_or_default();
    Failure::new(
        Reason::Usage,
        format!(
            "{what} cannot be watched: fs.inotify.{limit} is used up ({})",
            now.trim()
        ),
        format!("raise it with `sudo sysctl fs.inotify.{limit}=…`, or give --watch less"),
    )
}

#[expect(
    unsafe_code,
    reason = "tokio cannot check that a descriptor stays open"
)]
fn register(descriptor: Descriptor) -> io::Result<AsyncFd<Descriptor>> {
    // SAFETY: the descriptor is owned, and stays open and the same for as long as
    // the `AsyncFd` lives.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

#[cfg(test)]
mod tests;
