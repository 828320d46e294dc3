//! Server and client in one process, and a real mount of what is served. These tests
//! need root and /dev/fuse.

#![allow(clippy::unwrap_used, reason = "helpers fail as tests do")]

mod cuts;
mod laptop;
mod lifetime;
mod many;
mod operations;
mod pace;
mod posix;
