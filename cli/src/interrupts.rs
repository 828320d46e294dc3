//! Signals by which a user or the system ends a command.

use std::fs;
use std::future::{pending, ready};

use kvpn_proto::Failure;
use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};
use tokio::task::yield_now;

/// Catches interrupting signals for as long as the process lives.
pub(crate) struct Interrupts {
    /// Nothing where the process was started without, as by nohup(1). Shells start what is to
    /// run in the background without SIGINT and SIGQUIT, too; those are still for who sends
    /// them on purpose.
    hangup: Option<unix::Signal>,
    interrupt: unix::Signal,
    quit: unix::Signal,
    terminate: unix::Signal,
}

impl Interrupts {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen = |kind| unix::signal(kind).map_err(Failure::internal);
        // Before it is listened for, as that changes it.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let is_heard = !is_ignored(&status, Signal::SIGHUP);
        Ok(Self {
            hangup: is_heard.then(|| listen(SignalKind::hangup())).transpose()?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            () = come(self.hangup.as_mut()) => Signal::SIGHUP,
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.quit.recv() => Signal::SIGQUIT,
            _ = self.terminate.recv() => Signal::SIGTERM,
        }
    }

    /// The next one that has come already, if there is one.
    pub(crate) async fn take(&mut self) -> Option<Signal> {
        // The runtime looks for signals between tasks alone.
        yield_now().await;
        tokio::select! {
            biased;
            signal = self.next() => Some(signal),
            () = ready(()) => None,
        }
    }
}

async fn come(signal: Option<&mut unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => pending().await,
    }
}

/// Whether a process of this status (proc_pid_status(5)) ignores a signal.
fn is_ignored(status: &str, signal: Signal) -> bool {
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| (mask >> (signal as i32 - 1)) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn signals_that_a_process_was_started_without_are_known() {
        let status = "Name:\tkvpn\nSigBlk:\t0000000000004003\nSigIgn:\t0000000000001001\n";
        assert!(is_ignored(status, Signal::SIGHUP));
        assert!(is_ignored(status, Signal::SIGPIPE));
        for heard in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            assert!(!is_ignored(status, heard), "{heard}");
        }
        assert!(!is_ignored("", Signal::SIGHUP));
    }

    #[tokio::test]
    async fn signal_that_has_come_is_taken_once() {
        let mut interrupts = Interrupts::listen().unwrap();
        assert_eq!(interrupts.take().await, None);
        raise(Signal::SIGQUIT).unwrap();
        assert_eq!(interrupts.take().await, Some(Signal::SIGQUIT));
        assert_eq!(interrupts.take().await, None);
    }
}
