//! Runs cargo.

use std::ffi::{OsStr, OsString};

/// The environment to run cargo in: this process's own, without what a cargo that runs
/// it has told it of its package. Build scripts look at that, and ring's has everything
/// above it built anew whenever it differs.
pub fn environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| !is_of_package(name))
}

fn is_of_package(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"CARGO_PKG_") || name.starts_with(b"CARGO_MANIFEST_")
}
