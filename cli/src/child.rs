//! A command that kvpn runs for the user.

mod terminal;
pub(crate) mod watched;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use kvpn_proto::{Failure, Reason};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::ended::{Ended, exit_code_of_signal};
use crate::interrupts::Interrupts;
use terminal::Terminal;

/// Runs a command to its end, with these variables besides those of this process; gives the
/// exit code that a shell would give. Signals that come meanwhile are passed on; one that has
/// come before keeps it from being run.
pub(crate) async fn run(
    program: &OsString,
    arguments: &[OsString],
    variables: impl Iterator<Item = (OsString, OsString)>,
    interrupts: &mut Interrupts,
) -> Result<u8, Ended> {
    if let Some(signal) = interrupts.take().await {
        return Err(Ended::Interrupted(signal));
    }
    let terminal = Terminal::own();
    let mut child = Command::new(program)
        .args(arguments)
        .envs(variables)
        .spawn()
        .map_err(|error| not_run(program, &error))?;
    let group = child.id();
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(Failure::internal)?;
                if let Some(terminal) = terminal {
                    terminal.take_back(group, status.signal().is_some());
                }
                return Ok(exit_code(status));
            },
            signal = interrupts.next() => if !has_come_from_terminal(signal) {
                pass_on(&child, signal);
            },
        }
    }
}

pub(crate) fn not_run(program: &OsStr, error: &io::Error) -> Failure {
    let known = [
        (
            ErrorKind::NotFound,
            "give a program that is on the PATH after `--`",
        ),
        (
            ErrorKind::PermissionDenied,
            "give a program after `--` that you may execute",
        ),
        (
            ErrorKind::ArgumentListTooLong,
            "leave variables out with --env-exclude",
        ),
    ];
    let known = known.into_iter().find(|(kind, _)| *kind == error.kind());
    let next_step = known.map_or("see whether it runs without kvpn", |(_, step)| step);
    Failure::new(
        Reason::Usage,
        format!("cannot run {}: {error}", program.display()),
        next_step,
    )
}

/// Whether the command has got a signal too: those that are typed, the terminal sends to
/// all that is in its foreground.
fn has_come_from_terminal(signal: Signal) -> bool {
    let is_typed = [Signal::SIGINT, Signal::SIGQUIT].contains(&signal);
    is_typed && fs::read_to_string("/proc/self/stat").is_ok_and(|stat| is_in_foreground(&stat))
}

/// By its `pgrp` and `tpgid` (proc_pid_stat(5)).
fn is_in_foreground(stat: &str) -> bool {
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    let mut fields = fields.into_iter().flat_map(|fields| fields.split(' '));
    let (group, foreground) = (fields.nth(2), fields.nth(2));
    group.is_some() && group == foreground
}

fn pass_on(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // Not reaped yet, so the number is still its own.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// What a shell gives.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    let signal = status.signal().map(exit_code_of_signal);
    code.or(signal).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_is_the_commands_or_tells_its_signal() {
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn why_a_command_is_not_run_decides_what_to_do() {
        let told = |kind: ErrorKind| not_run("./server".as_ref(), &io::Error::from(kind)).next_step;
        assert!(told(ErrorKind::NotFound).contains("on the PATH"));
        assert!(told(ErrorKind::PermissionDenied).contains("may execute"));
        assert!(told(ErrorKind::ArgumentListTooLong).contains("--env-exclude"));
        assert!(!told(ErrorKind::OutOfMemory).contains("PATH"));
    }

    #[test]
    fn foreground_of_a_terminal_is_told() {
        assert!(is_in_foreground("12 (kv) pn) S 1 12 7 34816 12 4194304 1"));
        assert!(!is_in_foreground("12 (kvpn) S 1 12 7 34816 9 4194304 1"));
        // Without a terminal.
        assert!(!is_in_foreground("12 (kvpn) S 1 12 7 0 -1 4194304 1"));
        assert!(!is_in_foreground(""));
    }
}
