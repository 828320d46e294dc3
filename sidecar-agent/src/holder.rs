//! Stops the processes of another container, for as long as the agent says so. It is a
//! container of its own, which shares the process namespace of the one that it stops
//! (<https://kubernetes.io/docs/concepts/workloads/pods/ephemeral-containers/>).
//!
//! The processes are traced (ptrace(2)). However this one ends, the kernel lets them go on.

mod hold;
pub(crate) mod processes;
mod ptrace;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tracing::{debug, info, warn};

use self::hold::Hold;

/// Name of the abstract socket on which the agent of a pod waits for holders.
pub(crate) const SOCKET: &str = "kvpn-agent-holders";

/// What the agent asks for, and what it is answered. Any other answer says why not.
pub(crate) const HOLD: &str = "hold";
pub(crate) const RELEASE: &str = "release";
pub(crate) const DONE: &str = "done";

/// How long until the agent is called again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long the processes may take to stop. One that waits for a disk takes as long as that.
/// The agent waits longer for the answer.
const STOP_DEADLINE: Duration = Duration::from_secs(4);

/// The longest word that the agent may say, in bytes.
const LONGEST_WORD: u64 = 64;

/// Serves the agent of this pod until it has not been there, or has asked for nothing, for
/// that long.
///
/// # Errors
/// The processes of the container cannot be seen.
pub(crate) fn run(container: &str, linger: Duration) -> anyhow::Result<()> {
    processes::check()?;
    info!(container, "Waiting for the agent");
    let address = address()?;
    let mut last = Instant::now();
    while last.elapsed() < linger {
        if let Ok(agent) = UnixStream::connect_addr(&address) {
            // Whoever else in the pod has taken the name is not obeyed.
            let is_roots = getsockopt(&agent, PeerCredentials).is_ok_and(|peer| peer.uid() == 0);
            let served = match is_roots {
                true => serve(agent, container, linger),
                false => Err(anyhow::anyhow!("it is not root's")),
            };
            match served {
                Ok(()) => return Ok(()),
                Err(error) => debug!("The agent has gone: {error:#}"),
            }
            last = Instant::now();
        }
        sleep(AGAIN);
    }
    Ok(())
}

/// Does what the agent says. An error when it is gone; otherwise it has asked for nothing
/// for long enough.
fn serve(agent: UnixStream, container: &str, linger: Duration) -> anyhow::Result<()> {
    let mut writer = agent.try_clone()?;
    let mut reader = BufReader::new(agent);
    writeln!(writer, "{container}")?;
    // What is held is held for as long as the agent is there.
    let mut held: Option<Hold> = None;
    loop {
        let patience = held.is_none().then_some(linger);
        reader.get_ref().set_read_timeout(patience)?;
        let mut word = String::new();
        match reader.by_ref().take(LONGEST_WORD).read_line(&mut word) {
            Ok(0) => bail!("it has hung up"),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let answer = match word.trim_end() {
            HOLD if held.is_some() => DONE.to_owned(),
            HOLD => match Hold::new(|| processes::threads(processes::FIRST), STOP_DEADLINE) {
                Ok(hold) => {
                    info!(container, threads = hold.threads(), "Stopped");
                    held = Some(hold);
                    DONE.to_owned()
                }
                Err(error) => {
                    warn!(container, "Not stopped: {error:#}");
                    format!("{error:#}").replace('\n', " ")
                }
            },
            RELEASE => {
                if held.take().is_some() {
                    info!(container, "Let go");
                }
                DONE.to_owned()
            }
            word => bail!("the holder does not know {word:?}"),
        };
        writeln!(writer, "{answer}")?;
    }
}

/// Where the agent waits for holders.
pub(crate) fn address() -> anyhow::Result<SocketAddr> {
    let name = match cfg!(test) {
        // The tests of others on this machine have their own.
        true => format!("{SOCKET}-{}", std::process::id()),
        false => SOCKET.to_owned(),
    };
    SocketAddr::from_abstract_name(name).context("name a socket")
}
