//! `kvpn status`: shows the connection.

use std::process::ExitCode;

use kvpn_proto::Reason;

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, ConnectionStatus};
use crate::session::{self, Session};

pub(crate) async fn run(flags: &Flags) -> Result<ExitCode, Ended> {
    let Some(session) = Session::find().await? else {
        output::print(&ConnectionStatus::default(), flags.output)?;
        // An answer, not an error; yet scripts can test for it.
        return Ok(ExitCode::from(Reason::NotConnected.exit_code()));
    };
    let status = session.status().await?;
    if flags.context.is_some() || flags.kubeconfig.is_some() {
        session::check_selected(flags, &status)?;
    }
    output::print(&ConnectionStatus::from(status), flags.output)?;
    Ok(ExitCode::SUCCESS)
}
