//! `kvpn doctor`: finds out what is wrong.

use std::process::ExitCode;

use kvpn_proto::check::Check;

use crate::args::Flags;
use crate::check_process;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::output::{self, Findings};
use crate::progress::Progress;
use crate::session::Session;

pub(crate) async fn run(flags: &Flags) -> Result<ExitCode, Ended> {
    let mut interrupts = Interrupts::listen()?;
    let findings = {
        let progress = Progress::start("checking");
        tokio::select! {
            checks = examine(flags, &progress) => Findings::new(checks),
            signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
        }
    };
    output::print(&findings, flags.output)?;
    Ok(ExitCode::from(findings.exit_code()))
}

async fn examine(flags: &Flags, progress: &Progress) -> Vec<Check> {
    let mut checks = check_process::run(flags, progress).await;
    progress.step("checking the connection");
    checks.extend(connection(flags).await);
    checks
}

/// What the running session finds.
async fn connection(flags: &Flags) -> Vec<Check> {
    const NAME: &str = "Connection";
    let session = match Session::find(flags).await {
        Ok(Some(session)) => session,
        Ok(None) => return vec![Check::skipped(NAME, "not connected")],
        Err(failure) => return vec![Check::failure(NAME, failure)],
    };
    let status = match session.status().await {
        Ok(status) => status,
        Err(failure) => return vec![Check::failure(NAME, failure)],
    };
    let message = format!(
        "connected to context {}, namespace {}",
        status.context, status.namespace
    );
    let mut checks = vec![Check::ok(NAME, message)];
    match session.diagnose().await {
        Ok(found) => {
            // A newer session may find what this kvpn cannot read.
            let found = found.checks.iter();
            checks.extend(found.filter_map(|json| serde_json::from_str(json).ok()));
        }
        Err(failure) => checks.push(Check::failure("Tunnel", failure)),
    }
    checks
}
