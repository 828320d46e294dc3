//! `kvpn ls`: what is in a directory of a workload's container.

use std::process::ExitCode;

use clap::Args;

use super::files::with_files;
use super::ingest::ReaderArgs;
use crate::args::Flags;
use crate::ended::Ended;
use crate::files::{Container, PodPath, list};
use crate::output;

/// List files of a workload's container
///
/// As the container has them, in one of the workload's pods. It is an ingest for as long as it
/// takes; you must be allowed to execute commands in the pods (`create` of `pods/exec`).
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// Workload, and the path of a file or directory in its container, such as web:/etc
    /// [default path: /]
    #[arg(value_name = "NAME[:PATH]")]
    at: PodPath,
    #[command(flatten)]
    reader: ReaderArgs,
}

pub(crate) async fn run(flags: &Flags, args: &LsArgs) -> Result<ExitCode, Ended> {
    let request = args.reader.request(flags, &args.at.target);
    let path = args.at.clone();
    let listed = with_files(flags, request, false, move |at, stop| {
        let container = Container::open(&at, &path.target)?;
        list(&container.find(&path.path)?, stop)
    });
    output::print(&listed.await?, flags.output)?;
    Ok(ExitCode::SUCCESS)
}
