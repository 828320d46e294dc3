//! What processes of the lab cost: CPU time and memory.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::rig::CONNECTED;
use crate::lab::{Lab, cgroup};
use crate::soak;

/// Ticks per second in `/proc`, on every architecture that kvpn is built for.
const TICKS: f64 = 100.0;

/// A process whose cost is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Session,
    Manager,
    ApiServer,
    Server,
    /// Of the pod that is engaged; none has one before.
    Agent,
}

impl Role {
    pub(super) const ALL: [Self; 4] = [Self::Session, Self::Manager, Self::ApiServer, Self::Server];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Manager => "manager",
            Self::ApiServer => "apiserver",
            Self::Server => "server",
            Self::Agent => "agent",
        }
    }

    /// Its one process.
    pub(super) fn pid(self, lab: &Lab) -> Result<i32> {
        match self {
            Self::Session => soak::session(&lab.laptop(CONNECTED)?),
            Self::Manager => soak::manager(),
            Self::ApiServer => {
                let process = lab.process("kube-apiserver");
                Ok(process.context("no API server")?.pid)
            }
            // Clients are called like the server.
            Self::Server => only(b"/kvpn-bench\0server\0"),
            Self::Agent => only(b"/sidecar-agent\0--manager\0"),
        }
    }
}

/// The one process of the lab whose command line begins so.
fn only(command: &[u8]) -> Result<i32> {
    let is_meant = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(command)
    };
    let mut found = cgroup::members()?;
    found.retain(is_meant);
    let command = String::from_utf8_lossy(command).replace('\0', " ");
    ensure!(found.len() == 1, "processes of {command}: {found:?}");
    found.into_iter().next().context("none")
}

/// CPU time that a process has used, in seconds.
pub(super) fn cpu_seconds(pid: i32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("process {pid} has ended"))?;
    let ticks = parse_ticks(&stat).context("read the CPU time")?;
    Ok(ticks as f64 / TICKS)
}

/// User and system time in a line of `/proc/PID/stat`.
fn parse_ticks(stat: &str) -> Option<u64> {
    // The second field is the name in parentheses and may contain anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut field = || fields.next()?.parse::<u64>().ok();
    Some(field()? + field()?)
}

/// How many files a process has open, connections among them.
pub(super) fn open_files(pid: i32) -> Result<usize> {
    let files = fs::read_dir(format!("/proc/{pid}/fd"));
    Ok(files
        .with_context(|| format!("process {pid} has ended"))?
        .count())
}

/// Memory of a process, of files too, in bytes.
pub(super) fn resident_bytes(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let mut lines = status.lines();
    let kib = lines.find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("read the memory")?.parse::<u64>()? << 10)
}

/// Memory of a process that is not a file's, in bytes.
pub(super) fn anonymous_bytes(pid: i32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("process {pid} has ended"))?;
    parse_anonymous(&rollup).context("read the memory")
}

fn parse_anonymous(rollup: &str) -> Option<u64> {
    let line = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_parentheses_is_no_trouble() {
        let stat = "7 (a b) c) S 1 1 1 0 -1 4194560 2 0 0 0 150 50 0 0 20 0 1 0 9 0 0";
        assert_eq!(parse_ticks(stat), Some(200));
    }

    #[test]
    fn anonymous_memory_is_read() {
        let rollup = "Rss:  900 kB\nAnonymous:           120 kB\nSwap: 0 kB\n";
        assert_eq!(parse_anonymous(rollup), Some(120 << 10));
    }

    #[test]
    fn own_cost_is_known() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(cpu_seconds(pid).unwrap() < 1_000.0);
        assert!(anonymous_bytes(pid).unwrap() > 0);
    }
}
