//! The netstack against a second TCP implementation in the part of the host's
//! kernel, over a wire in memory, in invented time.

mod fin;
mod icmp;
pub(crate) mod lab;
mod lossy;
pub(crate) mod opening;
pub(crate) mod packets;
mod simulation;
mod tcp;
mod udp;
