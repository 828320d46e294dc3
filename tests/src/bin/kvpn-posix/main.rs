//! The operations of the files' tests, done in a directory wherever this is run; prints a
//! line about what came of each.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use rustix::fs::Mode;
use rustix::process::umask;

#[allow(clippy::unwrap_used, reason = "helpers fail as tests do")]
#[path = "../../../../files/tests/mount/operations.rs"]
mod operations;

/// Operations of POSIX and Linux, and what comes of each
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Directory to make, and to do them in
    directory: PathBuf,
}

fn main() -> Result<()> {
    let Options { directory } = Options::parse();
    // Whoever starts it may have another one.
    umask(Mode::from_raw_mode(0o022));
    DirBuilder::new()
        .mode(0o755)
        .create(&directory)
        .with_context(|| format!("make {}", directory.display()))?;
    // A laptop's user is not the pod's, whom the files belong to.
    let lines = operations::run_all(&directory, false);
    let mut text = lines.join("\n");
    text.push('\n');
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
