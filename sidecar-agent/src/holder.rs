//! Stops the processes of another container, for as long as the agent says so. It is a
//! container of its own, which shares the process namespace of the one that it stops
//! (<https://kubernetes.io/docs/concepts/workloads/pods/ephemeral-containers/>).
//!
//! The processes are traced (ptrace(2)). However this one ends, the kernel lets them go on.

mod processes;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tracing::{debug, info, warn};

/// Name of the abstract socket on which the agent of a pod waits for holders.
pub(crate) const SOCKET: &str = "kvpn-agent-holders";

/// What the agent asks for, and what it is answered. Any other answer says why not.
pub(crate) const HOLD: &str = "hold";
pub(crate) const RELEASE: &str = "release";
pub(crate) const DONE: &str = "done";

/// How long until the agent is called again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a thread may take to stop. One that waits for a disk takes as long as that.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How long until a thread is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Serves the agent of this pod until it has not been there, or has asked for nothing, for
/// that long.
///
/// # Errors
/// The processes of the container cannot be seen.
pub(crate) fn run(container: &str, linger: Duration) -> anyhow::Result<()> {
    processes::check()?;
    info!(container, "Waiting for the agent");
    let address = address()?;
    let mut held = Held::default();
    let mut last = Instant::now();
    while last.elapsed() < linger {
        if let Ok(agent) = UnixStream::connect_addr(&address) {
            // Whoever else in the pod has taken the name is not obeyed.
            let is_roots = getsockopt(&agent, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
            let served = match is_roots {
                true => serve(agent, container, linger, &mut held),
                false => Err(anyhow::anyhow!("it is not root's")),
            };
            match served {
                Ok(()) => return Ok(()),
                Err(error) => debug!("The agent has gone: {error:#}"),
            }
            if !held.release() {
                return Ok(());
            }
            last = Instant::now();
        }
        sleep(AGAIN);
    }
    Ok(())
}

/// Does what the agent says. An error when it is gone; otherwise this process is to end, as
/// it was asked for nothing for long enough, or may still trace something.
fn serve(
    agent: UnixStream,
    container: &str,
    linger: Duration,
    held: &mut Held,
) -> anyhow::Result<()> {
    let mut writer = agent.try_clone()?;
    let mut reader = BufReader::new(agent);
    writeln!(writer, "{container}")?;
    loop {
        // What is held is held for as long as the agent is there.
        let patience = held.0.is_empty().then_some(linger);
        reader.get_ref().set_read_timeout(patience)?;
        let mut word = String::new();
        match reader.read_line(&mut word) {
            Ok(0) => bail!("it has hung up"),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let (done, is_clean) = match word.trim_end() {
            HOLD => {
                let held = held.hold();
                let is_held = held.is_ok();
                (held, is_held)
            }
            RELEASE => (Ok(()), held.release()),
            word => bail!("the holder does not know {word:?}"),
        };
        match done {
            Ok(()) => {
                info!(container, threads = held.0.len(), "{}", word.trim_end());
                writeln!(writer, "{DONE}")?;
            }
            Err(error) => {
                warn!(container, "{error:#}");
                held.release();
                writeln!(writer, "{}", format!("{error:#}").replace('\n', " "))?;
            }
        }
        if !is_clean {
            // The end of this process lets go of whatever it still traces.
            return Ok(());
        }
    }
}

/// The threads that are stopped, and the signals that they are still to be given.
#[derive(Default)]
struct Held(BTreeMap<i32, Option<Signal>>);

impl Held {
    /// Stops all threads of the container.
    fn hold(&mut self) -> anyhow::Result<()> {
        loop {
            let mut more = false;
            for thread in processes::threads().context("list the processes")? {
                if !self.0.contains_key(&thread) {
                    // One that is gone by now may have made others.
                    more = true;
                    self.stop(thread)?;
                }
            }
            // Those that are stopped make no new ones.
            if !more {
                ensure!(!self.0.is_empty(), "the container has no process");
                return Ok(());
            }
        }
    }

    /// Stops a thread, unless it is gone.
    fn stop(&mut self, thread: i32) -> anyhow::Result<()> {
        let pid = Pid::from_raw(thread);
        match ptrace::seize(pid, ptrace::Options::empty()).and_then(|()| ptrace::interrupt(pid)) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(()),
            // What the kernel says of those that have ended and are not waited for yet.
            Err(Errno::EPERM) if !processes::is_alive(thread) => return Ok(()),
            Err(error) => {
                return Err(error).context("the kernel does not let its processes be traced");
            }
        }
        // From now on it has to be let go.
        self.0.insert(thread, None);
        let deadline = Instant::now() + STOP_DEADLINE;
        loop {
            match waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive => {
                    ensure!(
                        Instant::now() < deadline,
                        "thread {thread} has not stopped within {} s",
                        STOP_DEADLINE.as_secs()
                    );
                    sleep(LOOK_AGAIN);
                }
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                    self.0.remove(&thread);
                    return Ok(());
                }
                WaitStatus::Stopped(_, signal) => {
                    self.0.insert(thread, Some(signal));
                    return Ok(());
                }
                WaitStatus::PtraceEvent(..)
                | WaitStatus::PtraceSyscall(_)
                | WaitStatus::Continued(_) => return Ok(()),
            }
        }
    }

    /// Lets them go on where they were. Returns whether all were let go: one that was
    /// killed meanwhile, or has not stopped yet, is traced for as long as this process runs.
    fn release(&mut self) -> bool {
        let mut all = true;
        for (thread, signal) in std::mem::take(&mut self.0) {
            if let Err(error) = ptrace::detach(Pid::from_raw(thread), signal) {
                warn!(thread, %error, "A thread cannot be let go");
                all = false;
            }
        }
        all
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}

/// Where the agent waits for holders.
pub(crate) fn address() -> anyhow::Result<SocketAddr> {
    SocketAddr::from_abstract_name(SOCKET).context("name a socket")
}
