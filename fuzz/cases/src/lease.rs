//! The module that tells what a lease is for, under its own path.

#[path = "../../../daemon/src/lease/network.rs"]
pub(crate) mod network;
