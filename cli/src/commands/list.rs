//! `kvpn list`: shows what can be intercepted.

use std::process::ExitCode;

use kvpn_proto::v1::{ListRequest, ListResponse};

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, Format, Workloads};
use crate::progress::Progress;
use crate::report;
use crate::session::Session;

pub(crate) async fn run(flags: &Flags) -> Result<ExitCode, Ended> {
    let workloads = Workloads::from(list(flags).await?);
    if workloads.is_empty() && flags.output == Format::Text {
        report::note("No workloads found");
    }
    output::print(&workloads, flags.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn list(flags: &Flags) -> Result<ListResponse, Ended> {
    let _progress = Progress::start("listing workloads");
    let session = Session::require(flags).await?;
    let request = ListRequest {
        namespace: flags.request_namespace(),
    };
    Ok(session.list(request).await?)
}
