//! Mounting /dev/fuse, for which CAP_SYS_ADMIN is needed.
//!
//! What is mounted is known by a descriptor all along, so that no path that its owner
//! changes meanwhile leads to something else.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use tracing::debug;

/// What mounts of kvpn are called in /proc/mounts: source and type.
const SOURCE: &str = "kvpn";
const TYPE: &str = "fuse.kvpn";

/// How much the kernel may read ahead of a program, in KiB: what a fast pipe holds that
/// is long, since the kernel's own default is 128.
const READ_AHEAD: u32 = 4096;

/// A file system that answers by /dev/fuse; seen once it is attached.
#[derive(Debug)]
pub struct Mount {
    file: OwnedFd,
    id: u64,
}

impl Mount {
    /// Makes a file system of which only this user is let in (with this group, see
    /// fuse(4)), and opens the /dev/fuse through which it is asked.
    pub fn open(uid: u32, gid: u32, read_only: bool) -> io::Result<(Self, OwnedFd)> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let number = device.as_raw_fd();
        for (key, value) in [
            ("source", SOURCE.to_owned()),
            ("subtype", SOURCE.to_owned()),
            ("fd", number.to_string()),
            ("rootmode", "40000".to_owned()),
            ("user_id", uid.to_string()),
            ("group_id", gid.to_string()),
        ] {
            fsconfig_set_string(&context, key, value)?;
        }
        fsconfig_create(&context)?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if read_only {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let file = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let id = mount_id(file.as_fd())?;
        Ok((Self { file, id }, device.into()))
    }

    /// The kernel's number of the mount (proc_pid_mountinfo(5)).
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Shows it in place of a directory, when somebody answers already.
    pub fn attach(&self, directory: BorrowedFd) -> io::Result<()> {
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&self.file, "", directory, "", flags)?;
        if let Err(error) = self.read_ahead() {
            debug!(%error, "The kernel reads ahead as much as it does by default");
        }
        Ok(())
    }

    /// Shows it no more. Who has a file open may go on, while somebody answers.
    pub fn detach(&self) -> io::Result<()> {
        detach(self.file.as_fd())
    }

    fn read_ahead(&self) -> io::Result<()> {
        let mounted = Mounted::all()?
            .into_iter()
            .find(|mounted| mounted.id == self.id);
        let device = mounted.ok_or(io::ErrorKind::NotFound)?.device;
        let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
        fs::write(setting, READ_AHEAD.to_string())
    }
}

/// Opens a directory for something to be attached there; no symbolic link may be on the
/// way, so that whoever names it knows which it is.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat2(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// The kernel's number of the mount that a path leads into. Asks nobody who answers for
/// a file system.
pub fn id_at(path: &Path) -> io::Result<u64> {
    mount_id(open_directory(path)?.as_fd())
}

/// Detaches those of these mounts that are still there, which another process made.
/// Tries all of them, and returns the first error.
pub fn detach_all(ids: &[u64]) -> io::Result<()> {
    let mut outcome = Ok(());
    for mounted in Mounted::all()? {
        if ids.contains(&mounted.id) && mounted.kind == TYPE {
            outcome = outcome.and(mounted.detach());
        }
    }
    outcome
}

fn detach(mount: BorrowedFd) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    Ok(unmount(path, UnmountFlags::DETACH)?)
}

/// A line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    id: u64,
    device: String,
    path: PathBuf,
    kind: String,
}

impl Mounted {
    fn all() -> io::Result<Vec<Self>> {
        let text = fs::read("/proc/self/mountinfo")?;
        Ok(text
            .split(|byte| *byte == b'\n')
            .filter_map(Self::parse)
            .collect())
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let text = |field: &[u8]| String::from_utf8(field.to_vec()).ok();
        let mut fields = line.split(|byte| *byte == b' ');
        let id = text(fields.next()?)?.parse().ok()?;
        let device = text(fields.nth(1)?)?;
        let path = unescape(fields.nth(1)?);
        // Optional ones come before a hyphen.
        fields.find(|field| *field == b"-")?;
        Some(Self {
            id,
            device,
            path: PathBuf::from(std::ffi::OsString::from_vec(path)),
            kind: text(fields.next()?)?,
        })
    }

    fn detach(&self) -> io::Result<()> {
        let file = open_directory(&self.path)?;
        // Its owner may have moved directories meanwhile.
        if mount_id(file.as_fd())? != self.id {
            return Err(io::Error::other(
                "another directory has the mount's name now",
            ));
        }
        detach(file.as_fd())
    }
}

/// Reads what is written as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| first == b'\\');
        let value = octal.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        path.push(value.unwrap_or(first));
        rest = if value.is_some() { &after[3..] } else { after };
    }
    path
}

fn mount_id(file: BorrowedFd) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let id = id.and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel does not tell a mount's number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_mountinfo_is_read_with_its_escapes() {
        let line = br"97 28 0:52 / /run/user/7/a\040b\134c rw,nosuid shared:4 - fuse.kvpn kvpn rw";
        let mounted = Mounted::parse(line).unwrap();
        let expected = Mounted {
            id: 97,
            device: "0:52".into(),
            path: r"/run/user/7/a b\c".into(),
            kind: TYPE.into(),
        };
        assert_eq!(mounted, expected);
        assert_eq!(Mounted::parse(b""), None);
    }
}
