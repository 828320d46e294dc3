//! The traffic manager: the part of kvpn that runs in the cluster. It lets
//! laptops in, dials for them, and brings agents into the pods that they
//! engage.

mod admission;
mod api;
mod cluster;
mod config;
mod controller;
mod dial;
mod hub;
mod listen;
mod metrics;
mod run;
mod state;
mod tls;
mod webhook;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing::error;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    kvpn_tunnel::memory::keep_freed();
    let config = config::Config::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
