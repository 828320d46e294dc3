//! Traffic as laptops make it, checked byte for byte: for the soak and for tests
//! that curl cannot do. Prints what it counted as JSON; fails when anything was
//! not as it must be.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

mod connects;
mod http;
mod idle;
mod mix;
mod stall;
mod target;

use self::target::Target;

/// Traffic for tests of kvpn
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Short connections, one after another, from few ports
    Connects {
        target: Target,
        #[arg(long, default_value_t = 5000)]
        count: u32,
        /// How many source ports to use in turn
        #[arg(long, default_value_t = 16)]
        ports: u16,
    },
    /// Bodies that come back as they are sent, all at once
    Echo {
        target: Target,
        #[arg(long, default_value_t = 13)]
        flows: u64,
        /// Size of each in bytes
        #[arg(long, default_value_t = 20 << 20)]
        size: u64,
    },
    /// A connection that is silent for a while
    Idle {
        target: Target,
        #[arg(long, default_value_t = 15)]
        seconds: u64,
    },
    /// Connections whose server never reads, and others beside them
    Stall {
        target: Target,
        #[arg(long, default_value_t = 16)]
        flows: usize,
        /// How many others
        #[arg(long, default_value_t = 100)]
        probes: usize,
    },
    /// A mixture of all that laptops do
    Mix {
        /// A Service of the sample application
        #[arg(long, default_value = "web.shop:80")]
        service: Target,
        /// A pod of it
        #[arg(long, default_value = "store.shop:8080")]
        pod: Target,
        #[arg(long, default_value_t = 25)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let load = Options::parse().load;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let result = runtime
        .context("start")
        .and_then(|runtime| runtime.block_on(run(load)));
    match result {
        Ok(counted) => {
            // Nobody may be listening.
            drop(writeln!(std::io::stdout(), "{counted}"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("kvpn-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(load: Load) -> Result<serde_json::Value> {
    match load {
        Load::Connects {
            target,
            count,
            ports,
        } => connects::run(&target, count, ports).await,
        Load::Echo {
            target,
            flows,
            size,
        } => http::echo_all(&target, flows, size).await,
        Load::Idle { target, seconds } => idle::run(&target, Duration::from_secs(seconds)).await,
        Load::Stall {
            target,
            flows,
            probes,
        } => stall::run(&target, flows, probes).await,
        Load::Mix {
            service,
            pod,
            seconds,
        } => mix::run(service, pod, Duration::from_secs(seconds)).await,
    }
}
