//! `kvpn quit`: takes the laptop out of the cluster.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::Failure;
use kvpn_proto::names::check_connection;

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, Disconnection, Engagement};
use crate::progress::Progress;
use crate::session::{self, Session};

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
    let disconnection = quit(flags, args).await?;
    output::print(&disconnection, flags.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn quit(flags: &Flags, args: &QuitArgs) -> Result<Disconnection, Ended> {
    let _progress = Progress::start("disconnecting");
    let mut disconnection = Disconnection::default();
    let mut failed = None;
    for session in chosen(flags, args).await? {
        match end(flags, session).await {
            Ok(ended) => {
                disconnection.was_connected = true;
                disconnection.ended.extend(ended);
            }
            // The others are not to be kept by it.
            Err(failure) => failed = failed.or(Some(failure)),
        }
    }
    match failed {
        None => Ok(disconnection),
        Some(failure) => Err(failure.into()),
    }
}

async fn end(flags: &Flags, session: Session) -> Result<Vec<Engagement>, Failure> {
    // Without such a flag even a session that cannot tell its status is ended.
    if flags.context.is_some() || flags.kubeconfig.is_some() {
        session::check_selected(flags, &session.status().await?)?;
    }
    let response = session.quit().await?;
    Ok(response.ended.into_iter().map(Engagement::from).collect())
}

/// The session that is named, or all.
async fn chosen(flags: &Flags, args: &QuitArgs) -> Result<Vec<Session>, Failure> {
    match args.connection.as_ref().or(flags.name.as_ref()) {
        Some(name) => {
            check_connection(name)?;
            Ok(Session::of(name).await?.into_iter().collect())
        }
        None => Session::all().await,
    }
}
