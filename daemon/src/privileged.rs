//! Everything that is done as root: leases are granted to sessions, and undone
//! when these end.

use std::io::{self, IsTerminal};

use kvpn_proto::{Failure, Reason};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

use crate::config::{GuardArgs, ServeArgs};

mod access;
mod address;
mod conversation;
mod guard;
mod holders;
mod host;
mod journal;
mod mounts;
mod name_server;
mod resolv_conf;
mod resolved;
mod resolver;
mod route;
mod routing;
mod run_dir;
mod server;
mod tun;
mod undo;
mod upstreams;

/// Runs the root daemon until it is told to end.
pub(crate) fn serve(args: ServeArgs) -> Result<(), Failure> {
    start_log();
    runtime()?.block_on(server::run(args))
}

/// Runs the guard of a daemon until that ends.
pub(crate) fn guard(args: GuardArgs) -> Result<(), Failure> {
    start_log();
    guard::run(&args.run_dir)
}

/// Logs to standard error. What cannot be written is lost: a guard must go on
/// when the terminal is gone.
fn start_log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .log_internal_errors(false)
        .init();
}

/// What of the host could not be done.
fn failed(step: &str, error: &io::Error) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("cannot {step}: {error}"),
        "make sure that kvpnd runs as root with CAP_NET_ADMIN, and look at its log",
    )
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::internal)
}
