//! The project's own binaries, built with cargo.

use std::ffi::OsStr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::{Layout, Profile};
use crate::Cmd;
use crate::progress::{long, step};

/// Builds all binaries of the workspace. Always all: cargo would build
/// dependencies anew for each selection of packages.
pub fn build(layout: &Layout) -> Result<()> {
    step("Building the binaries");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = match layout.profile() {
        Profile::Dev => None,
        Profile::Release => Some("--release"),
    };
    // What cargo tells a test of its package, build scripts look at, and ring's has
    // everything above it built anew when that changes.
    let is_of_package = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"CARGO_PKG_") || name.starts_with(b"CARGO_MANIFEST_")
    };
    let kept = std::env::vars_os().filter(|(name, _)| !is_of_package(name));
    let build = kept
        .fold(Cmd::new(cargo).clear_env(), |build, (name, value)| {
            build.env(name, value)
        })
        .args(["build", "--quiet", "--workspace", "--bins"])
        .args(profile)
        .dir(layout.repository())
        .deadline(Duration::from_secs(40 * 60));
    long("cargo build", || build.ok())
        .context("build the binaries")
        .map(drop)
}
