//! What the kernel says of traced threads, and how they go on (ptrace(2)). The wrappers of
//! nix do not know real-time signals.

use std::ptr;

use nix::errno::Errno;
use nix::libc;

/// What has become of a traced thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It stands still.
    Stopped,
    /// It is about to be given a signal.
    Signal(i32),
    /// It has ended.
    Ended,
}

/// The next of what has become of the threads that the calling one traces; `None` while
/// nothing has.
///
/// # Errors
/// `ECHILD` when it traces none.
#[expect(unsafe_code, reason = "nix refuses real-time signals")]
pub(super) fn next_turn() -> nix::Result<Option<(i32, Turn)>> {
    let mut status = 0;
    let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: the status is there for as long as the call.
    let thread = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, flags) })?;
    let turn = match status >> 16 {
        _ if !libc::WIFSTOPPED(status) => Turn::Ended,
        0 => Turn::Signal(libc::WSTOPSIG(status)),
        // No events are asked for but that of being interrupted.
        _ => Turn::Stopped,
    };
    Ok((thread != 0).then_some((thread, turn)))
}

/// Gives a stopped thread a signal, and lets it go on.
///
/// # Errors
/// `ESRCH` when it is gone.
#[expect(unsafe_code, reason = "nix has no number for real-time signals")]
pub(super) fn go_on_with(thread: i32, signal: i32) -> nix::Result<()> {
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: this request reads and writes no memory of either process.
    let done = unsafe { libc::ptrace(libc::PTRACE_CONT, thread, none, libc::c_long::from(signal)) };
    Errno::result(done).map(drop)
}
