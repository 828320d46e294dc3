//! `kvpn quit`: takes the laptop out of the cluster.

use std::process::ExitCode;

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, Disconnection, Engagement};
use crate::progress::Progress;
use crate::session::{self, Session};

pub(crate) async fn run(flags: &Flags) -> Result<ExitCode, Ended> {
    let disconnection = quit(flags).await?;
    output::print(&disconnection, flags.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn quit(flags: &Flags) -> Result<Disconnection, Ended> {
    let _progress = Progress::start("disconnecting");
    let Some(session) = Session::find().await? else {
        return Ok(Disconnection::default());
    };
    // Without such a flag even a session that cannot tell its status is ended.
    if flags.context.is_some() || flags.kubeconfig.is_some() {
        session::check_selected(flags, &session.status().await?)?;
    }
    let response = session.quit().await?;
    Ok(Disconnection {
        connected: false,
        was_connected: true,
        ended: response.ended.into_iter().map(Engagement::from).collect(),
    })
}
