//! The root daemon as a process, in network and mount namespaces of its own.
//! These tests need root.

#![allow(clippy::unwrap_used, reason = "helpers fail as tests do")]

mod access;
mod client;
mod conflicts;
mod crash;
mod grant;
mod host;
mod mounts;
mod refusal;
mod several;
mod steps;
