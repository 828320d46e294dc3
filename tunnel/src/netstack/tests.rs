//! The netstack against a second TCP implementation in the part of the host's
//! kernel, over a wire in memory, in invented time.

pub(crate) mod lab;
mod lossy;
mod opening;
pub(crate) mod packets;
mod tcp;
mod udp;
