//! What is known of a file besides its contents.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::fd::AsFd;

use kvpn_proto::v1::{FileAttributes, FileSystem};
use rustix::fs::{AtFlags, StatVfs, Statx, StatxFlags, StatxTimestamp, statx};
use rustix::io::Errno;

const NANOSECONDS: i64 = 1_000_000_000;

/// Of a file by its name in a directory, a symbolic link as such, or with an empty
/// name of the open file itself.
pub(super) fn of(directory: impl AsFd, name: &[u8]) -> Result<FileAttributes, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let fields = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    statx(directory, name, flags, fields).map(|stat| convert(&stat))
}

/// Of a directory that is not there in the container.
pub(super) fn invented(path: &[u8]) -> FileAttributes {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    FileAttributes {
        inode: hasher.finish(),
        mode: libc_mode::DIRECTORY | 0o555,
        links: 2,
        block_size: 4096,
        ..FileAttributes::default()
    }
}

/// Types in `st_mode`.
pub(super) mod libc_mode {
    pub(in super::super) const TYPE: u32 = 0o170_000;
    pub(in super::super) const DIRECTORY: u32 = 0o040_000;
    pub(in super::super) const REGULAR: u32 = 0o100_000;
    pub(in super::super) const LINK: u32 = 0o120_000;
    pub(in super::super) const PIPE: u32 = 0o010_000;
    pub(in super::super) const SOCKET: u32 = 0o140_000;
}

pub(super) fn is_regular(attributes: &FileAttributes) -> bool {
    attributes.mode & libc_mode::TYPE == libc_mode::REGULAR
}

fn convert(stat: &Statx) -> FileAttributes {
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    // The kernel's numbers have 12 and 20 bits.
    let device = u64::from(stat.stx_dev_major << 20 | stat.stx_dev_minor & 0xf_ffff);
    // A volume may be mounted twice, and be writable in one place only.
    let mount = match stat.stx_mask & StatxFlags::MNT_ID.bits() {
        0 => 0,
        _ => stat.stx_mnt_id,
    };
    FileAttributes {
        device: mount << 32 | device,
        inode: stat.stx_ino,
        born: if has_birth {
            nanoseconds(&stat.stx_btime).cast_unsigned()
        } else {
            0
        },
        mode: stat.stx_mode.into(),
        links: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        device_major: stat.stx_rdev_major,
        device_minor: stat.stx_rdev_minor,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        block_size: stat.stx_blksize,
        accessed: nanoseconds(&stat.stx_atime),
        modified: nanoseconds(&stat.stx_mtime),
        changed: nanoseconds(&stat.stx_ctime),
    }
}

fn nanoseconds(time: &StatxTimestamp) -> i64 {
    time.tv_sec
        .saturating_mul(NANOSECONDS)
        .saturating_add(time.tv_nsec.into())
}

/// A time as system calls want it.
pub(super) fn timespec(nanoseconds: i64) -> rustix::fs::Timespec {
    rustix::fs::Timespec {
        tv_sec: nanoseconds.div_euclid(NANOSECONDS),
        tv_nsec: nanoseconds.rem_euclid(NANOSECONDS),
    }
}

pub(super) fn file_system(stat: &StatVfs) -> FileSystem {
    FileSystem {
        block_size: stat.f_bsize,
        fragment_size: stat.f_frsize,
        blocks: stat.f_blocks,
        blocks_free: stat.f_bfree,
        blocks_available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        max_name: u32::try_from(stat.f_namemax).unwrap_or(255),
    }
}
