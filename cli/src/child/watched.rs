//! A command that is run anew whenever something changes.

use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use kvpn_proto::Failure;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{exit_code, not_run};
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::report;
use crate::watch::Watch;

/// How long a command may take to end once it was told to.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the kernel may take to end what is killed.
const KILLED: Duration = Duration::from_secs(1);

/// How often it is looked whether all processes of a command have ended.
const LOOK: Duration = Duration::from_millis(20);

/// Runs a command, and again after each change, until a signal comes; that is passed on.
/// Gives the exit code of a command that has ended by it.
///
/// The command is a process group of its own, so that all of it can be told to end. That is
/// in no terminal's foreground, and thus it has nothing to read.
pub(crate) async fn run(
    program: &OsString,
    arguments: &[OsString],
    variables: impl Iterator<Item = (OsString, OsString)>,
    watch: &mut Watch,
    interrupts: &mut Interrupts,
) -> Result<u8, Ended> {
    if let Some(signal) = interrupts.take().await {
        return Err(Ended::Interrupted(signal));
    }
    let mut command = Command::new(program);
    command.args(arguments).envs(variables);
    command.stdin(Stdio::null()).process_group(0);
    // What has changed before, it sees.
    watch.pass_over();
    let started = Running::start(&mut command);
    let mut running = started.map_err(|error| not_run(program, &error))?;
    loop {
        let changed = tokio::select! {
            code = running.ended() => {
                report::note(&format!(
                    "{} ended with exit code {}; waiting for a change",
                    program.display(),
                    code.map_err(Failure::internal)?
                ));
                continue;
            }
            changed = watch.changed() => changed,
            signal = interrupts.next() => return running.end(signal, interrupts).await,
        };
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) => {
                running
                    .stop(Signal::SIGTERM, Instant::now() + PATIENCE)
                    .await;
                return Err(Failure::internal(error).into());
            }
        };
        tokio::select! {
            () = running.stop(Signal::SIGTERM, Instant::now() + PATIENCE) => {}
            signal = interrupts.next() => return running.end(signal, interrupts).await,
        }
        watch.pass_over();
        match Running::start(&mut command) {
            Ok(started) => {
                running = started;
                report::note(&format!("{} changed: restarted", shown(&changed)));
            }
            // As while it is built.
            Err(error) => {
                report::warning(&not_run(program, &error).message);
                report::note("waiting for a change");
            }
        }
    }
}

/// A command with all its processes.
struct Running {
    child: Child,
    /// Nothing once none is left, as the number may be another group's then.
    group: Option<Pid>,
    /// The exit code, once it has ended.
    code: Option<u8>,
}

impl Running {
    fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        Ok(Self {
            child,
            group: pid.map(Pid::from_raw),
            code: None,
        })
    }

    /// Waits for the end of its first process; for ever once that was told. Cancel-safe.
    async fn ended(&mut self) -> io::Result<u8> {
        if self.code.is_some() {
            return pending().await;
        }
        let code = exit_code(self.child.wait().await?);
        self.code = Some(code);
        self.look();
        Ok(code)
    }

    /// Ends it with a signal that the user or the system has sent.
    async fn end(mut self, signal: Signal, interrupts: &mut Interrupts) -> Result<u8, Ended> {
        let had_ended = self.code.is_some();
        let deadline = Instant::now() + PATIENCE;
        let mut next = signal;
        loop {
            tokio::select! {
                () = self.stop(next, deadline) => break,
                another = interrupts.next() => next = another,
            }
        }
        match self.code {
            Some(code) if !had_ended => Ok(code),
            Some(_) | None => Err(Ended::Interrupted(signal)),
        }
    }

    /// Sends a signal to all its processes, and waits until none is left; kills those that
    /// are there after the deadline.
    async fn stop(&mut self, signal: Signal, deadline: Instant) {
        self.send(signal);
        // A stopped one would not hear it.
        self.send(Signal::SIGCONT);
        if timeout_at(deadline, self.gone()).await.is_err() {
            report::warning(&format!(
                "the command did not end within {} s, and is killed",
                PATIENCE.as_secs()
            ));
            self.send(Signal::SIGKILL);
            if self.code.is_none() && timeout(KILLED, self.ended()).await.is_err() {
                report::warning("the command cannot be killed: it is another user's");
            }
        }
    }

    fn send(&self, signal: Signal) {
        if let Some(group) = self.group {
            // There may be none any more.
            let _ = killpg(group, signal);
        }
    }

    async fn gone(&mut self) {
        if self.code.is_none() {
            let _ = self.ended().await;
        }
        while self.group.is_some() {
            sleep(LOOK).await;
            self.look();
        }
    }

    fn look(&mut self) {
        // Those of another user are there all the same.
        self.group = self
            .group
            .filter(|group| killpg(*group, None) != Err(Errno::ESRCH));
    }
}

/// A path as the user may have given it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let path = path.strip_prefix(here).unwrap_or(path);
    path.display().to_string()
}
