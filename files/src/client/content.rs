//! What is known of an open file, and all of a short one, as it was a moment ago.

use std::time::Instant;

use bytes::Bytes;
use kvpn_proto::v1::FileAttributes;

use super::LEASE;

#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) attributes: FileAttributes,
    /// All of it, if it is short.
    pub(super) data: Option<Bytes>,
    /// When it was asked for.
    pub(super) at: Instant,
    /// Of the file, by this laptop's changes of it.
    pub(super) version: u64,
}

impl Content {
    pub(super) fn is_fresh(&self, version: u64) -> bool {
        self.version == version && is_fresh(self.at)
    }

    pub(super) fn part(&self, offset: u64, size: u32) -> Option<Bytes> {
        let data = self.data.as_ref()?;
        let length = data.len();
        let begin = usize::try_from(offset).map_or(length, |offset| offset.min(length));
        Some(data.slice(begin..length.min(begin + size as usize)))
    }
}

/// Whether what was asked for at that time may still be told to the kernel.
pub(super) fn is_fresh(at: Instant) -> bool {
    at.elapsed() < LEASE
}
