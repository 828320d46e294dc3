//! The data path of kvpn.
//!
//! The core ([`flow`], [`packet`], [`netstack`]) turns packets of the host
//! into flows and back; it does no I/O, spawns nothing and reads no clock.
//! The shells ([`grpc`], [`relay`], [`host`], [`dns`], [`socket`]) move bytes on tokio and
//! are shared by the session, the traffic manager and the agent; [`memory`] and [`turns`]
//! are how their processes keep their heap and share their threads.

pub mod dns;
pub mod flow;
pub mod grpc;
pub mod host;
pub mod memory;
pub mod netstack;
pub mod packet;
pub mod relay;
pub mod socket;
pub mod turns;

#[cfg(test)]
mod seeds;
