//! Files that are open on the laptop, and on whatever server there is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use kvpn_proto::v1::file_name::Name;
use kvpn_proto::v1::files_answer::Result as Answer;
use kvpn_proto::v1::files_request::Op;
use kvpn_proto::v1::{
    FileAllocate, FileAttributes, FileCreate, FileName, FileOpen, FileOpened, FileRead, FileSeek,
    FileSync, FileWrite,
};
use rustix::io::Errno;
use tokio::sync::Mutex as AsyncMutex;

use super::content::Content;
use super::core::{Core, Entered};
use super::link::{Link, Lost, Stream, data};
use super::nodes::Key;
use super::table::lock;
use crate::{MAX_CONTENT, MAX_DATA};

/// How a program has opened a file.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) append: bool,
    pub(super) truncate: bool,
    pub(super) sync: bool,
}

#[derive(Debug)]
pub(super) struct OpenFile {
    id: u64,
    how: How,
    server: AsyncMutex<Option<ServerFile>>,
    content: Mutex<Option<Content>>,
    /// With which stream something was written that may not be on a disk.
    unsynced: Mutex<Option<u64>>,
    /// Which file it was when it was opened last, here or there.
    key: Mutex<Option<Key>>,
    /// Whether a program has some of its contents.
    was_read: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct ServerFile {
    epoch: u64,
    handle: u64,
    key: Option<Key>,
}

/// Something that is still to be synced, unless it is taken from here.
struct Unsynced<'a> {
    file: &'a OpenFile,
    written: Option<u64>,
}

impl Drop for Unsynced<'_> {
    fn drop(&mut self) {
        if let Some(written) = self.written {
            *lock(&self.file.unsynced) = Some(written);
        }
    }
}

impl OpenFile {
    fn new(id: u64, how: How, server: Option<ServerFile>, content: Option<Content>) -> Arc<Self> {
        let key = match (&server, &content) {
            (Some(server), _) => server.key,
            (None, Some(content)) => Some(Key::from(&content.attributes)),
            (None, None) => None,
        };
        Arc::new(Self {
            key: Mutex::new(key),
            was_read: AtomicBool::new(false),
            id,
            how,
            server: AsyncMutex::new(server),
            content: Mutex::new(content),
            unsynced: Mutex::new(None),
        })
    }

    /// What is known of it, and since when.
    pub(super) fn known(&self, version: u64) -> Option<(FileAttributes, Instant)> {
        let content = lock(&self.content);
        let content = content
            .as_ref()
            .filter(|content| content.is_fresh(version))?;
        Some((content.attributes, content.at))
    }

    /// The present stream, and the handle that it has of the file, if any.
    pub(super) async fn present_handle(&self, link: &Link) -> Option<(Stream, u64)> {
        let stream = link.present()?;
        let server = *self.server.lock().await;
        let server = server.filter(|server| server.epoch == stream.epoch)?;
        Some((stream, server.handle))
    }

    /// A part of it, if all of it is known.
    fn part(&self, version: u64, offset: u64, size: u32) -> Option<Bytes> {
        let mut content = lock(&self.content);
        if content.as_ref().is_some_and(|c| !c.is_fresh(version)) {
            *content = None;
        }
        content.as_ref()?.part(offset, size)
    }

    /// Whether it may be read or written where this file is found in its place.
    fn takes(&self, found: Option<Key>) -> bool {
        let before = *lock(&self.key);
        let is_same = match (before, found) {
            (Some(before), Some(found)) => before.is_of_same_file(found),
            (None, _) => true,
            (Some(_), None) => false,
        };
        let may_not_change = self.how.write || self.how.append;
        is_same || !(may_not_change || self.was_read.load(Ordering::Relaxed))
    }
}

impl ServerFile {
    fn new(epoch: u64, opened: &FileOpened) -> Self {
        Self {
            epoch,
            handle: opened.handle,
            key: opened.attributes.as_ref().map(Key::from),
        }
    }
}

impl Core {
    /// Opens a file; returns the kernel's handle, and whether its size says nothing.
    pub(super) async fn open(self: &Arc<Self>, id: u64, how: How) -> Result<(u64, bool), Errno> {
        let (name, version) = {
            let nodes = lock(&self.nodes);
            (nodes.name(id), nodes.version(id))
        };
        let only_read = how.read && !how.write && !how.append && !how.truncate;
        if only_read
            && let Some((parent, name)) = &name
            && let Some(seen) = self.known(*parent, name, true).await
            && let (Some(data), Some(attributes)) = (seen.entry.content, seen.entry.attributes)
            && lock(&self.nodes).is_same(seen.epoch, id, Key::from(&attributes))
        {
            // The server need not know, unless it is read for long.
            let at = seen.at;
            let content = Content {
                attributes,
                data: Some(data),
                at,
                version,
            };
            let file = OpenFile::new(id, how, None, Some(content));
            return Ok((self.opened(id, file), false));
        }
        if how.truncate {
            self.changes(id);
        }
        let at = Instant::now();
        let open = |path| {
            let mut op = request(path, how);
            op.truncate = how.truncate;
            op.max_content = if only_read { MAX_CONTENT } else { 0 };
            Op::Open(op)
        };
        let (epoch, opened) = opened(self.ask_at(id, open).await?)?;
        if how.truncate {
            self.changes(id);
        }
        let version = lock(&self.nodes).version(id);
        let content = opened.attributes.map(|attributes| Content {
            attributes,
            data: opened.content.clone(),
            at,
            version,
        });
        let server = ServerFile::new(epoch, &opened);
        if let Some(key) = server.key
            && !lock(&self.nodes).is_same(epoch, id, key)
        {
            self.release_server(Some(server)).await;
            return Err(self.misled(id, name));
        }
        // What /proc has is empty until it is read.
        let is_empty = |c: &Content| c.attributes.size == 0 && c.data.is_none();
        let is_sizeless = only_read && content.as_ref().is_some_and(is_empty);
        let file = OpenFile::new(id, how, Some(server), content);
        Ok((self.opened(id, file), is_sizeless))
    }

    /// Creates and opens a file; returns the kernel's handle as well.
    pub(super) async fn create(
        &self,
        parent: u64,
        name: Bytes,
        how: How,
        create: FileCreate,
    ) -> Result<(Entered, u64), Errno> {
        let mut op = request(self.path_in(parent, &name)?, how);
        op.truncate = how.truncate;
        op.create = Some(create);
        let at = Instant::now();
        let (epoch, opened) = opened(self.link.ask_once(Op::Open(op)).await?)?;
        let attributes = opened.attributes.ok_or(Errno::PROTO)?;
        let entered = self.enter((epoch, at), parent, &name, attributes);
        let server = ServerFile::new(epoch, &opened);
        self.changes(entered.id);
        let file = OpenFile::new(entered.id, how, Some(server), None);
        let fh = self.opened(entered.id, file);
        Ok((entered, fh))
    }

    pub(super) async fn read(&self, fh: u64, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let file = self.files.get(fh)?;
        let version = lock(&self.nodes).version(file.id);
        if let Some(data) = file.part(version, offset, size) {
            file.was_read.store(true, Ordering::Relaxed);
            return Ok(data);
        }
        if size <= MAX_DATA {
            return self.read_part(&file, offset, size).await;
        }
        let mut data = Vec::new();
        let mut left = size;
        while left > 0 {
            let at = offset + data.len() as u64;
            let part = self.read_part(&file, at, left.min(MAX_DATA)).await?;
            let is_end = part.len() < left.min(MAX_DATA) as usize;
            left -= u32::try_from(part.len()).unwrap_or(left).min(left);
            data.extend_from_slice(&part);
            if is_end {
                break;
            }
        }
        Ok(data.into())
    }

    async fn read_part(&self, file: &OpenFile, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let read = |handle| {
            Op::Read(FileRead {
                handle,
                offset,
                size,
            })
        };
        let data = data(self.ask_open(file, read).await?.1)?;
        file.was_read.store(true, Ordering::Relaxed);
        Ok(data)
    }

    pub(super) async fn write(&self, fh: u64, offset: u64, data: Bytes) -> Result<u32, Errno> {
        let file = self.files.get(fh)?;
        self.changes(file.id);
        let write = |handle| {
            Op::Write(FileWrite {
                handle,
                offset,
                data: data.clone(),
            })
        };
        let (epoch, answer) = match file.how.append {
            // A second time it would be there twice.
            true => {
                let (stream, handle) = self.handle_of(&file).await?;
                let answer = stream.ask(write(handle)).await.map_err(|Lost| Errno::IO)?;
                (stream.epoch, answer?)
            }
            false => self.ask_open(&file, write).await?,
        };
        self.changes(file.id);
        lock(&file.unsynced).get_or_insert(epoch);
        u32::try_from(offset_of(answer)?).map_err(|_| Errno::PROTO)
    }

    pub(super) async fn sync(&self, fh: u64, data_only: bool) -> Result<(), Errno> {
        let file = self.files.get(fh)?;
        let sync = |handle| {
            let name = Some(Name::Handle(handle));
            let file = Some(FileName { name });
            Op::Sync(FileSync { file, data_only })
        };
        // What is written meanwhile is noted anew.
        let mut unsynced = Unsynced {
            file: &file,
            written: lock(&file.unsynced).take(),
        };
        let (epoch, _) = self.ask_open(&file, sync).await?;
        match unsynced.written.take() {
            // Whether the server before has kept it, nobody knows.
            Some(written) if written != epoch => Err(Errno::IO),
            _ => Ok(()),
        }
    }

    pub(super) async fn allocate(
        &self,
        fh: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> Result<(), Errno> {
        let file = self.files.get(fh)?;
        self.changes(file.id);
        let (stream, handle) = self.handle_of(&file).await?;
        let op = Op::Allocate(FileAllocate {
            handle,
            mode,
            offset,
            length,
        });
        // Some modes move what is behind.
        stream.ask(op).await.map_err(|Lost| Errno::IO)??;
        self.changes(file.id);
        Ok(())
    }

    pub(super) async fn seek(&self, fh: u64, offset: u64, hole: bool) -> Result<u64, Errno> {
        let file = self.files.get(fh)?;
        let seek = |handle| {
            Op::Seek(FileSeek {
                handle,
                offset,
                hole,
            })
        };
        offset_of(self.ask_open(&file, seek).await?.1)
    }

    /// Forgets a handle of the kernel's; returns what is still to be closed.
    pub(super) fn close(&self, fh: u64) -> Option<Arc<OpenFile>> {
        let file = self.files.remove(fh)?;
        lock(&self.nodes).closed(file.id, fh);
        // Most small files are known to this laptop only.
        let is_here_only = file.server.try_lock().is_ok_and(|server| server.is_none());
        (!is_here_only).then_some(file)
    }

    pub(super) async fn release(&self, file: Arc<OpenFile>) {
        let server = file.server.lock().await.take();
        self.release_server(server).await;
    }

    async fn release_server(&self, server: Option<ServerFile>) {
        if let Some(server) = server
            && let Some(stream) = self.link.present()
            && stream.epoch == server.epoch
        {
            stream.release(server.handle).await;
        }
    }

    fn opened(&self, id: u64, file: Arc<OpenFile>) -> u64 {
        let fh = self.files.add(file);
        lock(&self.nodes).opened(id, fh);
        fh
    }

    /// Asks for something that may be done twice.
    pub(super) async fn ask_open(
        &self,
        file: &OpenFile,
        op: impl Fn(u64) -> Op,
    ) -> Result<(u64, Option<Answer>), Errno> {
        loop {
            let (stream, handle) = self.handle_of(file).await?;
            match stream.ask(op(handle)).await {
                Ok(answer) => return Ok((stream.epoch, answer?)),
                Err(Lost) => tokio::task::yield_now().await,
            }
        }
    }

    /// The stream that there is, and the file's handle there; opens it where need be.
    pub(super) async fn handle_of(&self, file: &OpenFile) -> Result<(Stream, u64), Errno> {
        loop {
            let stream = self.link.stream().await?;
            let mut server = file.server.lock().await;
            if let Some(server) = &*server
                && server.epoch == stream.epoch
            {
                return Ok((stream, server.handle));
            }
            let op = Op::Open(request(self.path(file.id)?, file.how));
            let opened = match stream.ask(op).await {
                Ok(answer) => opened((stream.epoch, answer?))?.1,
                Err(Lost) => {
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let found = ServerFile::new(stream.epoch, &opened);
            // Another server has another file of this name; on the same one it may be
            // another file, too. That is no place to write to, nor is it what follows
            // what was read before.
            if !file.takes(found.key) {
                stream.release(found.handle).await;
                return Err(Errno::STALE);
            }
            *lock(&file.key) = found.key;
            *server = Some(found);
            return Ok((stream, found.handle));
        }
    }
}

/// Opens what is there.
fn request(path: Bytes, how: How) -> FileOpen {
    FileOpen {
        path,
        read: how.read,
        write: how.write,
        append: how.append,
        truncate: false,
        sync: how.sync,
        create: None,
        max_content: 0,
    }
}

fn opened((epoch, answer): (u64, Option<Answer>)) -> Result<(u64, FileOpened), Errno> {
    match answer {
        Some(Answer::Opened(opened)) => Ok((epoch, opened)),
        _ => Err(Errno::PROTO),
    }
}

fn offset_of(answer: Option<Answer>) -> Result<u64, Errno> {
    match answer {
        Some(Answer::Offset(offset)) => Ok(offset),
        _ => Err(Errno::PROTO),
    }
}
