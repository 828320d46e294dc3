//! The soak: a mixture of flows, after which none is left open and no process has
//! grown.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::cgroup;
use crate::lab::laptop::{Laptop, user_id};
use crate::progress::step;
use crate::{Lab, wait_for};

/// How much larger than before a process may be after the soak.
const GROWTH: u64 = 64 << 20;

/// How many datagrams of a thousand may be lost.
const LOST: u64 = 10;

/// UDP flows end when they have been idle for a minute.
const CLOSING: Duration = Duration::from_secs(90);

/// Ports of the sample application, of its Services and of its pods.
const PORTS: [u16; 2] = [80, 8080];

/// What the session and the traffic manager take of memory, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub session: u64,
    pub manager: u64,
}

/// What a soak has shown.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the mixture has counted, as it printed it.
    pub mix: Value,
    pub before: Memory,
    pub peak: Memory,
    pub after: Memory,
}

/// Runs the mixture for a while at a laptop that is connected. Fails when a byte
/// was wrong, a flow stays open, or a process has grown.
pub fn run(lab: &Lab, laptop: &Laptop, time: Duration) -> Result<Report> {
    let session = session(laptop)?;
    let manager = manager()?;
    let memory = || -> Result<Memory> {
        Ok(Memory {
            session: resident(session)?,
            manager: resident(manager)?,
        })
    };
    // What every flow needs is there once the first have been.
    mix(laptop, Duration::from_secs(2))?;
    let before = memory()?;
    let mut peak = before;
    let mixing = {
        let laptop = laptop.clone();
        std::thread::spawn(move || mix(&laptop, time))
    };
    wait_for("the mixture ends", deadline(time), || {
        let now = memory()?;
        peak.session = peak.session.max(now.session);
        peak.manager = peak.manager.max(now.manager);
        Ok(mixing.is_finished().then_some(()))
    })?;
    let mix = mixing.join().ok().context("the mixture panicked")??;
    wait_for("no flow is open", CLOSING, || {
        let open = open_flows(laptop)?;
        ensure!(open == 0, "{open} are");
        Ok(Some(()))
    })?;
    wait_for("the manager has closed all", CLOSING, || {
        let open = connections(manager)?;
        ensure!(open.is_empty(), "open: {}", open.join(", "));
        Ok(Some(()))
    })?;
    let report = Report {
        mix,
        before,
        peak,
        after: memory()?,
    };
    step(&report);
    report.check()?;
    ensure!(
        lab.process("kube-apiserver").is_some(),
        "the API server has ended"
    );
    Ok(report)
}

impl Report {
    fn check(&self) -> Result<()> {
        let grown = [
            ("session", self.before.session, self.after.session),
            ("manager", self.before.manager, self.after.manager),
        ];
        for (name, before, after) in grown {
            ensure!(
                after <= before + GROWTH,
                "the {name} has grown from {} to {} MiB",
                before >> 20,
                after >> 20
            );
        }
        let count = |name: &str| self.mix[name].as_u64().context("not counted");
        let (sent, lost) = (count("datagrams")?, count("datagrams_lost")?);
        ensure!(
            lost * 1000 <= sent * LOST,
            "{lost} of {sent} datagrams are lost"
        );
        Ok(())
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            mix,
            before,
            peak,
            after,
        } = self;
        write!(
            f,
            "Soak: {mix}; session {} MiB before, {} at most, {} after; manager {}, {}, {}",
            before.session >> 20,
            peak.session >> 20,
            after.session >> 20,
            before.manager >> 20,
            peak.manager >> 20,
            after.manager >> 20
        )
    }
}

/// Flows that a laptop's session has open.
pub fn open_flows(laptop: &Laptop) -> Result<u64> {
    let status = laptop.user().run(["kvpn", "status", "-o", "json"])?;
    let status: Value = status.success()?.json()?;
    let open = status["openFlows"].as_u64();
    open.with_context(|| format!("no number of flows in {status}"))
}

/// The process id of a laptop's session.
pub fn session(laptop: &Laptop) -> Result<i32> {
    let user = user_id(laptop.number());
    let command = |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_session = |pid: i32| {
        let command = command(pid);
        let mut words = command.split(|byte| *byte == 0);
        words
            .next()
            .is_some_and(|program| program.ends_with(b"kvpnd"))
            && words.next() == Some(b"session")
            && status(pid, "Uid:").is_ok_and(|uid| uid == u64::from(user))
    };
    only("session", is_session)
}

/// The process id of the traffic manager.
pub fn manager() -> Result<i32> {
    only("traffic manager", |pid| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "traffic-manager")
    })
}

/// The one process of the lab that is wanted.
fn only(what: &str, wanted: impl Fn(i32) -> bool) -> Result<i32> {
    let members = cgroup::members()?;
    let found: Vec<i32> = members.into_iter().filter(|pid| wanted(*pid)).collect();
    ensure!(found.len() == 1, "{what}: {found:?} are running");
    Ok(found[0])
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: i32) -> Result<u64> {
    Ok(status(pid, "VmRSS:")? * 1024)
}

/// The most memory that a process has taken so far, of files too, in bytes.
pub fn peak(pid: i32) -> Result<u64> {
    Ok(status(pid, "VmHWM:")? * 1024)
}

/// The first number of a line of a process's status.
fn status(pid: i32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.with_context(|| format!("no {name} in {path}"))?;
    number.parse().with_context(|| format!("read {name}"))
}

/// What a process's network has open to the sample application.
fn connections(pid: i32) -> Result<Vec<String>> {
    let mut open = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let path = format!("/proc/{pid}/net/{table}");
        let text = fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}"))?;
        open.extend(
            text.lines()
                .filter_map(parse_connection)
                .map(|remote| format!("{table} {remote}")),
        );
    }
    Ok(open)
}

/// The far side of a line of `/proc/net/tcp`, when it is one of the sample
/// application and the connection is not merely remembered.
fn parse_connection(line: &str) -> Option<&str> {
    const TIME_WAIT: &str = "06";
    let mut words = line.split_whitespace().skip(2);
    let (remote, state) = (words.next()?, words.next()?);
    let (_, port) = remote.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (PORTS.contains(&port) && state != TIME_WAIT).then_some(remote)
}

fn mix(laptop: &Laptop, time: Duration) -> Result<Value> {
    let seconds = time.as_secs().to_string();
    let load = laptop
        .user()
        .cmd(["kvpn-load", "mix", "--seconds", &seconds]);
    load.deadline(deadline(time)).run()?.success()?.json()
}

/// When a mixture must have ended: its slowest flow may begin at its end.
fn deadline(time: Duration) -> Duration {
    time + Duration::from_secs(90)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_to_the_sample_application_are_found() {
        let line = |remote: &str, state: &str| {
            format!("   0: 0100007F:9C40 {remote} {state} 00000000:00000000 00:00000000")
        };
        let open = line("0A600001:0050", "01");
        assert_eq!(parse_connection(&open), Some("0A600001:0050"));
        assert_eq!(parse_connection(&line("0A600001:0050", "06")), None);
        assert_eq!(parse_connection(&line("0A600001:01BB", "01")), None);
        let head = "  sl  local_address rem_address   st tx_queue rx_queue";
        assert_eq!(parse_connection(head), None);
    }

    #[test]
    fn growth_and_lost_datagrams_fail_a_soak() {
        let memory = |session| Memory {
            session,
            manager: 1,
        };
        let report = |after, lost: u64| Report {
            mix: serde_json::json!({"datagrams": 1000, "datagrams_lost": lost}),
            before: memory(10 << 20),
            peak: memory(10 << 20),
            after: memory(after),
        };
        assert!(report(20 << 20, 10).check().is_ok());
        assert!(report(75 << 20, 0).check().is_err());
        assert!(report(20 << 20, 11).check().is_err());
    }
}
