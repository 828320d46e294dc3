//! A session killed at each step of connect and quit, alone or with the root daemon:
//! the laptop is as it was. The session stops itself after each step in turn, by its
//! own list of them, until there is none left.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::cgroup;
use kvpn_tests::{Background, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Developer, SHOP};

/// How many steps there are at least; without it, a session that never stops would
/// pass.
const STEPS: usize = 11;

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
        let Some(session) = wait_for("it stops or ends", DEADLINE, || stopped(&mut command))?
        else {
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
        let as_before = wait_for("the laptop is as before", LIMIT, || {
            let differences = before.differences(&developer.laptop.host_state()?);
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
            Ok(Some(()))
        });
        if and_daemon {
            developer.lab.start_daemon(1)?;
        }
        ended
            .and(as_before)
            .with_context(|| format!("step {step}"))?;
    }
    Ok(())
}

/// Connects with a session that stops at a step, and quits.
fn connect_and_quit(developer: &Developer, step: usize) -> Result<Background> {
    let script = format!("KVPN_FAULT_POINT={step} kvpn connect -n {SHOP} && kvpn quit");
    developer.laptop.user().spawn(["sh", "-c", &script])
}

/// The session, once it has stopped; `Some(None)` once the command has ended without.
fn stopped(command: &mut Background) -> Result<Option<Option<i32>>> {
    for pid in cgroup::members()? {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let is_session = read("cmdline").is_ok_and(|it| it.contains("kvpnd\0session\0"));
        let is_stopped = read("stat").is_ok_and(|it| it.contains(") T "));
        if is_session && is_stopped {
            return Ok(Some(Some(pid)));
        }
    }
    Ok(command.has_ended()?.then_some(None))
}
