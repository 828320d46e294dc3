//! Points between the steps of a change, at which tests stop this process to see
//! what is left when it dies right there. Release builds have none.

#[cfg(debug_assertions)]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Says at which point, counted from one, this process is to stop itself.
pub(crate) const VARIABLE: &str = "KVPN_FAULT_POINT";

/// A point after the step of this name.
#[cfg(debug_assertions)]
pub(crate) fn point(step: &str) {
    static PASSED: AtomicUsize = AtomicUsize::new(0);
    let Some(wanted) = std::env::var(VARIABLE).ok() else {
        return;
    };
    let passed = PASSED.fetch_add(1, Ordering::Relaxed) + 1;
    if wanted.parse() == Ok(passed) {
        tracing::warn!(step, "Stopped at a fault point");
        // It cannot fail: the signal is one, and this process is there.
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
    }
}

/// A point after the step of this name.
#[cfg(not(debug_assertions))]
pub(crate) fn point(_: &str) {}
