//! `kvpn quit`: takes the laptop out of the cluster.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::Failure;

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, Disconnection, Engagement};
use crate::progress::Progress;
use crate::session::Session;

/// Disconnect, end all intercepts, and put the laptop's network back
///
/// Succeeds when there is no connection. Ends all connections unless one is named.
#[derive(Args, Debug)]
pub(crate) struct QuitArgs {
    /// Connection to end [default: all]
    #[arg(value_name = "NAME", conflicts_with = "name")]
    connection: Option<String>,
}

pub(crate) async fn run(flags: &Flags, args: &QuitArgs) -> Result<ExitCode, Ended> {
    let mut flags = flags.clone();
    if args.connection.is_some() {
        flags.name.clone_from(&args.connection);
    }
    let (disconnection, failure) = quit(&flags).await;
    match failure {
        Some(failure) if !disconnection.was_connected => return Err(failure.into()),
        Some(_) | None => output::print(&disconnection, flags.output)?,
    }
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// What has ended of what the flags mean, and what could not.
pub(super) async fn quit(flags: &Flags) -> (Disconnection, Option<Failure>) {
    let _progress = Progress::start("disconnecting");
    let mut disconnection = Disconnection::default();
    let meant = Session::meant(flags).await;
    let mut failed = meant.failure();
    for session in meant.sessions {
        match end(session).await {
            Ok(ended) => {
                disconnection.was_connected = true;
                disconnection.ended.extend(ended);
            }
            // The others are not to be kept by it.
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    (disconnection, failed)
}

async fn end(session: Session) -> Result<Vec<Engagement>, Failure> {
    let response = session.quit().await?;
    Ok(response.ended.into_iter().map(Engagement::from).collect())
}
