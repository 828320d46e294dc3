//! The guard: a process that outlives the daemon by a moment, to undo what a
//! daemon that was killed could not.

use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kvpn_proto::{Failure, Reason};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{chdir, setsid};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::{debug, error, info};

use super::journal::Journal;
use super::{run_dir, runtime, undo};
use crate::fault;

/// How long a guard may take to start or to end.
const DEADLINE: Duration = Duration::from_secs(5);

/// A guard that runs. It ends when this is dropped.
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// Starts a guard, and waits until it is on its post.
    pub(super) async fn start(run_dir: &Path) -> io::Result<Self> {
        // This very file, though another may have been installed in its place.
        let mut child = Command::new("/proc/self/exe")
            .arg0("kvpnd-guard")
            .arg("guard")
            .arg("--run-dir")
            .arg(run_dir)
            // It is there for when the daemon is stopped.
            .env_remove(fault::VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        timeout(DEADLINE, output.read_u8()).await??;
        Ok(Self { child })
    }

    /// Ends the guard, which undoes whatever the journal still names.
    pub(super) async fn end(mut self) {
        drop(self.child.stdin.take());
        match timeout(DEADLINE, self.child.wait()).await {
            Ok(Ok(status)) => debug!(%status, "The guard ended"),
            Ok(Err(error)) => error!(%error, "The guard cannot be waited for"),
            Err(_) => error!("The guard does not end"),
        }
    }
}

/// The guard's own main: waits for the end of the daemon.
pub(super) fn run(run_dir: &Path) -> Result<(), Failure> {
    take_post().map_err(Failure::internal)?;
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map_err(Failure::internal)?;
    match Journal::load(run_dir) {
        Ok(None) => Ok(()),
        // One that cannot be read is for `undo` to deal with.
        Ok(Some(_)) | Err(_) => runtime()?.block_on(undo_for_daemon(run_dir)),
    }
}

/// Leaves the daemon's terminal, and tells the daemon that it did.
fn take_post() -> io::Result<()> {
    SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]).thread_block()?;
    setsid()?;
    prctl::set_name(c"kvpnd-guard")?;
    chdir("/")?;
    let mut output = io::stdout();
    output.write_all(b"\n")?;
    output.flush()
}

async fn undo_for_daemon(run_dir: &Path) -> Result<(), Failure> {
    let _lock = match run_dir::lock(run_dir, Duration::from_secs(1)).await {
        Ok(lock) => lock,
        // A daemon holds it, and undoes what it finds.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(failed(&error)),
    };
    undo::undo(run_dir).await.map_err(|error| failed(&error))?;
    info!("The daemon was killed; the host is as it was before");
    Ok(())
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("kvpnd was killed and its changes cannot be undone: {error}"),
        "start kvpnd, which tries again",
    )
}
