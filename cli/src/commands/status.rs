//! `kvpn status`: shows the connections.

use std::process::ExitCode;

use kvpn_proto::{Failure, Reason};

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, ConnectionStatus};
use crate::session::Session;

pub(crate) async fn run(flags: &Flags) -> Result<ExitCode, Ended> {
    let meant = Session::meant(flags).await;
    let mut failure = meant.failure();
    match &meant.sessions[..] {
        [] if failure.is_some() => {}
        [] => {
            output::print(&ConnectionStatus::default(), flags.output)?;
            // An answer, not an error; yet scripts can test for it.
            return Ok(ExitCode::from(Reason::NotConnected.exit_code()));
        }
        [session] => output::print(&status(session).await?, flags.output)?,
        sessions @ [_, _, ..] => {
            for session in sessions {
                match status(session).await {
                    Ok(status) if output::print_next(&status, flags.output)? => {}
                    Ok(_) => break,
                    Err(other) => failure = failure.or(Some(other)),
                }
            }
        }
    }
    match failure {
        // What can be told is told.
        Some(failure) => Err(failure.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

async fn status(session: &Session) -> Result<ConnectionStatus, Failure> {
    Ok(ConnectionStatus::from(session.status().await?))
}
