//! The project's own binaries, built with cargo.

use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::Layout;
use crate::Cmd;
use crate::progress::long;

/// The lab's helper and the sample application.
pub const LAB: &[&str] = &["kvpn-tests"];
/// What makes up kvpn.
pub const KVPN: &[&str] = &[
    "kvpn-cli",
    "kvpn-daemon",
    "kvpn-traffic-manager",
    "kvpn-sidecar-agent",
];

/// Builds the binaries of these packages.
pub fn build(layout: &Layout, packages: &[&str]) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages: Vec<_> = packages
        .iter()
        .flat_map(|name| ["--package", name])
        .collect();
    let build = Cmd::new(cargo)
        .args(["build", "--quiet", "--bins"])
        .args(packages)
        .dir(layout.repository())
        .deadline(Duration::from_secs(40 * 60));
    long("cargo build", || build.ok())
        .context("build the binaries")
        .map(drop)
}
