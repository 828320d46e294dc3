//! A session or a root daemon killed at each step of connect and quit, or both: the
//! laptop is as it was. Who is to be killed stops itself after each step in turn, by
//! its own list of them, until there is none left.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::HostState;
use kvpn_tests::lab::cgroup;
use kvpn_tests::{Background, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Developer, SHOP};

/// How many steps there are at least, of a session and of a daemon that changes no
/// resolv.conf; without it, who never stops would pass.
const STEPS: usize = 11;
const DAEMON_STEPS: usize = 10;

const LIMIT: Duration = Duration::from_secs(5);

/// How long connecting and quitting may take together.
const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn session_killed_at_any_step_leaves_the_laptop_as_before() -> Result<()> {
    kill_at_every_step(false)
}

#[test]
fn session_and_root_daemon_killed_at_any_step_leave_the_laptop_as_before() -> Result<()> {
    kill_at_every_step(true)
}

fn kill_at_every_step(and_daemon: bool) -> Result<()> {
    let mut developer = Developer::at(1)?;
    let before = developer.laptop.host_state()?;
    for step in 1.. {
        let mut command = connect_and_quit(&developer, step)?;
        let find = || stopped(&mut command, stopped_session);
        let Some(session) = wait_for("it stops or ends", DEADLINE, find)? else {
            ensure!(step > STEPS, "there are only {} steps", step - 1);
            return Ok(());
        };
        kill(Pid::from_raw(session), Signal::SIGKILL)?;
        if and_daemon {
            let daemon = developer.lab.daemon(1).context("no root daemon")?;
            daemon.signal(Signal::SIGKILL);
        }
        // How it fails depends on the step.
        let ended = command.wait(DEADLINE).map(drop);
        let as_before = developer.is_as_before(&before);
        if and_daemon {
            developer.lab.start_daemon(1)?;
        }
        ended
            .and(as_before)
            .with_context(|| format!("step {step}"))?;
    }
    Ok(())
}

#[test]
fn root_daemon_killed_at_any_step_leaves_a_laptop_with_resolved_as_before() -> Result<()> {
    let mut developer = Developer::at(1)?;
    let _resolved = developer.laptop.with_resolved()?;
    let before = developer.laptop.host_state()?;
    let mut kill_at = |step| {
        stop_daemon(&developer)?;
        developer.lab.start_daemon_stopping_at(1, step)?;
        kill_daemon_when_stopped(&developer, &before).with_context(|| format!("step {step}"))
    };
    let mut steps = 0;
    let killed = loop {
        match kill_at(steps + 1) {
            Ok(true) => steps += 1,
            ended => break ended,
        }
    };
    // The next test needs one that does not stop.
    stop_daemon(&developer)?;
    developer.lab.start_daemon(1)?;
    killed?;
    ensure!(steps >= DAEMON_STEPS, "there are only {steps} steps");
    Ok(())
}

/// Unless it has been killed.
fn stop_daemon(developer: &Developer) -> Result<()> {
    match developer.lab.daemon(1) {
        Some(daemon) => daemon.stop(LIMIT),
        None => Ok(()),
    }
}

/// Connects and quits; kills the daemon once it has stopped, and tells whether it
/// did.
fn kill_daemon_when_stopped(developer: &Developer, before: &HostState) -> Result<bool> {
    let daemon = developer.lab.daemon(1).context("no root daemon")?;
    let mut command = connect_and_quit(developer, 0)?;
    let find = || {
        stopped(&mut command, || {
            Ok(is_stopped(daemon.pid).then_some(daemon.pid))
        })
    };
    let is_stopped = wait_for("it stops or ends", DEADLINE, find)?.is_some();
    if is_stopped {
        daemon.signal(Signal::SIGKILL);
    }
    // How it fails depends on the step.
    let ended = command.wait(DEADLINE).map(drop);
    developer.is_as_before(before)?;
    ended.map(|()| is_stopped)
}

/// Connects with a session that stops at a step, and quits. No session stops at 0.
fn connect_and_quit(developer: &Developer, step: usize) -> Result<Background> {
    let script = format!("KVPN_FAULT_POINT={step} kvpn connect -n {SHOP} && kvpn quit");
    developer.laptop.user().spawn(["sh", "-c", &script])
}

/// Who is found to have stopped; `Some(None)` once the command has ended without.
fn stopped(
    command: &mut Background,
    find: impl FnOnce() -> Result<Option<i32>>,
) -> Result<Option<Option<i32>>> {
    if let Some(pid) = find()? {
        return Ok(Some(Some(pid)));
    }
    Ok(command.has_ended()?.then_some(None))
}

fn stopped_session() -> Result<Option<i32>> {
    let is_session = |pid: &i32| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline"));
        command.is_ok_and(|it| it.contains("kvpnd\0session\0"))
    };
    let mut sessions = cgroup::members()?.into_iter().filter(is_session);
    Ok(sessions.find(|pid| is_stopped(*pid)))
}

fn is_stopped(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|it| it.contains(") T "))
}
