//! The files of a pod's container on the laptop.
//!
//! The [`server`] answers requests of `files.proto` for what a container sees below its
//! root, over any byte stream.

pub mod server;
mod wire;

/// The most bytes that are read or written by one request.
pub const MAX_DATA: u32 = 256 << 10;

/// The longest file, in bytes, of which all comes with an answer that is about it.
pub const MAX_CONTENT: u32 = 64 << 10;
