//! Reads a fuzzer's bytes as decisions. What is missing at the end reads as 0.

use kvpn_proto::flow::DialError;
use kvpn_tunnel::packet::Checksum;

/// The bytes that are left.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(crate) fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub(crate) fn long(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Up to `most` bytes, as the next one says.
    pub(crate) fn some(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.byte()).min(most).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    /// A place in something of that length; `None` when it is empty.
    pub(crate) fn index(&mut self, length: usize) -> Option<usize> {
        usize::from(self.byte()).checked_rem(length)
    }

    pub(crate) fn checksum(&mut self) -> Checksum {
        if self.byte() & 1 == 0 {
            Checksum::Complete
        } else {
            Checksum::Partial
        }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let length = N.min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        let mut array = [0; N];
        array[..length].copy_from_slice(bytes);
        array
    }
}

/// Any kind of failed dial.
pub(crate) fn dial_error(kind: u8) -> DialError {
    let error = DialError::ALL[usize::from(kind) % DialError::ALL.len()];
    if let DialError::TooBig(_) = error {
        return DialError::TooBig(u32::from(kind) * 8);
    }
    error
}
