//! The files of a pod's container on the laptop.
//!
//! The [`server`] answers requests of `files.proto` for what a container sees below its
//! root; the [`client`] is a file system of the laptop's (FUSE) that asks it. Both speak
//! over any byte stream. The [`device`] is what root has to do for that. What the kernel knows of a file lasts a second; nothing is
//! written later than its writer is told.

pub mod client;
pub mod device;
pub mod server;
mod wire;

/// The most bytes that are read or written by one request.
pub const MAX_DATA: u32 = 256 << 10;

/// The longest file, in bytes, of which all comes with an answer that is about it.
pub const MAX_CONTENT: u32 = 64 << 10;
