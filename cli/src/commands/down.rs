//! `kvpn down`: takes down what a file says.

use std::process::ExitCode;

use clap::Args;

use super::quit::quit;
use super::up::FileArgs;
use crate::args::Flags;
use crate::ended::Ended;
use crate::file::Plan;
use crate::output::{self, Disconnection};

/// End the connections of a file, and all that they have engaged
///
/// A `kvpn up` that runs commands ends, too. Succeeds when nothing of it is there.
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    file: FileArgs,
}

pub(crate) async fn run(flags: &Flags, args: &DownArgs) -> Result<ExitCode, Ended> {
    let source = args.file.read()?;
    let mut all = Disconnection::default();
    let mut failed = None;
    for step in Plan::connections(&source, flags)?.iter().rev() {
        let mut meant = step.cli.flags.clone();
        meant.name = Some(meant.connection().to_owned());
        let (disconnection, failure) = quit(&meant).await;
        all.was_connected |= disconnection.was_connected;
        all.ended.extend(disconnection.ended);
        // The others are not to be kept by it.
        let failure = failure.map(|it| source.blame(&step.at, it));
        failed = failed.or(failure);
    }
    match failed {
        Some(failure) if !all.was_connected => Err(failure.into()),
        failed => {
            output::print(&all, flags.output)?;
            failed.map_or(Ok(ExitCode::SUCCESS), |failure| Err(failure.into()))
        }
    }
}
