//! `kvpn why request`: tells where a request would go.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::Failure;
use kvpn_proto::v1::{JudgeRequest, JudgeResponse};

use crate::args::Flags;
use crate::ended::Ended;
use crate::interrupts::Interrupts;
use crate::output::{self, Judged};
use crate::progress::Progress;
use crate::session::Session;

/// Tell where a request to a workload would go, rule by rule
///
/// Holds the request against everybody's intercepts and wiretaps of the port, in the order
/// in which they are tried. Nothing is sent to the workload.
#[derive(Args, Debug)]
pub(super) struct RequestArgs {
    /// Workload: NAME or KIND/NAME, such as web or deploy/web
    #[arg(value_name = "NAME")]
    target: String,
    /// Path of the request, with its query
    #[arg(value_name = "/PATH", default_value = "/")]
    path: String,
    /// Port of the Service or container, by number or name, when there are several
    #[arg(short, long, value_name = "PORT")]
    port: Option<String>,
    /// Header of the request: NAME=VALUE; may be given more than once
    #[arg(long, value_name = "HEADER")]
    http_header: Vec<String>,
    /// Method of the request
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    http_method: String,
}

pub(super) async fn run(flags: &Flags, args: &RequestArgs) -> Result<ExitCode, Ended> {
    let mut interrupts = Interrupts::listen()?;
    let response = tokio::select! {
        response = ask(flags, args) => response?,
        signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
    };
    output::print(&Judged::from(response), flags.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(flags: &Flags, args: &RequestArgs) -> Result<JudgeResponse, Failure> {
    let _progress = Progress::start(format!("looking at the intercepts of {}", args.target));
    let session = Session::require(flags).await?;
    let request = JudgeRequest {
        namespace: flags.request_namespace(),
        target: args.target.clone(),
        port: args.port.clone().unwrap_or_default(),
        method: args.http_method.clone(),
        path: args.path.clone(),
        headers: args.http_header.clone(),
    };
    session.judge(request).await
}
