//! Directories, and several files of one at once.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use kvpn_proto::v1::{FileAttributes, FileEntry, FileListing};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, seek};
use rustix::io::{Errno, pread};

use super::attributes;
use super::exports::beneath;
use crate::MAX_CONTENT;

/// How many entries come at once.
const MAX_ENTRIES: usize = 4096;

/// How many bytes of names, and of contents, come at once.
const MAX_NAMES: usize = 256 << 10;
const MAX_CONTENTS: usize = 512 << 10;

/// How much is read of a directory by one system call, in bytes.
const BUFFER: usize = 32 << 10;

/// Lists a part of an open directory.
pub(super) fn list(directory: &OwnedFd, from: u64) -> Result<FileListing, Errno> {
    if from != 0 {
        seek(directory, SeekFrom::Start(from))?;
    }
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut raw = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut listing = FileListing::default();
    let mut bytes = 0;
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let next = entry.next_entry_cookie();
        match attributes::of(directory, name) {
            // It was removed meanwhile.
            Err(Errno::NOENT) => continue,
            // All others can be seen where one of them cannot.
            found => listing.entries.push(FileEntry {
                name: Bytes::copy_from_slice(name),
                attributes: found.ok(),
                content: None,
            }),
        }
        bytes += name.len();
        if listing.entries.len() >= MAX_ENTRIES || bytes >= MAX_NAMES {
            listing.next = next;
            break;
        }
    }
    Ok(listing)
}

/// Lists a directory that is not there in the container.
pub(super) fn list_invented(
    names: &BTreeSet<&[u8]>,
    from: u64,
    stat: impl Fn(&[u8]) -> Result<FileAttributes, Errno>,
) -> FileListing {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let entries = names.iter().skip(from).filter_map(|name| {
        Some(FileEntry {
            name: Bytes::copy_from_slice(name),
            attributes: Some(stat(name).ok()?),
            content: None,
        })
    });
    FileListing {
        entries: entries.collect(),
        next: 0,
    }
}

/// Looks at files of a directory, and into them.
pub(super) fn peek(directory: &OwnedFd, names: &[Bytes], max_content: u32) -> FileListing {
    let mut listing = FileListing::default();
    let mut room = MAX_CONTENTS;
    for name in names.iter().take(MAX_ENTRIES) {
        let is_name = !name.is_empty() && !name.contains(&b'/') && !matches!(&name[..], b"..");
        let found = match is_name {
            true => attributes::of(directory, name).ok(),
            false => None,
        };
        let mut entry = FileEntry {
            name: name.clone(),
            attributes: found,
            ..FileEntry::default()
        };
        if let Some(attributes) = entry.attributes.filter(|a| fits(a, max_content)) {
            let Some(left) = room.checked_sub(size(&attributes)) else {
                break;
            };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME;
            let opened = beneath(directory.as_fd(), name, flags, Mode::empty());
            // Only the owner may leave the time of access alone.
            let opened = opened.or_else(|errno| match errno {
                Errno::PERM => {
                    let flags = flags - OFlags::NOATIME;
                    beneath(directory.as_fd(), name, flags, Mode::empty())
                }
                errno => Err(errno),
            });
            if let Ok(file) = opened
                && let Ok(attributes) = attributes::of(&file, b"")
                && let Some(content) = content(&file, &attributes, max_content)
            {
                room = left;
                entry.attributes = Some(attributes);
                entry.content = Some(content);
            }
        }
        listing.entries.push(entry);
    }
    listing
}

/// All of a file that is open for reading, where it is short.
pub(super) fn content(
    file: &OwnedFd,
    attributes: &FileAttributes,
    max_content: u32,
) -> Option<Bytes> {
    if !fits(attributes, max_content) {
        return None;
    }
    let size = size(attributes);
    // A byte more than there should be tells whether it has grown.
    let content = read(file, 0, size + 1).ok()?;
    (content.len() == size).then(|| content.into())
}

/// Reads as much as is asked for, or to the end.
pub(super) fn read(file: impl AsFd, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
    let mut data = vec![0; size];
    let mut got = 0;
    while got < size {
        match pread(&file, &mut data[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    data.truncate(got);
    Ok(data)
}

fn fits(attributes: &FileAttributes, max_content: u32) -> bool {
    attributes::is_regular(attributes) && attributes.size <= max_content.min(MAX_CONTENT).into()
}

fn size(attributes: &FileAttributes) -> usize {
    usize::try_from(attributes.size).unwrap_or(usize::MAX)
}
