//! Threads that stand still for as long as one of this process traces them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::unistd::Pid;
use tracing::{debug, error};

use super::processes;
use super::ptrace::{Turn, go_on_with, next_turn};

/// How long until the threads are looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How long another that traces a thread, as the holder before may, has to end.
const OTHERS_END: Duration = Duration::from_millis(500);

/// How much longer than the threads may take to stop the one that traces may take to tell.
const GRACE: Duration = Duration::from_secs(2);

/// Keeps threads stopped until it is dropped.
///
/// The kernel lets go of all that a thread traces when it ends, also of what cannot be let
/// go otherwise: who has ended, or has not stopped yet. So each hold has a thread of its own.
#[derive(Debug)]
pub(super) struct Hold {
    threads: usize,
    release: Option<mpsc::Sender<Infallible>>,
    tracer: Option<JoinHandle<()>>,
}

impl Hold {
    /// Stops all threads that `list` tells, and those that they make meanwhile. When they do
    /// not stop in time, all go on.
    pub(super) fn new(
        list: impl Fn() -> io::Result<Vec<i32>> + Send + 'static,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let (release, released) = mpsc::channel::<Infallible>();
        let (tell, told) = mpsc::channel();
        let trace = move || {
            let mut traced = Traced::default();
            let outcome = traced.stop(list, patience);
            let is_stopped = outcome.is_ok();
            if !is_stopped {
                traced.let_go();
            }
            // Who is not there any more lets go, too.
            let _ = tell.send(outcome.map(|()| traced.0.len()));
            if is_stopped {
                let _ = released.recv();
                traced.let_go();
            }
        };
        let tracer = thread::Builder::new().spawn(trace);
        let tracer = tracer.context("start a thread that traces")?;
        let mut hold = Self {
            threads: 0,
            release: Some(release),
            tracer: Some(tracer),
        };
        match told.recv_timeout(patience + GRACE) {
            Ok(outcome) => hold.threads = outcome?,
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that traces has ended"),
            // The kernel has it wait for a process that executes a program, and which itself
            // waits for a thread that is stopped already. The end of this process ends that.
            Err(RecvTimeoutError::Timeout) => {
                error!("The thread that traces hangs");
                std::process::exit(1);
            }
        }
        Ok(hold)
    }

    /// How many were stopped.
    pub(super) fn threads(&self) -> usize {
        self.threads
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.release.take());
        if self
            .tracer
            .take()
            .map(JoinHandle::join)
            .is_some_and(|end| end.is_err())
        {
            debug!("The thread that traces has panicked");
        }
    }
}

/// The threads that the calling one traces, and whether they have stopped.
#[derive(Debug, Default)]
struct Traced(BTreeMap<i32, bool>);

impl Traced {
    fn stop(
        &mut self,
        list: impl Fn() -> io::Result<Vec<i32>>,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        let mut seen = BTreeSet::new();
        loop {
            ensure!(
                Instant::now() < deadline,
                "it makes new threads faster than they can be stopped"
            );
            let mut more = false;
            for thread in list().context("list the processes")? {
                // One that is gone by now may have made others.
                more |= seen.insert(thread);
                if !self.0.contains_key(&thread) && processes::is_alive(thread) {
                    self.seize(thread)?;
                }
            }
            self.await_stops(deadline, patience)?;
            // Those that are stopped make no new ones.
            if !more {
                ensure!(!self.0.is_empty(), "the container has no process");
                return Ok(());
            }
        }
    }

    /// Has a thread stop, unless it is gone.
    fn seize(&mut self, thread: i32) -> anyhow::Result<()> {
        let pid = Pid::from_raw(thread);
        let deadline = Instant::now() + OTHERS_END;
        loop {
            let seized = ptrace::seize(pid, ptrace::Options::empty());
            match seized.and_then(|()| ptrace::interrupt(pid)) {
                Ok(()) => {
                    self.0.insert(thread, false);
                    return Ok(());
                }
                Err(Errno::ESRCH) => return Ok(()),
                // What the kernel says of those that have ended and are not waited for yet.
                Err(Errno::EPERM) if !processes::is_alive(thread) => return Ok(()),
                // And of those that another traces, which may be about to end.
                Err(Errno::EPERM) if Instant::now() < deadline => sleep(LOOK_AGAIN),
                Err(error) => {
                    return Err(error).with_context(|| match processes::tracer(thread) {
                        Some(tracer) => format!("process {tracer} traces it already"),
                        None => "the kernel does not let its processes be traced".to_owned(),
                    });
                }
            }
        }
    }

    /// Waits until all have stopped, or ended.
    fn await_stops(&mut self, deadline: Instant, patience: Duration) -> anyhow::Result<()> {
        loop {
            self.take_turns()?;
            // Of some the kernel tells no end, such as the first thread when another executes
            // a program and takes its number.
            self.0
                .retain(|thread, is_stopped| *is_stopped || processes::is_alive(*thread));
            let running = self.0.values().filter(|is_stopped| !**is_stopped).count();
            if running == 0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "it does not answer: {running} of {} threads have not stopped within {} s",
                self.0.len(),
                patience.as_secs()
            );
            sleep(LOOK_AGAIN);
        }
    }

    /// Takes in what has become of them.
    fn take_turns(&mut self) -> nix::Result<()> {
        loop {
            match next_turn() {
                Ok(None) => return Ok(()),
                Ok(Some((thread, Turn::Stopped))) => drop(self.0.insert(thread, true)),
                Ok(Some((thread, Turn::Ended))) => drop(self.0.remove(&thread)),
                // It is still to stop, with the signal's handler as what comes next.
                Ok(Some((thread, Turn::Signal(signal)))) => match go_on_with(thread, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error),
                },
                Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => {
                    self.0.clear();
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets them go on where they were, but for those that have not stopped: they may have
    /// come to a signal, which would be lost, and go on when this thread ends.
    fn let_go(&mut self) {
        let stopped = self.0.iter().filter(|(_, is_stopped)| **is_stopped);
        for (thread, _) in stopped {
            if let Err(error) = ptrace::detach(Pid::from_raw(*thread), None) {
                debug!(thread, %error, "Let go by the end of the thread that traces");
            }
        }
        self.0.clear();
    }
}

#[cfg(test)]
mod tests;
