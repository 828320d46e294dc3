//! `kvpn version`: shows which versions run.

use std::path::Path;
use std::process::ExitCode;

use kvpn_proto::{names, version};

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, Versions};
use crate::root_daemon;
use crate::session::Session;

pub(crate) async fn run(flags: &Flags) -> Result<ExitCode, Ended> {
    let mut versions = Versions {
        client: version::VERSION.into(),
        daemon: root_daemon::version(Path::new(names::DAEMON_SOCKET)),
        ..Versions::default()
    };
    // Whatever is wrong with the session, the other versions are still to be had.
    if let Ok(Some(session)) = Session::find(flags).await
        && let Ok(status) = session.status().await
    {
        let known = |version: String| Some(version).filter(|it| !it.is_empty());
        versions.session = known(status.session_version);
        versions.traffic_manager = known(status.manager_version);
        versions.chart = known(status.chart_version);
    }
    output::print(&versions, flags.output)?;
    Ok(ExitCode::SUCCESS)
}
