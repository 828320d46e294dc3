//! Licences, bans and sources of dependencies.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use kvpn_tests::Cmd;
use kvpn_tests::lab::layout::Layout;

use crate::lab::exit_code;

/// Runs cargo-deny as it is installed.
pub(crate) fn run() -> Result<ExitCode> {
    let root = Layout::new().repository().to_owned();
    if !Cmd::new("cargo")
        .args(["deny", "--version"])
        .run()
        .is_ok_and(|out| out.status.success())
    {
        bail!("cargo-deny is not installed; `cargo install cargo-deny --locked` installs it");
    }
    let checks = ["deny", "check", "licenses", "bans", "sources"];
    let status = Cmd::new("cargo").args(checks).dir(root).foreground();
    status.map(exit_code).context("run cargo-deny")
}
