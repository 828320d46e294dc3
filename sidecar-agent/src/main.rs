//! The agent that the traffic manager puts into an engaged pod. It redirects
//! the claimed ports to itself and hands each connection to whoever holds the
//! claim, or else to the app.

mod claims;
mod config;
mod forward;
mod holder;
mod holds;
mod http;
mod keys;
mod listening;
mod pod_dials;
mod probes;
mod reader;
mod redirect;
mod reports;
mod session;
mod settled;
mod tls;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use kvpn_tunnel::turns::EVENT_INTERVAL;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Args, Cli, Command, Config},
    forward::{Forwarder, Listeners},
    redirect::Redirect,
    session::Agent,
    settled::Settled,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .init();
    let done = match (cli.command, cli.args) {
        (Some(Command::AwaitSettled), _) => settled::wait(),
        (Some(Command::Hold { container, linger }), _) => holder::run(&container, linger),
        (Some(Command::Read(args)), _) => reader::run(args),
        (None, Some(args)) => run(args),
        (None, None) => Err(anyhow::anyhow!("see --help")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    // One thread: the agent lives in somebody else's pod and stays small.
    tokio::runtime::Builder::new_current_thread()
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build()
        .context("start the runtime")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let is_sidecar = config.token_file.is_some();
    let settled = match is_sidecar {
        true => Settled::listen(),
        false => Ok(Settled::unawaited()),
    };
    let settled = settled.unwrap_or_else(|error| {
        warn!("The app starts before the claims are in force: {error:#}");
        Settled::unawaited()
    });
    match start(&config) {
        Ok((redirect, forwarder)) => Agent::new(config, redirect, forwarder, settled).run().await,
        // Should it end, the kubelet would not start the app.
        Err(error) if is_sidecar => {
            error!("{error:#}");
            settled.tell();
            session::told_to_stop().await
        }
        Err(error) => Err(error),
    }
}

fn start(config: &Config) -> anyhow::Result<(Redirect, Forwarder)> {
    let redirect = Redirect::open().context("open a netlink socket")?;
    let listeners = Listeners::bind().context("listen for redirected connections")?;
    info!(
        version = kvpn_proto::version::VERSION,
        manager = %config.manager,
        listener = listeners.port(),
        "Agent started"
    );
    Ok((redirect, Forwarder::start(listeners)))
}
