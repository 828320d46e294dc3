//! Runs `kvpnd check` and reads what it finds.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kvpn_proto::check::Check;
use kvpn_proto::{Failure, Reason};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use crate::args::Flags;
use crate::progress::Progress;
use crate::session_process::{check_arguments, find_daemon};

/// How long all checks may take; a login may be among them.
const DEADLINE: Duration = Duration::from_secs(150);

/// What the program itself is called among the checks.
const NAME: &str = "Program kvpnd";

/// Everything that can be checked without a session.
pub(crate) async fn run(flags: &Flags, progress: &Progress) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Err(failure) = collect(flags, progress, &mut checks).await {
        checks.push(Check::failure(NAME, failure));
    }
    checks
}

async fn collect(
    flags: &Flags,
    progress: &Progress,
    checks: &mut Vec<Check>,
) -> Result<(), Failure> {
    let binary = find_daemon()?;
    let mut child = Command::new(&binary)
        .args(check_arguments(flags))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            Failure::new(
                Reason::DaemonNotRunning,
                format!("cannot run {}: {error}", binary.display()),
                "install kvpnd beside kvpn",
            )
        })?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| Failure::internal("kvpnd has no standard output"))?;
    let mut lines = BufReader::new(stdout).lines();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let line = timeout_at(deadline, lines.next_line())
            .await
            .map_err(|_| late())?
            .map_err(Failure::internal)?;
        let Some(line) = line else { break };
        let check: Check = serde_json::from_str(&line).map_err(|_| other_version())?;
        progress.step(format!("{} checked", check.name));
        checks.push(check);
    }
    let status = timeout_at(deadline, child.wait())
        .await
        .map_err(|_| late())?
        .map_err(Failure::internal)?;
    ended(status)
}

/// Whether it has ended as it does after its last check.
fn ended(status: ExitStatus) -> Result<(), Failure> {
    match status.code() {
        Some(0) => Ok(()),
        // It does not know what it was asked for.
        Some(code) if code == i32::from(Reason::Usage.exit_code()) => Err(other_version()),
        Some(_) | None => Err(Failure::new(
            Reason::Internal,
            format!("kvpnd has not ended its checks: {status}"),
            "this is a fault in kvpn; run `kvpnd check` and report what it prints",
        )),
    }
}

fn late() -> Failure {
    Failure::new(
        Reason::TimedOut,
        format!("the checks did not end within {} s", DEADLINE.as_secs()),
        "look at the last finding before this one",
    )
}

fn other_version() -> Failure {
    Failure::new(
        Reason::VersionMismatch,
        "kvpnd cannot check, or says something that kvpn does not understand",
        "use kvpn and kvpnd of the same version",
    )
}
