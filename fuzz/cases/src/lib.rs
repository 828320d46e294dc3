//! What is done with the bytes that a fuzzer makes: one function for each kind
//! of bytes that come from a TUN or from a peer. They panic when something is
//! wrong, and are what the targets in `fuzz/targets` run.

mod channel;
mod dns;
mod frames;
mod input;
mod messages;
mod netstack;
mod packet;
mod packets;
mod session;
mod streams;

pub use channel::channel;
pub use dns::dns;
pub use frames::frames;
pub use messages::{frame, messages};
pub use netstack::netstack;
pub use packet::packet;
pub use streams::{lease, probe};

/// What takes a fuzzer's bytes.
pub type Case = fn(&[u8]);

/// All cases by name, which is that of their target.
pub const CASES: [(&str, Case); 9] = [
    ("channel", channel),
    ("dns", dns),
    ("frame", frame),
    ("frames", frames),
    ("lease", lease),
    ("messages", messages),
    ("netstack", netstack),
    ("packet", packet),
    ("probe", probe),
];
