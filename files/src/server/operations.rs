//! What is done for each request. Everything here may block.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use kvpn_proto::v1::file_name::Name;
use kvpn_proto::v1::files_answer::Result as Answer;
use kvpn_proto::v1::files_request::Op;
use kvpn_proto::v1::{
    FileAccess, FileAllocate, FileAttributes, FileLink, FileList, FileListing, FileMakeNode,
    FileName, FileOpen, FileOpened, FilePeek, FileRead, FileRemove, FileRename, FileSeek,
    FileSetXattr, FileSync, FileSystem, FileWrite, FileXattrs,
};
use rustix::fs::{
    self, Access, AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom,
    XattrFlags,
};
use rustix::io::{Errno, pwrite};

use super::attributes::{self, libc_mode};
use super::exports::{Exports, Place, beneath, by_number, reopen};
use super::handles::{Handle, Handles};
use super::listing;
use crate::MAX_DATA;

mod set;

/// The longest extended attribute, and list of their names, in bytes (xattr(7)).
const MAX_XATTR: usize = 64 << 10;

/// What one stream sees and has opened.
#[derive(Debug)]
pub(super) struct Files {
    exports: Arc<Exports>,
    handles: Handles,
}

/// `None` is an answer that says only that it is done.
type Done = Result<Option<Answer>, Errno>;

impl Files {
    pub(super) fn new(exports: Arc<Exports>) -> Self {
        let handles = Handles::default();
        Self { exports, handles }
    }

    pub(super) fn release(&self, handle: u64) {
        self.handles.remove(handle);
    }

    pub(super) fn perform(&self, op: Op) -> Done {
        let answer = match op {
            Op::Stat(stat) => Answer::Attributes(self.stat(stat.file)?),
            Op::List(list) => Answer::Listing(self.list(&list)?),
            Op::Peek(peek) => Answer::Listing(self.peek(&peek)?),
            Op::Open(open) => Answer::Opened(self.open(&open)?),
            Op::Read(read) => Answer::Data(self.read(&read)?),
            Op::Write(write) => Answer::Offset(self.write(&write)?),
            Op::MakeNode(node) => Answer::Attributes(self.make_node(&node)?),
            Op::Link(link) => Answer::Attributes(self.link(&link)?),
            Op::ReadLink(link) => Answer::Data(self.read_link(&link.path)?),
            Op::SetAttributes(wanted) => Answer::Attributes(self.set_attributes(&wanted)?),
            Op::Seek(seek) => Answer::Offset(self.seek(&seek)?),
            Op::GetXattr(get) => Answer::Data(self.get_xattr(&get.path, &get.name)?),
            Op::ListXattrs(list) => Answer::Xattrs(self.list_xattrs(&list.path)?),
            Op::SystemStat(stat) => Answer::System(self.system_stat(&stat.path)?),
            Op::Release(release) => {
                return self.nothing(|files| {
                    files.release(release.handle);
                    Ok(())
                });
            }
            Op::Remove(remove) => return self.nothing(|files| files.remove(&remove)),
            Op::Rename(rename) => return self.nothing(|files| files.rename(&rename)),
            Op::Sync(sync) => return self.nothing(|files| files.sync(sync)),
            Op::Allocate(allocate) => return self.nothing(|files| files.allocate(&allocate)),
            Op::SetXattr(set) => return self.nothing(|files| files.set_xattr(&set)),
            Op::RemoveXattr(remove) => {
                return self.nothing(|files| {
                    let file = files.exports.changeable(&remove.path)?.open_path()?;
                    fs::removexattr(by_number(file.as_fd()), &remove.name[..])
                });
            }
            Op::Access(access) => return self.nothing(|files| files.access(&access)),
        };
        Ok(Some(answer))
    }

    fn nothing(&self, act: impl FnOnce(&Self) -> Result<(), Errno>) -> Done {
        act(self).map(|()| None)
    }

    fn stat(&self, file: Option<FileName>) -> Result<FileAttributes, Errno> {
        match name(file)? {
            Name::Handle(handle) => attributes::of(&*self.handles.get(handle)?, b""),
            Name::Path(path) => self.stat_path(&path),
        }
    }

    fn stat_path(&self, path: &[u8]) -> Result<FileAttributes, Errno> {
        match self.exports.find(path)? {
            Place::In(spot) => attributes::of(spot.open_path()?, b""),
            Place::Above(_) => Ok(attributes::invented(path)),
        }
    }

    fn list(&self, list: &FileList) -> Result<FileListing, Errno> {
        match self.exports.find(&list.path)? {
            Place::In(spot) => listing::list(&spot.open_directory()?, list.from),
            Place::Above(names) => Ok(listing::list_invented(&names, list.from, |name| {
                self.stat_path(&join(&list.path, name))
            })),
        }
    }

    fn peek(&self, peek: &FilePeek) -> Result<FileListing, Errno> {
        match self.exports.find(&peek.path)? {
            Place::In(spot) => {
                let directory = spot.open_directory()?;
                Ok(listing::peek(&directory, &peek.names, peek.max_content))
            }
            // These are few.
            Place::Above(_) => Ok(FileListing::default()),
        }
    }

    fn open(&self, open: &FileOpen) -> Result<FileOpened, Errno> {
        let changes = open.write || open.append || open.truncate || open.create.is_some();
        let spot = match changes {
            true => self.exports.changeable(&open.path)?,
            false => self.exports.spot(&open.path)?,
        };
        // Nobody is to wait for the other end of a pipe.
        let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        flags |= match (open.read, open.write || open.append) {
            (_, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
        };
        for (wanted, flag) in [
            (open.append, OFlags::APPEND),
            (open.truncate, OFlags::TRUNC),
            (open.sync, OFlags::SYNC),
        ] {
            if wanted {
                flags |= flag;
            }
        }
        let file = match &open.create {
            Some(create) => {
                if create.exclusive {
                    flags |= OFlags::EXCL;
                }
                let (parent, name) = spot.open_parent()?;
                let mode = Mode::from_raw_mode(create.mode & 0o7777);
                let flags = flags | OFlags::CREATE | OFlags::NOFOLLOW;
                beneath(parent.as_fd(), name, flags, mode)?
            }
            None => {
                let place = spot.open_path()?;
                // Before it is opened, which does something with a device or a pipe.
                check_regular(&attributes::of(&place, b"")?)?;
                reopen(place.as_fd(), flags)?
            }
        };
        let found = attributes::of(&file, b"")?;
        check_regular(&found)?;
        let content = match open.read {
            true => listing::content(&file, &found, open.max_content),
            false => None,
        };
        let read_only = spot.is_read_only();
        Ok(FileOpened {
            handle: self.handles.add(Handle { file, read_only })?,
            attributes: Some(found),
            content,
        })
    }

    fn read(&self, read: &FileRead) -> Result<Bytes, Errno> {
        let file = self.handles.get(read.handle)?;
        let size = read.size.min(MAX_DATA) as usize;
        listing::read(&*file, read.offset, size).map(Bytes::from)
    }

    fn write(&self, write: &FileWrite) -> Result<u64, Errno> {
        let file = self.handles.get(write.handle)?;
        let mut written = 0;
        while written < write.data.len() {
            let rest = &write.data[written..];
            match pwrite(&*file, rest, write.offset + written as u64) {
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                // The part that was written is told of, as write(2) does.
                Err(_) if written > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(written as u64)
    }

    fn make_node(&self, node: &FileMakeNode) -> Result<FileAttributes, Errno> {
        let (parent, name) = self.exports.changeable(&node.path)?.open_parent()?;
        let mode = Mode::from_raw_mode(node.mode & 0o7777);
        match node.mode & libc_mode::TYPE {
            libc_mode::DIRECTORY => fs::mkdirat(&parent, name, mode)?,
            libc_mode::LINK => fs::symlinkat(&node.target[..], &parent, name)?,
            libc_mode::REGULAR => make(&parent, name, FileType::RegularFile, mode)?,
            libc_mode::PIPE => make(&parent, name, FileType::Fifo, mode)?,
            libc_mode::SOCKET => make(&parent, name, FileType::Socket, mode)?,
            _ => return Err(Errno::PERM),
        }
        attributes::of(&parent, name)
    }

    fn remove(&self, remove: &FileRemove) -> Result<(), Errno> {
        let (parent, name) = self.exports.changeable(&remove.path)?.open_parent()?;
        let flags = match remove.directory {
            true => AtFlags::REMOVEDIR,
            false => AtFlags::empty(),
        };
        fs::unlinkat(parent, name, flags)
    }

    fn rename(&self, rename: &FileRename) -> Result<(), Errno> {
        let (from, name) = self.exports.changeable(&rename.from)?.open_parent()?;
        let (to, new_name) = self.exports.changeable(&rename.to)?.open_parent()?;
        let flags = RenameFlags::from_bits(rename.flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::INVAL);
        }
        fs::renameat_with(from, name, to, new_name, flags)
    }

    fn link(&self, link: &FileLink) -> Result<FileAttributes, Errno> {
        let (from, name) = self.exports.changeable(&link.from)?.open_parent()?;
        let (to, new_name) = self.exports.changeable(&link.to)?.open_parent()?;
        fs::linkat(from, name, &to, new_name, AtFlags::empty())?;
        attributes::of(&to, new_name)
    }

    fn read_link(&self, path: &[u8]) -> Result<Bytes, Errno> {
        let link = self.exports.spot(path)?.open_path()?;
        let target = fs::readlinkat(link, "", Vec::new())?;
        Ok(target.into_bytes().into())
    }

    fn sync(&self, sync: FileSync) -> Result<(), Errno> {
        let flush = |file: &OwnedFd| match sync.data_only {
            true => fs::fdatasync(file),
            false => fs::fsync(file),
        };
        match name(sync.file)? {
            Name::Handle(handle) => flush(&self.handles.get(handle)?.file),
            Name::Path(path) => match self.exports.find(&path)? {
                Place::In(spot) => flush(&spot.open_directory()?),
                Place::Above(_) => Ok(()),
            },
        }
    }

    fn allocate(&self, allocate: &FileAllocate) -> Result<(), Errno> {
        let file = self.handles.get(allocate.handle)?;
        let mode = FallocateFlags::from_bits(allocate.mode).ok_or(Errno::OPNOTSUPP)?;
        fs::fallocate(&*file, mode, allocate.offset, allocate.length)
    }

    fn seek(&self, seek: &FileSeek) -> Result<u64, Errno> {
        let file = self.handles.get(seek.handle)?;
        // Where the handle stands does not matter to anybody else.
        fs::seek(
            &*file,
            match seek.hole {
                true => SeekFrom::Hole(seek.offset),
                false => SeekFrom::Data(seek.offset),
            },
        )
    }

    fn get_xattr(&self, path: &[u8], name: &[u8]) -> Result<Bytes, Errno> {
        let file = self.exports.spot(path)?.open_path()?;
        let mut value = vec![0; MAX_XATTR];
        let size = fs::getxattr(by_number(file.as_fd()), name, &mut value[..])?;
        Ok(Bytes::copy_from_slice(&value[..size]))
    }

    fn list_xattrs(&self, path: &[u8]) -> Result<FileXattrs, Errno> {
        let file = self.exports.spot(path)?.open_path()?;
        let mut list = vec![0; MAX_XATTR];
        let size = fs::listxattr(by_number(file.as_fd()), &mut list[..])?;
        let names = list[..size].split(|byte| *byte == 0);
        let names = names.filter(|name| !name.is_empty());
        Ok(FileXattrs {
            names: names.map(Bytes::copy_from_slice).collect(),
        })
    }

    fn set_xattr(&self, set: &FileSetXattr) -> Result<(), Errno> {
        let file = self.exports.changeable(&set.path)?.open_path()?;
        let flags = XattrFlags::from_bits(set.flags).ok_or(Errno::INVAL)?;
        fs::setxattr(by_number(file.as_fd()), &set.name[..], &set.value, flags)
    }

    fn system_stat(&self, path: &[u8]) -> Result<FileSystem, Errno> {
        match self.exports.find(path)? {
            Place::In(spot) => Ok(attributes::file_system(&fs::fstatvfs(spot.open_path()?)?)),
            Place::Above(_) => Ok(FileSystem {
                max_name: 255,
                ..FileSystem::default()
            }),
        }
    }

    fn access(&self, access: &FileAccess) -> Result<(), Errno> {
        let wanted = Access::from_bits(access.mask).ok_or(Errno::INVAL)?;
        let spot = match self.exports.find(&access.path)? {
            Place::In(spot) => spot,
            Place::Above(_) if wanted.contains(Access::WRITE_OK) => return Err(Errno::ROFS),
            Place::Above(_) => return Ok(()),
        };
        if wanted.contains(Access::WRITE_OK) {
            spot.writable()?;
        }
        fs::access(by_number(spot.open_path()?.as_fd()), wanted)
    }
}

fn make(parent: &OwnedFd, name: &[u8], kind: FileType, mode: Mode) -> Result<(), Errno> {
    fs::mknodat(parent, name, kind, mode, 0)
}

fn name(file: Option<FileName>) -> Result<Name, Errno> {
    file.and_then(|file| file.name).ok_or(Errno::INVAL)
}

fn check_regular(attributes: &FileAttributes) -> Result<(), Errno> {
    match attributes.mode & libc_mode::TYPE {
        libc_mode::REGULAR => Ok(()),
        libc_mode::DIRECTORY => Err(Errno::ISDIR),
        libc_mode::LINK => Err(Errno::LOOP),
        _ => Err(Errno::NXIO),
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    match path.is_empty() {
        true => name.to_vec(),
        false => [path, b"/", name].concat(),
    }
}
