//! What of a container's file system may be seen, and how a path becomes a file.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::fs::{openat, openat2, statx};
use rustix::io::Errno;

/// No path leads out of what it begins in. The client's kernel follows the symbolic
/// links that it shows, so that none need be followed here.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// A volume of the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where the container has it mounted.
    pub path: PathBuf,
    pub read_only: bool,
}

/// A volume that cannot be shown.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be shown: {why}", path.display())]
pub struct NotExported {
    pub path: PathBuf,
    #[source]
    why: io::Error,
}

/// What may be seen. All else is not there.
#[derive(Debug)]
pub struct Exports {
    /// Longer paths first.
    exports: Vec<Export>,
}

#[derive(Debug)]
struct Export {
    /// Empty for the root.
    names: Vec<Vec<u8>>,
    /// Opened with O_PATH.
    file: OwnedFd,
    read_only: bool,
}

/// Where a path leads.
pub(super) enum Place<'a> {
    In(Spot<'a>),
    /// A directory that is there only because something below it is exported, and the
    /// names in it.
    Above(BTreeSet<&'a [u8]>),
}

/// A path within an export.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    export: &'a Export,
    /// Empty for the export itself.
    rest: &'a [u8],
}

impl Exports {
    /// Shows all of what is below the root.
    pub fn whole(root: &Path, read_only: bool) -> io::Result<Self> {
        let export = Export {
            names: Vec::new(),
            file: open_root(root)?,
            read_only,
        };
        let exports = vec![export];
        Ok(Self { exports })
    }

    /// Shows the volumes, where the container really has something mounted, and tells
    /// which cannot be shown.
    pub fn volumes(root: &Path, volumes: &[Volume]) -> io::Result<(Self, Vec<NotExported>)> {
        let root = open_root(root)?;
        let mut exports = Vec::new();
        let mut refused = Vec::new();
        for volume in volumes {
            match Export::volume(root.as_fd(), volume) {
                Ok(export) => exports.push(export),
                Err(why) => refused.push(NotExported {
                    path: volume.path.clone(),
                    why,
                }),
            }
        }
        exports.sort_by_key(|export| std::cmp::Reverse(export.names.len()));
        Ok((Self { exports }, refused))
    }

    /// Finds what a path is about.
    pub(super) fn find<'a>(&'a self, path: &'a [u8]) -> Result<Place<'a>, Errno> {
        let mut names = Vec::new();
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|_| !path.is_empty())
        {
            names.push(check_name(name)?);
        }
        for export in &self.exports {
            if names.len() >= export.names.len()
                && export.names.iter().zip(&names).all(|(a, b)| a == b)
            {
                let before: usize = export.names.iter().map(|name| name.len() + 1).sum();
                let rest = path.get(before..).unwrap_or_default();
                return Ok(Place::In(Spot { export, rest }));
            }
        }
        let below = self.exports.iter().filter(|export| {
            export.names.len() > names.len() && names.iter().zip(&export.names).all(|(a, b)| a == b)
        });
        let children: BTreeSet<&[u8]> = below.map(|e| e.names[names.len()].as_slice()).collect();
        match children.is_empty() && !names.is_empty() {
            true => Err(Errno::NOENT),
            false => Ok(Place::Above(children)),
        }
    }

    /// Finds a path that an export has.
    pub(super) fn spot<'a>(&'a self, path: &'a [u8]) -> Result<Spot<'a>, Errno> {
        match self.find(path)? {
            Place::In(spot) => Ok(spot),
            Place::Above(_) => Err(Errno::ROFS),
        }
    }

    /// Finds a path where something may be made or changed.
    pub(super) fn changeable<'a>(&'a self, path: &'a [u8]) -> Result<Spot<'a>, Errno> {
        let parent = path.rsplitn(2, |byte| *byte == b'/').nth(1);
        match self.spot(path) {
            Ok(spot) => spot.writable(),
            // Nothing can be made in a directory that the container does not have.
            Err(Errno::NOENT)
                if matches!(self.find(parent.unwrap_or_default()), Ok(Place::Above(_))) =>
            {
                Err(Errno::ROFS)
            }
            Err(errno) => Err(errno),
        }
    }
}

impl Export {
    fn volume(root: BorrowedFd, volume: &Volume) -> io::Result<Self> {
        let path = volume.path.as_os_str().as_bytes();
        let mut names = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            if !name.is_empty() {
                names.push(check_name(name)?.to_vec());
            }
        }
        // Links of the image may be on the way, as from /var/run to /run.
        let file = openat2(
            root,
            names.join(&b'/'),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )?;
        let stat = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE)?;
        if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(io::Error::other("the container has nothing mounted there"));
        }
        Ok(Self {
            names,
            file,
            read_only: volume.read_only,
        })
    }
}

impl<'a> Spot<'a> {
    /// Fails where the export is not to be changed.
    pub(super) fn writable(self) -> Result<Self, Errno> {
        match self.export.read_only {
            true => Err(Errno::ROFS),
            false => Ok(self),
        }
    }

    pub(super) fn is_read_only(self) -> bool {
        self.export.read_only
    }

    /// Opens it as a place only (O_PATH), a symbolic link as such.
    pub(super) fn open_path(self) -> Result<OwnedFd, Errno> {
        self.open(OFlags::PATH | OFlags::NOFOLLOW)
    }

    pub(super) fn open_directory(self) -> Result<OwnedFd, Errno> {
        self.open(OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn open(self, flags: OFlags) -> Result<OwnedFd, Errno> {
        if !self.rest.is_empty() {
            return beneath(self.export.file.as_fd(), self.rest, flags, Mode::empty());
        }
        match flags.contains(OFlags::PATH) {
            true => rustix::io::fcntl_dupfd_cloexec(&self.export.file, 0),
            false => reopen(self.export.file.as_fd(), flags),
        }
    }

    /// Opens the directory that it is in; its name is the second part.
    pub(super) fn open_parent(self) -> Result<(OwnedFd, &'a [u8]), Errno> {
        let (parent, name) = match self.rest.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.rest[..slash], &self.rest[slash + 1..]),
            None => (&self.rest[..0], self.rest),
        };
        if name.is_empty() {
            // What is mounted cannot be removed or replaced.
            return Err(Errno::BUSY);
        }
        let rest = parent;
        let parent = Self { rest, ..self }.open(OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((parent, name))
    }
}

/// Opens what a path leads to from a directory.
pub(super) fn beneath(
    directory: BorrowedFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    openat2(directory, path, flags | OFlags::CLOEXEC, mode, BENEATH)
}

/// Opens again what was opened with O_PATH.
pub(super) fn reopen(file: BorrowedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(CWD, by_number(file), flags | OFlags::CLOEXEC, Mode::empty())
}

/// A path to an open file, for what takes no descriptor that was opened with O_PATH.
pub(super) fn by_number(file: BorrowedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn check_name(name: &[u8]) -> Result<&[u8], Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        name if name.contains(&0) => Err(Errno::INVAL),
        name if name.len() > 255 => Err(Errno::NAMETOOLONG),
        name => Ok(name),
    }
}

fn open_root(root: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, root, flags, Mode::empty())?)
}
