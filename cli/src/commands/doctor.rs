//! `kvpn doctor`: finds out what is wrong.

use std::process::ExitCode;

use kvpn_proto::check::Check;
use kvpn_proto::names;

use crate::args::Flags;
use crate::check_process;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::output::{self, Findings};
use crate::progress::Progress;
use crate::session::{Meant, Session, check_selected};

/// What the connections themselves are called among the checks.
const CONNECTION: &str = "Connection";

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
    let Meant {
        sessions,
        failures,
        elsewhere,
    } = Session::meant(flags).await;
    let flags = named(flags, &sessions).await;
    let mut checks = check_process::run(&flags, progress).await;
    progress.step("checking the connection");
    if sessions.is_empty() && failures.is_empty() {
        let why = elsewhere.map_or("not connected".to_owned(), |it| it.message);
        checks.push(Check::skipped(CONNECTION, why));
    }
    for session in &sessions {
        checks.extend(connection(session).await);
    }
    let failures = failures.into_iter();
    checks.extend(failures.map(|failure| Check::failure(CONNECTION, failure)));
    checks
}

/// The flags with the name of the connection whose own routes are not in its way.
async fn named(flags: &Flags, sessions: &[Session]) -> Flags {
    let mut flags = flags.clone();
    let is_default = |session: &Session| session.name() == names::DEFAULT_CONNECTION;
    if flags.name.is_some() || sessions.iter().any(is_default) {
        return flags;
    }
    for session in sessions {
        let status = session.status().await;
        if status.is_ok_and(|status| check_selected(&flags, &status).is_ok()) {
            flags.name = Some(session.name().to_owned());
            break;
        }
    }
    flags
}

/// What a running session finds.
async fn connection(session: &Session) -> Vec<Check> {
    let status = match session.status().await {
        Ok(status) => status,
        Err(failure) => return vec![Check::failure(CONNECTION, failure)],
    };
    let name = match status.name.as_str() {
        "" | names::DEFAULT_CONNECTION => CONNECTION.to_owned(),
        name => format!("{CONNECTION} {name}"),
    };
    let message = format!(
        "connected to context {}, namespace {}",
        status.context, status.namespace
    );
    let mut checks = vec![Check::ok(&name, message)];
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
