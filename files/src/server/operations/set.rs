//! Changing what is known of a file besides its contents.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kvpn_proto::v1::file_name::Name;
use kvpn_proto::v1::{FileAttributes, FileSetAttributes, FileTime};
use rustix::fs::{
    self, AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::Errno;

use super::super::attributes::{self, timespec};
use super::super::exports::{by_number, reopen};
use super::super::handles::Handle;
use super::{Files, name};

/// A file by either of its names.
enum Found {
    Open(Arc<Handle>),
    Place(OwnedFd),
}

impl AsFd for Found {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Open(handle) => handle.as_fd(),
            Self::Place(place) => place.as_fd(),
        }
    }
}

impl Files {
    pub(super) fn set_attributes(
        &self,
        wanted: &FileSetAttributes,
    ) -> Result<FileAttributes, Errno> {
        let found = match name(wanted.file.clone())? {
            Name::Handle(handle) => match self.handles.get(handle)? {
                handle if handle.read_only => return Err(Errno::ROFS),
                handle => Found::Open(handle),
            },
            Name::Path(path) => Found::Place(self.exports.changeable(&path)?.open_path()?),
        };
        if let Some(size) = wanted.size {
            resize(&found, size)?;
        }
        // A change of the owner takes set-user-id away, so that the mode comes after.
        if wanted.uid.is_some() || wanted.gid.is_some() {
            let (uid, gid) = (wanted.uid.map(Uid::from_raw), wanted.gid.map(Gid::from_raw));
            fs::chownat(&found, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = wanted.mode {
            fs::chmod(by_number(found.as_fd()), Mode::from_raw_mode(mode & 0o7777))?;
        }
        if wanted.accessed.is_some() || wanted.modified.is_some() {
            let times = Timestamps {
                last_access: time(wanted.accessed.as_ref()),
                last_modification: time(wanted.modified.as_ref()),
            };
            fs::utimensat(CWD, by_number(found.as_fd()), &times, AtFlags::empty())?;
        }
        attributes::of(&found, b"")
    }
}

fn resize(found: &Found, size: u64) -> Result<(), Errno> {
    match found {
        Found::Open(handle) => fs::ftruncate(&handle.file, size),
        Found::Place(place) => {
            super::check_regular(&attributes::of(place, b"")?)?;
            let file = reopen(place.as_fd(), OFlags::WRONLY | OFlags::NONBLOCK)?;
            fs::ftruncate(file, size)
        }
    }
}

fn time(wanted: Option<&FileTime>) -> Timespec {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match wanted {
        None => special(UTIME_OMIT),
        Some(FileTime { at: None }) => special(UTIME_NOW),
        Some(FileTime { at: Some(at) }) => timespec(*at),
    }
}
