//! `kvpn ingest`: has what a workload's container has, without its traffic.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use kvpn_proto::crd::Verb;
use kvpn_proto::v1::InterceptRequest;

use super::engage::{EnvironmentArgs, engage};
use super::intercept::timeout;
use crate::args::Flags;
use crate::ended::Ended;

/// Get the environment of a workload's container, and none of its traffic
///
/// Until `kvpn leave`, this laptop may read what a container of one of the workload's pods
/// has. The pods go on as they are. Whoever does it must be allowed to execute commands in
/// them (`create` of `pods/exec`).
#[derive(Args, Debug)]
pub(crate) struct IngestArgs {
    #[command(flatten)]
    pub(crate) read: ReadArgs,
    #[command(flatten)]
    pub(crate) environment: EnvironmentArgs,
}

/// What is read.
#[derive(Args, Debug)]
pub(crate) struct ReadArgs {
    /// Workload: NAME or KIND/NAME, such as web or deploy/web
    #[arg(value_name = "NAME")]
    target: String,
    #[command(flatten)]
    reader: ReaderArgs,
}

/// Where it is read, and how long that may take to begin.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReaderArgs {
    /// Container to read [default: the only one, or the pod's default one as for kubectl]
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
    /// How long to wait until it can be read, such as 90s or 2m
    #[arg(long, default_value = "60s", value_parser = timeout, value_name = "DURATION")]
    timeout: Duration,
}

impl ReadArgs {
    /// An ingest of the environment.
    pub(crate) fn request(&self, flags: &Flags) -> InterceptRequest {
        InterceptRequest {
            environment: true,
            ..self.reader.request(flags, &self.target)
        }
    }
}

impl ReaderArgs {
    /// An ingest of nothing yet.
    pub(crate) fn request(&self, flags: &Flags, target: &str) -> InterceptRequest {
        InterceptRequest {
            namespace: flags.request_namespace(),
            target: target.to_owned(),
            verb: Verb::Ingest.as_str().to_owned(),
            container: self.container.clone().unwrap_or_default(),
            timeout_seconds: u32::try_from(self.timeout.as_secs()).unwrap_or(u32::MAX),
            ..InterceptRequest::default()
        }
    }
}

pub(crate) async fn run(flags: &Flags, args: &IngestArgs) -> Result<ExitCode, Ended> {
    engage(flags, &args.environment, args.read.request(flags)).await
}
