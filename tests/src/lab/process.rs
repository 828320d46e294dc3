//! Processes, known by pid and start time so that a reused pid is not mistaken.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait_for;

/// A process that the lab started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub name: String,
    pub pid: i32,
    /// Clock ticks after boot, as in `/proc/PID/stat`.
    start_time: u64,
}

impl Process {
    /// Takes note of a process that runs now.
    pub fn observe(name: &str, pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid).context("a pid")?;
        let start_time = start_time(pid).with_context(|| format!("{name} ended at once"))?;
        Ok(Self {
            name: name.to_owned(),
            pid,
            start_time,
        })
    }

    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// Sends a signal unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            send(self.pid, signal);
        }
    }

    /// Ends it: SIGTERM, and SIGKILL when that is not enough.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM);
        if wait_for("end", grace, || Ok((!self.is_alive()).then_some(()))).is_err() {
            self.signal(Signal::SIGKILL);
        }
        let what = format!("{} (pid {}) ends", self.name, self.pid);
        wait_for(&what, Duration::from_secs(5), || {
            Ok((!self.is_alive()).then_some(()))
        })
    }
}

/// Kills the pids until none that `find` gives is left.
pub(crate) fn kill_all(what: &str, find: impl Fn() -> Result<BTreeSet<i32>>) -> Result<()> {
    wait_for(
        &format!("no process is left in {what}"),
        Duration::from_secs(20),
        || {
            let pids = find()?;
            for &pid in &pids {
                send(pid, Signal::SIGKILL);
            }
            if pids.is_empty() {
                return Ok(Some(()));
            }
            bail!("still there: {}", describe(&pids))
        },
    )
}

/// Pids with their command lines, for messages.
pub(crate) fn describe(pids: &BTreeSet<i32>) -> String {
    let lines = pids
        .iter()
        .map(|pid| format!("{pid} ({})", command_line(*pid)));
    lines.collect::<Vec<_>>().join(", ")
}

/// Every process that a predicate of its `/proc` directory holds for. This
/// process and kernel threads are never among them.
pub(crate) fn find(holds: impl Fn(&Path) -> bool) -> Result<BTreeSet<i32>> {
    let own = Pid::this().as_raw();
    let mut pids = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Ok(pid) = name.parse::<i32>() else {
            continue;
        };
        if pid != own && start_time(pid).is_some() && holds(&path) {
            pids.insert(pid);
        }
    }
    Ok(pids)
}

/// Processes in any of the network namespaces, given by inode number.
pub(crate) fn in_network_namespaces(inodes: &[u64]) -> Result<BTreeSet<i32>> {
    find(|proc| namespace_inode(&proc.join("ns/net")).is_some_and(|inode| inodes.contains(&inode)))
}

/// The inode number of a namespace file.
pub(crate) fn namespace_inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

pub(crate) fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .replace('\0', " ")
        .trim()
        .to_owned()
}

/// When the process started; `None` once it has ended, also as a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

fn send(pid: i32, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill(Pid::from_raw(pid), signal);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn process_with_another_start_time_is_not_ours() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::observe("sleep", child.id()).unwrap();
        let impostor = Process {
            start_time: process.start_time + 1,
            ..process.clone()
        };
        assert!(process.is_alive());
        assert!(!impostor.is_alive());
        impostor.signal(Signal::SIGKILL);
        assert!(process.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
    }
}
