//! A file system of the laptop's, the files of which are a container's.
//!
//! The kernel's requests come through /dev/fuse ([`mount`]) and are asked of whatever
//! stream the [`Link`] has at the moment. Each ends within a deadline.

mod ahead;
mod content;
mod core;
mod directories;
mod files;
mod kernel;
mod link;
mod nodes;
mod table;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{BackgroundSession, Config, Session, SessionACL};
use tokio::runtime::Handle;

pub use link::Link;

use self::core::Core;
use kernel::Kernel;

/// How long the kernel may believe what it was told of a file.
const LEASE: Duration = Duration::from_secs(1);

/// Answers what the kernel asks through an open /dev/fuse that somebody has mounted or
/// will mount; until it is unmounted. Returns once the two have agreed on how to speak.
///
/// `runtime` is where requests wait for their answers. Blocks.
pub fn mount(device: OwnedFd, link: Link, runtime: Handle) -> io::Result<BackgroundSession> {
    let kernel = Kernel::new(Arc::new(Core::new(link)), runtime);
    // Whoever mounted it has told the kernel who may ask.
    Session::from_fd(kernel, device, SessionACL::All, Config::default())?.spawn()
}
