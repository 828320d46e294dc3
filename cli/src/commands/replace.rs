//! `kvpn replace`: stands in for a workload's container.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::crd::Verb;
use kvpn_proto::v1::InterceptRequest;

use super::engage::engage;
use super::intercept::EngageArgs;
use crate::args::Flags;
use crate::ended::Ended;

/// Stop a workload's container, and hand its connections to a local port
///
/// Until `kvpn leave`, new connections to the workload's pods are answered by this laptop,
/// and the processes of the container stand still: they take no jobs from queues, and
/// write nothing. They go on where they were as soon as this laptop is gone. The pods are
/// not restarted, and the kubelet's probes of the ports are answered for the app.
#[derive(Args, Debug)]
pub(crate) struct ReplaceArgs {
    #[command(flatten)]
    pub(crate) engage: EngageArgs,
    /// Container to stop [default: the one that has the ports]
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
}

pub(crate) async fn run(flags: &Flags, args: &ReplaceArgs) -> Result<ExitCode, Ended> {
    engage(flags, &args.engage.environment, request(flags, args)).await
}

/// What the session is asked for.
pub(crate) fn request(flags: &Flags, args: &ReplaceArgs) -> InterceptRequest {
    InterceptRequest {
        container: args.container.clone().unwrap_or_default(),
        ..args.engage.request(flags, Verb::Replace)
    }
}
