//! The kernel's terms.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, TimeOrNow};
use kvpn_proto::v1::{FileAttributes, FileTime};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::super::files::How;

pub(super) const EXCLUSIVE: i32 = OFlags::EXCL.bits().cast_signed();

/// Types in `st_mode`.
pub(super) mod type_of {
    pub(in super::super) const TYPE: u32 = 0o170_000;
    pub(in super::super) const DIRECTORY: u32 = 0o040_000;
    pub(in super::super) const LINK: u32 = 0o120_000;
    pub(in super::super) const PIPE: u32 = 0o010_000;
    pub(in super::super) const SOCKET: u32 = 0o140_000;
    pub(in super::super) const CHARACTERS: u32 = 0o020_000;
    pub(in super::super) const BLOCKS: u32 = 0o060_000;
}

pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(super) fn how(flags: OpenFlags) -> How {
    let set = |flag: OFlags| flags.0.cast_unsigned() & flag.bits() == flag.bits();
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    How {
        read,
        write,
        append: write && set(OFlags::APPEND),
        truncate: set(OFlags::TRUNC),
        sync: set(OFlags::SYNC) || set(OFlags::DSYNC),
    }
}

pub(super) fn time(time: TimeOrNow) -> FileTime {
    let at = match time {
        TimeOrNow::Now => None,
        TimeOrNow::SpecificTime(time) => Some(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => nanoseconds(after),
            Err(before) => -nanoseconds(before.duration()),
        }),
    };
    FileTime { at }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn system_time(nanoseconds: i64) -> SystemTime {
    let duration = Duration::from_nanos(nanoseconds.unsigned_abs());
    match nanoseconds < 0 {
        true => UNIX_EPOCH - duration,
        false => UNIX_EPOCH + duration,
    }
}

pub(super) fn attributes(id: u64, found: &FileAttributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: found.size,
        blocks: found.blocks,
        atime: system_time(found.accessed),
        mtime: system_time(found.modified),
        ctime: system_time(found.changed),
        crtime: UNIX_EPOCH,
        kind: kind(found.mode),
        perm: u16::try_from(found.mode & 0o7777).unwrap_or_default(),
        nlink: found.links,
        uid: found.uid,
        gid: found.gid,
        rdev: device(found.device_major, found.device_minor),
        blksize: found.block_size,
        flags: 0,
    }
}

/// A directory of which nothing else is known.
pub(super) fn directory(id: u64) -> FileAttr {
    let found = FileAttributes {
        mode: type_of::DIRECTORY,
        ..FileAttributes::default()
    };
    attributes(id, &found)
}

fn kind(mode: u32) -> FileType {
    match mode & type_of::TYPE {
        type_of::DIRECTORY => FileType::Directory,
        type_of::LINK => FileType::Symlink,
        type_of::PIPE => FileType::NamedPipe,
        type_of::SOCKET => FileType::Socket,
        type_of::CHARACTERS => FileType::CharDevice,
        type_of::BLOCKS => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

/// As the kernel packs it into 32 bits.
fn device(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_on_both_sides_of_1970_are_kept() {
        for at in [0, 1, -1, 1_700_000_000_123_456_789, -1_500_000_000] {
            let there = system_time(at);
            assert_eq!(time(TimeOrNow::SpecificTime(there)).at, Some(at));
        }
        assert_eq!(time(TimeOrNow::Now).at, None);
    }

    #[test]
    fn program_that_appends_writes() {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::TRUNC;
        let how = how(OpenFlags(flags.bits().cast_signed()));
        assert!(how.write && how.append && how.truncate && !how.read && !how.sync);
    }
}
