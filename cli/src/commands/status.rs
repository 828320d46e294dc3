//! `kvpn status`: shows the connections.

use std::process::ExitCode;

use kvpn_proto::{Failure, Reason};

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, ConnectionStatus};
use crate::session::{self, Session};

pub(crate) async fn run(flags: &Flags) -> Result<ExitCode, Ended> {
    let sessions = Session::meant(flags).await.reachable()?;
    match &sessions[..] {
        [] => {
            output::print(&ConnectionStatus::default(), flags.output)?;
            // An answer, not an error; yet scripts can test for it.
            return Ok(ExitCode::from(Reason::NotConnected.exit_code()));
        }
        [session] => output::print(&status(flags, session).await?, flags.output)?,
        [_, _, ..] => {
            for session in &sessions {
                let status = status(flags, session).await?;
                if !output::print_next(&status, flags.output)? {
                    break;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(flags: &Flags, session: &Session) -> Result<ConnectionStatus, Failure> {
    let status = session.status().await?;
    if flags.context.is_some() || flags.kubeconfig.is_some() {
        session::check_selected(flags, &status)?;
    }
    Ok(ConnectionStatus::from(status))
}
