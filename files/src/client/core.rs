//! What the kernel's requests come to.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvpn_proto::v1::file_name::Name;
use kvpn_proto::v1::files_answer::Result as Answer;
use kvpn_proto::v1::files_request::Op;
use kvpn_proto::v1::{
    FileAttributes, FileLink, FileMakeNode, FileName, FilePeek, FileReadLink, FileRemove,
    FileRename, FileSetAttributes, FileStat,
};
use rustix::io::Errno;

use super::LEASE;
use super::ahead::{Ahead, Batch, Known, Seen};
use super::directories::Directory;
use super::files::OpenFile;
use super::link::{Link, data};
use super::nodes::{Key, Nodes, ROOT};
use super::table::{Table, lock};
use crate::MAX_CONTENT;

const RENAME_EXCHANGE: u32 = 2;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) link: Link,
    pub(super) nodes: Mutex<Nodes>,
    pub(super) ahead: Mutex<Ahead>,
    pub(super) files: Table<OpenFile>,
    pub(super) directories: Table<Directory>,
}

/// A file that the kernel is told of, which counts.
#[derive(Debug)]
pub(super) struct Entered {
    pub(super) id: u64,
    pub(super) attributes: FileAttributes,
    /// When it was asked for.
    pub(super) at: Instant,
}

impl Core {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            nodes: Mutex::default(),
            ahead: Mutex::default(),
            files: Table::default(),
            directories: Table::default(),
        }
    }

    pub(super) async fn look_up(
        self: &Arc<Self>,
        parent: u64,
        name: Bytes,
    ) -> Result<Entered, Errno> {
        if let Some(seen) = self.known(parent, &name, false).await
            && let Some(attributes) = seen.entry.attributes
        {
            return Ok(self.enter((seen.epoch, seen.at), parent, &name, attributes));
        }
        let path = self.path_in(parent, &name)?;
        let at = Instant::now();
        match self.stat_name(Name::Path(path)).await {
            Ok((epoch, attributes)) => Ok(self.enter((epoch, at), parent, &name, attributes)),
            Err(errno) => {
                if errno == Errno::NOENT {
                    lock(&self.nodes).remove(parent, &name);
                }
                Err(errno)
            }
        }
    }

    /// Tells of a file, and for how long that may be believed.
    pub(super) async fn stat(&self, id: u64) -> Result<(FileAttributes, Duration), Errno> {
        let (handles, version) = {
            let nodes = lock(&self.nodes);
            (nodes.handles(id), nodes.version(id))
        };
        // The kernel asks after each read, as that changes when it was read last.
        let mut open = handles.iter().filter_map(|fh| self.files.get(*fh).ok());
        if let Some((found, at)) = open.find_map(|file| file.known(version)) {
            return Ok((found, LEASE.saturating_sub(at.elapsed())));
        }
        let at = Instant::now();
        let found = self.stat_now(id, handles).await?;
        Ok((found, LEASE.saturating_sub(at.elapsed())))
    }

    async fn stat_now(&self, id: u64, handles: Vec<u64>) -> Result<FileAttributes, Errno> {
        // What is open is the right one, whatever has its name now.
        for file in handles.into_iter().filter_map(|fh| self.files.get(fh).ok()) {
            if let Some((stream, handle)) = file.present_handle(&self.link).await {
                let name = Some(Name::Handle(handle));
                let file = Some(FileName { name });
                // By the next stream the number is another file's.
                if let Ok(answer) = stream.ask(Op::Stat(FileStat { file })).await {
                    return attributes(answer?);
                }
            }
        }
        loop {
            let path = self.path(id)?;
            let name = lock(&self.nodes).name(id);
            match self.stat_name(Name::Path(path)).await {
                Ok((epoch, found)) => {
                    if lock(&self.nodes).is_same(epoch, id, Key::from(&found)) {
                        return Ok(found);
                    }
                }
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
            // It may have another name. Without one, the kernel looks it up again.
            let (parent, name) = name.ok_or(Errno::STALE)?;
            lock(&self.nodes).remove(parent, &name);
        }
    }

    pub(super) async fn set(
        &self,
        id: u64,
        fh: Option<u64>,
        wanted: FileSetAttributes,
    ) -> Result<FileAttributes, Errno> {
        let handles = lock(&self.nodes).handles(id);
        let open = fh
            .into_iter()
            .chain(handles)
            .find_map(|fh| self.files.get(fh).ok());
        let set = |name| {
            let file = Some(FileName { name: Some(name) });
            Op::SetAttributes(FileSetAttributes {
                file,
                ..wanted.clone()
            })
        };
        let is_named = lock(&self.nodes).path(id).is_some();
        self.changes(id);
        let (answer, named) = match open {
            Some(file) if fh.is_some() || !is_named => {
                let set = |handle| set(Name::Handle(handle));
                (self.ask_open(&file, set).await?, None)
            }
            Some(_) | None => {
                let name = lock(&self.nodes).name(id);
                (self.ask_at(id, |path| set(Name::Path(path))).await?, name)
            }
        };
        self.changes(id);
        let (epoch, found) = (answer.0, attributes(answer.1)?);
        if named.is_some() && !lock(&self.nodes).is_same(epoch, id, Key::from(&found)) {
            return Err(self.misled(id, named));
        }
        Ok(found)
    }

    pub(super) async fn make(
        &self,
        parent: u64,
        name: Bytes,
        mode: u32,
        target: Bytes,
    ) -> Result<Entered, Errno> {
        let path = self.path_in(parent, &name)?;
        let op = Op::MakeNode(FileMakeNode { path, mode, target });
        let at = Instant::now();
        let (epoch, answer) = self.link.ask_once(op).await?;
        lock(&self.nodes).listing_changed(parent);
        Ok(self.enter((epoch, at), parent, &name, attributes(answer)?))
    }

    pub(super) async fn link_to(
        &self,
        id: u64,
        parent: u64,
        name: Bytes,
    ) -> Result<Entered, Errno> {
        let to = self.path_in(parent, &name)?;
        let link = |from| Op::Link(FileLink { from, to });
        let at = Instant::now();
        let (epoch, answer) = self.ask_at_once(id, link).await?;
        lock(&self.nodes).listing_changed(parent);
        self.changes(id);
        Ok(self.enter((epoch, at), parent, &name, attributes(answer)?))
    }

    pub(super) async fn remove(
        &self,
        parent: u64,
        name: Bytes,
        directory: bool,
    ) -> Result<(), Errno> {
        let path = self.path_in(parent, &name)?;
        self.keep_open(parent, &name).await;
        self.link
            .ask_once(Op::Remove(FileRemove { path, directory }))
            .await?;
        let id = lock(&self.nodes).by_name(parent, &name);
        {
            let mut nodes = lock(&self.nodes);
            nodes.remove(parent, &name);
            nodes.listing_changed(parent);
        }
        lock(&self.ahead).changed(parent);
        // It may have other names, or be open.
        if let Some(id) = id {
            self.changes(id);
        }
        Ok(())
    }

    pub(super) async fn rename(
        &self,
        from: (u64, Bytes),
        to: (u64, Bytes),
        flags: u32,
    ) -> Result<(), Errno> {
        let op = Op::Rename(FileRename {
            from: self.path_in(from.0, &from.1)?,
            to: self.path_in(to.0, &to.1)?,
            flags,
        });
        self.keep_open(to.0, &to.1).await;
        self.link.ask_once(op).await?;
        let exchange = flags & RENAME_EXCHANGE != 0;
        let files = {
            let mut nodes = lock(&self.nodes);
            let files = [&from, &to].map(|(parent, name)| nodes.by_name(*parent, name));
            nodes.rename((from.0, &from.1), (to.0, &to.1), exchange);
            nodes.listing_changed(from.0);
            nodes.listing_changed(to.0);
            files
        };
        {
            let mut ahead = lock(&self.ahead);
            ahead.changed(from.0);
            ahead.changed(to.0);
        }
        for id in files.into_iter().flatten() {
            self.changes(id);
        }
        Ok(())
    }

    pub(super) async fn read_link(&self, id: u64) -> Result<Bytes, Errno> {
        let read = |path| Op::ReadLink(FileReadLink { path });
        data(self.ask_at(id, read).await?.1)
    }

    /// Asks for something by path, or does something that may be done twice.
    pub(super) async fn ask_of(
        &self,
        id: u64,
        op: impl FnOnce(Bytes) -> Op,
    ) -> Result<Option<Answer>, Errno> {
        Ok(self.ask_at(id, op).await?.1)
    }

    /// Asks by the path of a file. One that is not there is looked up again.
    pub(super) async fn ask_at(
        &self,
        id: u64,
        op: impl FnOnce(Bytes) -> Op,
    ) -> Result<(u64, Option<Answer>), Errno> {
        let (path, name) = self.path_and_name(id)?;
        let answer = self.link.ask(op(path)).await;
        answer.map_err(|errno| self.unless_there(errno, id, name))
    }

    /// The same for what must not be done twice.
    pub(super) async fn ask_at_once(
        &self,
        id: u64,
        op: impl FnOnce(Bytes) -> Op,
    ) -> Result<(u64, Option<Answer>), Errno> {
        let (path, name) = self.path_and_name(id)?;
        let answer = self.link.ask_once(op(path)).await;
        answer.map_err(|errno| self.unless_there(errno, id, name))
    }

    /// Forgets a name that led to nothing, or to another file; the kernel then looks the
    /// file up again.
    pub(super) fn misled(&self, id: u64, name: Option<(u64, Bytes)>) -> Errno {
        if let Some((parent, name)) = name {
            lock(&self.nodes).misled(id, parent, &name);
        }
        Errno::STALE
    }

    fn unless_there(&self, errno: Errno, id: u64, name: Option<(u64, Bytes)>) -> Errno {
        match errno {
            Errno::NOENT => self.misled(id, name),
            errno => errno,
        }
    }

    fn path_and_name(&self, id: u64) -> Result<(Bytes, Option<(u64, Bytes)>), Errno> {
        let nodes = lock(&self.nodes);
        Ok((nodes.path(id).ok_or(Errno::STALE)?, nodes.name(id)))
    }

    /// What is known ahead of time of a name, and since when; asks for what is likely
    /// to be wanted next.
    pub(super) async fn known(
        self: &Arc<Self>,
        parent: u64,
        name: &Bytes,
        is_read: bool,
    ) -> Option<Seen> {
        let seen = match self.want(parent, name, is_read) {
            Known::Nothing => None,
            Known::Entry(seen) => Some(seen),
            Known::Soon(mut comes) => {
                // Until the sender is gone.
                while comes.changed().await.is_ok() {}
                match self.want(parent, name, is_read) {
                    Known::Entry(seen) => Some(seen),
                    Known::Nothing | Known::Soon(_) => None,
                }
            }
        };
        // What another server has said is worth nothing.
        let epoch = self.link.present()?.epoch;
        seen.filter(|seen| seen.epoch == epoch)
    }

    fn want(self: &Arc<Self>, parent: u64, name: &Bytes, is_read: bool) -> Known {
        let (known, batches) = lock(&self.ahead).want(parent, name, is_read);
        for batch in batches {
            tokio::spawn(self.clone().peek(batch));
        }
        known
    }

    async fn peek(self: Arc<Self>, batch: Batch) {
        let at = Instant::now();
        let asked = async {
            let op = Op::Peek(FilePeek {
                path: self.path(batch.directory)?,
                names: batch.names.clone(),
                max_content: if batch.with_content { MAX_CONTENT } else { 0 },
            });
            match self.link.ask_once(op).await? {
                (epoch, Some(Answer::Listing(listing))) => {
                    let seen = |entry| Seen { entry, at, epoch };
                    Ok(listing.entries.into_iter().map(seen).collect())
                }
                _ => Err(Errno::PROTO),
            }
        };
        let seen = self.link.in_time(asked).await.unwrap_or_default();
        lock(&self.ahead).arrived(&batch, seen);
    }

    /// Counts a file as told to the kernel, as it was with a stream and at a time.
    pub(super) fn enter(
        &self,
        (epoch, at): (u64, Instant),
        parent: u64,
        name: &Bytes,
        attributes: FileAttributes,
    ) -> Entered {
        let key = Key::from(&attributes);
        let id = lock(&self.nodes).enter(epoch, parent, name, key);
        Entered { id, attributes, at }
    }

    pub(super) fn forget(&self, id: u64, lookups: u64) {
        lock(&self.nodes).forget(id, lookups);
        if id != ROOT {
            lock(&self.ahead).forget(id);
        }
    }

    /// Notes that this laptop changes a file.
    pub(super) fn changes(&self, id: u64) {
        let parent = {
            let mut nodes = lock(&self.nodes);
            nodes.changed(id);
            nodes.name(id)
        };
        if let Some((parent, _)) = parent {
            lock(&self.ahead).changed(parent);
        }
    }

    pub(super) fn path(&self, id: u64) -> Result<Bytes, Errno> {
        lock(&self.nodes).path(id).ok_or(Errno::STALE)
    }

    pub(super) fn path_in(&self, parent: u64, name: &Bytes) -> Result<Bytes, Errno> {
        let parent = self.path(parent)?;
        Ok(match parent.is_empty() {
            true => name.clone(),
            false => [&parent[..], b"/", name].concat().into(),
        })
    }

    async fn stat_name(&self, name: Name) -> Result<(u64, FileAttributes), Errno> {
        let file = Some(FileName { name: Some(name) });
        let (epoch, answer) = self.link.ask(Op::Stat(FileStat { file })).await?;
        Ok((epoch, attributes(answer)?))
    }

    /// Has the server open what only this laptop has open, before its name is gone.
    async fn keep_open(&self, parent: u64, name: &Bytes) {
        let handles = {
            let nodes = lock(&self.nodes);
            nodes
                .by_name(parent, name)
                .map(|id| nodes.handles(id))
                .unwrap_or_default()
        };
        for file in handles.into_iter().filter_map(|fh| self.files.get(fh).ok()) {
            // What cannot be opened cannot be read later; the name goes all the same.
            let _ = self.handle_of(&file).await;
        }
    }
}

pub(super) fn attributes(answer: Option<Answer>) -> Result<FileAttributes, Errno> {
    match answer {
        Some(Answer::Attributes(attributes)) => Ok(attributes),
        _ => Err(Errno::PROTO),
    }
}
