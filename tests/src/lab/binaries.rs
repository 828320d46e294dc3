//! The project's own binaries, built with cargo.

use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::{Layout, Profile};
use crate::Cmd;
use crate::cargo::environment;
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
    let build = environment()
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
