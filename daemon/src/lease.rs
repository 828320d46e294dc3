//! Leases: what the root daemon gives to a session, for as long as the
//! session's connection to its unix socket lives.

pub(crate) mod client;
pub(crate) mod mounter;
pub(crate) mod network;
pub(crate) mod slot;
pub(crate) mod wire;
