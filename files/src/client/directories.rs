//! Directories that are open on the laptop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kvpn_proto::v1::files_answer::Result as Answer;
use kvpn_proto::v1::files_request::Op;
use kvpn_proto::v1::{FileEntry, FileList, FileListing};
use rustix::io::Errno;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinHandle;

use super::core::Core;
use super::table::lock;

const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) id: u64,
    pub(super) listing: Arc<AsyncMutex<Listing>>,
}

/// A part of the directory, of which the kernel takes some entries after the others.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// How many come before the first one here.
    position: u64,
    entries: VecDeque<FileEntry>,
    /// When they were asked for, and of whom.
    at: Option<(Instant, u64)>,
    /// What follows; `None` before the first part.
    next: Option<u64>,
    coming: Option<JoinHandle<Result<Part, Errno>>>,
    /// Regular files so far.
    names: Vec<Bytes>,
}

#[derive(Debug)]
struct Part {
    at: Instant,
    epoch: u64,
    listing: FileListing,
}

impl Directory {
    pub(super) fn new(id: u64) -> Arc<Self> {
        let listing = Arc::default();
        Arc::new(Self { id, listing })
    }
}

impl Listing {
    /// Goes to where so many entries have gone before; false where there are no more.
    pub(super) async fn seek(
        &mut self,
        core: &Arc<Core>,
        id: u64,
        position: u64,
    ) -> Result<bool, Errno> {
        if position < self.position {
            *self = Self::default();
        }
        loop {
            while self.position < position && self.entries.pop_front().is_some() {
                self.position += 1;
            }
            if self.position == position && !self.entries.is_empty() {
                return Ok(true);
            }
            if self.next == Some(0) {
                return Ok(false);
            }
            self.more(core, id).await?;
        }
    }

    /// The entry that comes next, since when it is known, and of whom.
    pub(super) fn front(&self) -> Option<(&FileEntry, Instant, u64)> {
        let (at, epoch) = self.at?;
        Some((self.entries.front()?, at, epoch))
    }

    /// Goes on to the one after.
    pub(super) fn advance(&mut self) {
        if self.entries.pop_front().is_some() {
            self.position += 1;
        }
    }

    async fn more(&mut self, core: &Arc<Core>, id: u64) -> Result<(), Errno> {
        let part = match self.coming.take() {
            Some(coming) => coming.await.map_err(|_| Errno::IO)??,
            None => ask(core.clone(), id, self.next.unwrap_or(0)).await?,
        };
        if let Some((_, epoch)) = self.at
            && epoch != part.epoch
        {
            // What one server says of where a part begins means nothing to another.
            let position = self.position;
            *self = Self::default();
            let (entries, next, at) = from_start(core, id, position).await?;
            self.position = position;
            self.entries = entries;
            self.next = Some(next);
            self.at = Some(at);
            return Ok(());
        }
        self.at = Some((part.at, part.epoch));
        self.next = Some(part.listing.next);
        let regular = part
            .listing
            .entries
            .iter()
            .filter(|entry| is_regular(entry));
        self.names.extend(regular.map(|entry| entry.name.clone()));
        self.entries = part.listing.entries.into();
        match part.listing.next {
            0 => lock(&core.ahead).listed(id, std::mem::take(&mut self.names)),
            next => {
                let core = core.clone();
                self.coming = Some(tokio::spawn(async move {
                    core.link.in_time(ask(core.clone(), id, next)).await
                }));
            }
        }
        Ok(())
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        if let Some(coming) = &self.coming {
            coming.abort();
        }
    }
}

/// Lists again, and leaves out as many entries as the kernel has.
async fn from_start(
    core: &Arc<Core>,
    id: u64,
    skip: u64,
) -> Result<(VecDeque<FileEntry>, u64, (Instant, u64)), Errno> {
    let mut skip = usize::try_from(skip).unwrap_or(usize::MAX);
    let mut from = 0;
    loop {
        let part = ask(core.clone(), id, from).await?;
        let mut entries: VecDeque<FileEntry> = part.listing.entries.into();
        let left_out = skip.min(entries.len());
        entries.drain(..left_out);
        skip -= left_out;
        from = part.listing.next;
        if skip == 0 || from == 0 {
            return Ok((entries, from, (part.at, part.epoch)));
        }
    }
}

async fn ask(core: Arc<Core>, id: u64, from: u64) -> Result<Part, Errno> {
    let at = Instant::now();
    let path = core.path(id)?;
    let (epoch, answer) = core.link.ask(Op::List(FileList { path, from })).await?;
    match answer {
        Some(Answer::Listing(listing)) => Ok(Part { at, epoch, listing }),
        _ => Err(Errno::PROTO),
    }
}

fn is_regular(entry: &FileEntry) -> bool {
    let mode = entry
        .attributes
        .as_ref()
        .map_or(0, |attributes| attributes.mode);
    mode & TYPE == REGULAR
}
