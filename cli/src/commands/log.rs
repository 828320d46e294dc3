//! `kvpn log`: shows what becomes of requests at an engagement's ports.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::v1::LogRequest;

use crate::args::Flags;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::output::{self, Format, Line};
use crate::report;
use crate::session::Session;

/// Show what became of requests, each with whom it went to
///
/// Of every request at the ports of an intercept or a wiretap: when it came and to which
/// pod, its method and path, the answer's status and how long it took, and to whom it went.
/// Connections that are no HTTP, or that nobody needs to look into, have a line each.
/// Bodies, queries and headers are not shown.
#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    /// Workload (NAME or KIND/NAME) or engagement of this connection
    #[arg(value_name = "NAME")]
    target: String,
    /// Go on with the requests that come, until interrupted
    #[arg(short, long)]
    watch: bool,
}

pub(crate) async fn run(flags: &Flags, args: &LogArgs) -> Result<ExitCode, Ended> {
    let mut interrupts = Interrupts::listen()?;
    let session = Session::require(flags).await?;
    let request = LogRequest {
        namespace: flags.request_namespace(),
        target: args.target.clone(),
        watch: args.watch,
    };
    let mut lines = session.log(request).await?;
    let mut has_lines = false;
    loop {
        let line = tokio::select! {
            line = lines.message() => line.map_err(|status| session.failure(status))?,
            signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
        };
        let Some(line) = line else {
            break;
        };
        has_lines = true;
        if line.left_out > 0 && flags.output == Format::Text {
            report::note(&format!("{} requests are left out here", line.left_out));
        }
        if !output::print_line(&Line::from(line), flags.output)? {
            break;
        }
    }
    if !has_lines && flags.output == Format::Text {
        report::note("No requests of late");
    }
    Ok(ExitCode::SUCCESS)
}
