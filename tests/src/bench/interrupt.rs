//! Ctrl-C, noticed between two runs.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static SEEN: AtomicBool = AtomicBool::new(false);

/// Takes note of SIGINT and SIGTERM instead of ending at once, until the end of
/// this process.
pub(super) fn defer() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("watch for signals")?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            }
            SEEN.store(true, Ordering::Relaxed);
        });
    });
    Ok(())
}

/// Fails when a signal has come.
pub(super) fn check() -> Result<()> {
    if SEEN.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
