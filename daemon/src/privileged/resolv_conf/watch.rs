//! Notices that a file is replaced or written.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// How long whoever writes it may take to come to an end.
const SETTLED: Duration = Duration::from_millis(100);

/// Watches the directories of a path and of the file that it leads to.
pub(in crate::privileged) struct Watch {
    inotify: AsyncFd<Descriptor>,
    names: BTreeSet<OsString>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    pub(in crate::privileged) fn new(path: &Path, target: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut names = BTreeSet::new();
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE;
        for path in [path, target] {
            let directory = path.parent().unwrap_or(Path::new("/"));
            inotify.add_watch(directory, events)?;
            names.extend(path.file_name().map(OsString::from));
        }
        Ok(Self {
            inotify: register(Descriptor(inotify))?,
            names,
        })
    }

    /// Resolves when the file may have changed.
    pub(in crate::privileged) async fn changed(&self) -> io::Result<()> {
        while !self
            .inotify
            .async_io(Interest::READABLE, |it| self.read(it))
            .await?
        {}
        sleep(SETTLED).await;
        // All that has come meanwhile is looked at as one.
        match self.read(self.inotify.get_ref()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Tells whether one of the events is of the file.
    fn read(&self, inotify: &Descriptor) -> io::Result<bool> {
        match inotify.0.read_events() {
            Ok(events) => Ok(events.iter().any(|event| {
                let is_ours = |name: &OsString| self.names.contains(name);
                // Without a name it tells of events that were lost.
                event.name.as_ref().is_none_or(is_ours)
            })),
            Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
            Err(error) => Err(error.into()),
        }
    }
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
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn replacing_and_writing_are_noticed_and_other_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (etc, run) = (dir.path().join("etc"), dir.path().join("run"));
        fs::create_dir(&etc).unwrap();
        fs::create_dir(&run).unwrap();
        let (link, target) = (etc.join("resolv.conf"), run.join("stub.conf"));
        fs::write(&target, "old").unwrap();
        symlink(&target, &link).unwrap();
        let watch = Watch::new(&link, &target).unwrap();
        let deadline = Duration::from_secs(10);

        fs::write(etc.join("hosts"), "x").unwrap();
        let nothing = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(nothing.is_err());

        fs::write(&target, "new").unwrap();
        timeout(deadline, watch.changed()).await.unwrap().unwrap();

        fs::write(etc.join("new"), "x").unwrap();
        fs::rename(etc.join("new"), &link).unwrap();
        timeout(deadline, watch.changed()).await.unwrap().unwrap();
    }
}
