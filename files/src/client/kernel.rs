//! The kernel's requests, as fuser gives them. None waits here for an answer.

mod convert;
mod replies;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use kvpn_proto::v1::file_name::Name;
use kvpn_proto::v1::files_answer::Result as Answer;
use kvpn_proto::v1::files_request::Op;
use kvpn_proto::v1::{
    FileAccess, FileCreate, FileGetXattr, FileListXattrs, FileName, FileRemoveXattr,
    FileSetAttributes, FileSetXattr, FileSync, FileSystemStat,
};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::LEASE;
use super::core::{Core, Entered};
use super::directories::{Directory, Listing};
use super::link::data;
use super::table::lock;
use crate::MAX_DATA;
use convert::{attributes, directory, how, time, type_of};
use replies::{Fails, send_xattr};

/// How many requests of read-ahead the kernel may have under way.
const BACKGROUND: u16 = 64;

/// Nothing is told twice by one number.
const GENERATION: Generation = Generation(0);

/// What the kernel of a laptop makes of these is not what a pod's does: labels, and
/// what a program may do. They are neither shown nor set.
const HIDDEN: &[u8] = b"security.";

const XATTR_CREATE: u32 = 1;

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

pub(super) struct Kernel {
    core: Arc<Core>,
    runtime: Handle,
}

impl Kernel {
    pub(super) fn new(core: Arc<Core>, runtime: Handle) -> Self {
        Self { core, runtime }
    }

    /// Has the work done in time, and the kernel told of what comes of it.
    fn answer<R, T, W>(
        &self,
        reply: R,
        work: impl FnOnce(Arc<Core>) -> W,
        tell: impl FnOnce(R, T) + Send + 'static,
    ) where
        R: Fails,
        T: Send + 'static,
        W: Future<Output = Result<T, Errno>> + Send + 'static,
    {
        let core = self.core.clone();
        let work = work(core.clone());
        let mut work = Box::pin(async move { core.link.in_time(work).await });
        let answer = |reply: R, done| match done {
            Ok(done) => tell(reply, done),
            Err(errno) => reply.fail(errno),
        };
        let _context = self.runtime.enter();
        // What is known already is told at once: to wake a thread takes longer.
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => answer(reply, done),
            Poll::Pending => {
                self.runtime.spawn(async move { answer(reply, work.await) });
            }
        }
    }

    fn entry<W>(&self, reply: ReplyEntry, work: impl FnOnce(Arc<Core>) -> W)
    where
        W: Future<Output = Result<Entered, Errno>> + Send + 'static,
    {
        self.answer(reply, work, |reply, entered: Entered| {
            let lease = LEASE.saturating_sub(entered.at.elapsed());
            let attributes = attributes(entered.id, &entered.attributes);
            reply.entry(&lease, &attributes, GENERATION);
        });
    }

    fn done<W>(&self, reply: ReplyEmpty, work: impl FnOnce(Arc<Core>) -> W)
    where
        W: Future<Output = Result<(), Errno>> + Send + 'static,
    {
        self.answer(reply, work, |reply, ()| reply.ok());
    }
}

impl Filesystem for Kernel {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            // What is read again after the file has changed is read anew.
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_ASYNC_DIO,
            // Or else each write asks whether the file has capabilities.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            // An older kernel is slower without.
            let _ = config.add_capabilities(wanted);
        }
        // Both take less than they could.
        let _ = config.set_max_write(MAX_DATA);
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = bytes(name);
        self.entry(
            reply,
            |core| async move { core.look_up(parent.0, name).await },
        );
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.core.forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            reply,
            |core| async move { core.stat(ino.0).await },
            move |reply, (found, lease)| reply.attr(&lease, &attributes(ino.0, &found)),
        );
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let wanted = FileSetAttributes {
            file: None,
            mode,
            uid,
            gid,
            size,
            accessed: accessed.map(time),
            modified: modified.map(time),
        };
        self.answer(
            reply,
            |core| async move { core.set(ino.0, fh.map(|fh| fh.0), wanted).await },
            move |reply, found| reply.attr(&LEASE, &attributes(ino.0, &found)),
        );
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            reply,
            |core| async move { core.read_link(ino.0).await },
            |reply, target: Bytes| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let name = bytes(name);
        self.entry(reply, |core| async move {
            core.make(parent.0, name, mode, Bytes::new()).await
        });
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let name = bytes(name);
        let mode = type_of::DIRECTORY | mode & 0o7777;
        self.entry(reply, |core| async move {
            core.make(parent.0, name, mode, Bytes::new()).await
        });
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target) = (bytes(name), bytes(target.as_os_str()));
        self.entry(reply, |core| async move {
            core.make(parent.0, name, type_of::LINK | 0o777, target)
                .await
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.done(reply, |core| async move {
            core.remove(parent.0, name, false).await
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        self.done(reply, |core| async move {
            core.remove(parent.0, name, true).await
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (parent.0, bytes(name));
        let to = (new_parent.0, bytes(new_name));
        let flags = flags.bits();
        self.done(
            reply,
            |core| async move { core.rename(from, to, flags).await },
        );
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = bytes(new_name);
        self.entry(reply, |core| async move {
            core.link_to(ino.0, new_parent.0, name).await
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.answer(
            reply,
            |core| async move { core.open(ino.0, how(flags)).await },
            |reply, (fh, is_sizeless)| {
                // Or else the kernel would not read beyond its size.
                let flags = match is_sizeless {
                    true => FopenFlags::FOPEN_DIRECT_IO,
                    false => FopenFlags::empty(),
                };
                reply.opened(FileHandle(fh), flags);
            },
        );
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = bytes(name);
        let how = how(OpenFlags(flags));
        let exclusive = flags & convert::EXCLUSIVE != 0;
        let create = FileCreate { mode, exclusive };
        self.answer(
            reply,
            |core| async move { core.create(parent.0, name, how, create).await },
            |reply, (entered, fh): (Entered, u64)| {
                let lease = LEASE.saturating_sub(entered.at.elapsed());
                let attributes = attributes(entered.id, &entered.attributes);
                let flags = FopenFlags::empty();
                reply.created(&lease, &attributes, GENERATION, FileHandle(fh), flags);
            },
        );
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(
            reply,
            |core| async move { core.read(fh.0, offset, size).await },
            |reply, data: Bytes| reply.data(&data),
        );
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        self.answer(
            reply,
            |core| async move { core.write(fh.0, offset, data).await },
            |reply, written| reply.written(written),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // What is written has arrived already; the kernel need not ask again.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(file) = self.core.close(fh.0) {
            let core = self.core.clone();
            self.runtime.spawn(async move { core.release(file).await });
        }
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.done(
            reply,
            |core| async move { core.sync(fh.0, data_only).await },
        );
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let fh = self.core.directories.add(Directory::new(ino.0));
        reply.opened(FileHandle(fh), FopenFlags::empty());
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answer(
            Filling(reply),
            |core| async move {
                let directory = core.directories.get(fh.0)?;
                // Two are before those of the server.
                let mut listing = directory.listing.clone().lock_owned().await;
                listing
                    .seek(&core, directory.id, offset.saturating_sub(2))
                    .await?;
                Ok((core, directory.id, listing))
            },
            move |Filling(mut reply), (core, id, mut listing)| {
                fill(&core, id, &mut listing, offset, &mut reply);
                reply.ok();
            },
        );
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.core.directories.remove(fh.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.done(reply, |core| async move {
            let sync = |path| {
                let name = Some(Name::Path(path));
                let file = Some(FileName { name });
                Op::Sync(FileSync { file, data_only })
            };
            core.ask_of(ino.0, sync).await.map(drop)
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(
            reply,
            |core| async move {
                let stat = |path| Op::SystemStat(FileSystemStat { path });
                match core.ask_of(ino.0, stat).await? {
                    Some(Answer::System(system)) => Ok(system),
                    _ => Err(Errno::PROTO),
                }
            },
            |reply, system| {
                reply.statfs(
                    system.blocks,
                    system.blocks_free,
                    system.blocks_available,
                    system.files,
                    system.files_free,
                    u32::try_from(system.block_size).unwrap_or(4096),
                    system.max_name,
                    u32::try_from(system.fragment_size).unwrap_or(4096),
                );
            },
        );
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (bytes(name), Bytes::copy_from_slice(value));
        if name.starts_with(HIDDEN) {
            return reply.fail(Errno::OPNOTSUPP);
        }
        let flags = flags.cast_unsigned();
        self.done(reply, |core| async move {
            let set = |path| {
                Op::SetXattr(FileSetXattr {
                    path,
                    name,
                    value,
                    flags,
                })
            };
            match flags & XATTR_CREATE != 0 {
                true => core.ask_at_once(ino.0, set).await.map(drop),
                false => core.ask_of(ino.0, set).await.map(drop),
            }
        });
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = bytes(name);
        if name.starts_with(HIDDEN) {
            return reply.fail(Errno::NODATA);
        }
        self.answer(
            reply,
            |core| async move {
                let get = |path| Op::GetXattr(FileGetXattr { path, name });
                data(core.ask_of(ino.0, get).await?)
            },
            move |reply, value: Bytes| send_xattr(reply, size, &value),
        );
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(
            reply,
            |core| async move {
                let list = |path| Op::ListXattrs(FileListXattrs { path });
                let Some(Answer::Xattrs(xattrs)) = core.ask_of(ino.0, list).await? else {
                    return Err(Errno::PROTO);
                };
                let shown = xattrs.names.iter().filter(|name| !name.starts_with(HIDDEN));
                Ok(shown.flat_map(|name| [name, &b"\0"[..]].concat()).collect())
            },
            move |reply, list: Vec<u8>| send_xattr(reply, size, &list),
        );
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = bytes(name);
        if name.starts_with(HIDDEN) {
            return reply.fail(Errno::NODATA);
        }
        self.done(reply, |core| async move {
            let remove = |path| Op::RemoveXattr(FileRemoveXattr { path, name });
            core.ask_at_once(ino.0, remove).await.map(drop)
        });
    }

    fn access(&self, _: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let mask = mask.bits().cast_unsigned();
        self.done(reply, |core| async move {
            let access = |path| Op::Access(FileAccess { path, mask });
            core.ask_of(ino.0, access).await.map(drop)
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = mode.cast_unsigned();
        self.done(reply, |core| async move {
            core.allocate(fh.0, mode, offset, length).await
        });
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.answer(
            reply,
            |core| async move {
                let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
                let hole = match whence {
                    SEEK_HOLE => true,
                    SEEK_DATA => false,
                    _ => return Err(Errno::INVAL),
                };
                let found = core.seek(fh.0, offset, hole).await?;
                i64::try_from(found).map_err(|_| Errno::OVERFLOW)
            },
            |reply, offset| reply.offset(offset),
        );
    }
}

/// A listing to be filled.
struct Filling(ReplyDirectoryPlus);

impl Fails for Filling {
    fn fail(self, errno: Errno) {
        self.0.error(convert::errno(errno));
    }
}

/// Tells the kernel of as many entries as it takes.
fn fill(core: &Core, id: u64, listing: &mut Listing, offset: u64, reply: &mut ReplyDirectoryPlus) {
    let mut offset = offset;
    for (own, name) in [(0, "."), (1, "..")] {
        if offset == own {
            offset += 1;
            // Neither is counted.
            if reply.add(
                INodeNo(id),
                offset,
                name,
                &Duration::ZERO,
                &directory(id),
                GENERATION,
            ) {
                return;
            }
        }
    }
    while let Some((entry, at, epoch)) = listing.front() {
        if let Some(found) = &entry.attributes {
            let lease = match lock(&core.nodes).is_listing_true(id, epoch, at) {
                true => LEASE.saturating_sub(at.elapsed()),
                false => Duration::ZERO,
            };
            let entered = core.enter((epoch, at), id, &entry.name, *found);
            let attributes = attributes(entered.id, found);
            let name = OsStr::from_bytes(&entry.name);
            let ino = INodeNo(entered.id);
            if reply.add(ino, offset + 1, name, &lease, &attributes, GENERATION) {
                core.forget(entered.id, 1);
                return;
            }
        }
        offset += 1;
        listing.advance();
    }
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}
