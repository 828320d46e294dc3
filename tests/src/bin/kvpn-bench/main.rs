//! The two ends of a measurement: the server in a pod, and the client that opens
//! connections to it and prints what it measured as JSON.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use serde_json::Value;

mod bulk;
mod connects;
mod datagrams;
mod idle;
mod names;
mod pingpong;
mod pipe;
mod random;
mod server;
mod stalled;
mod target;

use self::target::Target;

/// Measures a way into the cluster
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The other end, until SIGTERM
    Server,
    /// Bytes per second
    Bulk {
        direction: Direction,
        #[command(flatten)]
        to: To,
        #[arg(long, default_value_t = 1)]
        flows: usize,
        #[command(flatten)]
        time: Time,
    },
    /// How long a byte takes there and back
    Pingpong {
        #[command(flatten)]
        to: To,
        /// Beside a flow in this direction
        #[arg(long)]
        beside: Option<Direction>,
        #[command(flatten)]
        time: Time,
    },
    /// Connections per second: open, one byte each way, close
    Connects {
        #[command(flatten)]
        to: To,
        #[arg(long, default_value_t = 16)]
        at_once: usize,
        /// Beside so many connections, each way, that nobody reads from
        #[arg(long, default_value_t = 0)]
        stalled: usize,
        #[command(flatten)]
        time: Time,
    },
    /// Connections that each have exchanged a byte, held until a signal
    Idle {
        #[command(flatten)]
        to: To,
        #[arg(long)]
        count: usize,
    },
    /// How long a name takes
    Names {
        /// The name, which must have an IPv4 address
        #[arg(long)]
        name: String,
        /// Ask for another name below it each time
        #[arg(long)]
        distinct: bool,
        #[command(flatten)]
        time: Time,
    },
    /// Datagrams per second
    Datagrams {
        #[command(flatten)]
        to: To,
        /// Bytes in each
        #[arg(long, default_value_t = 1200)]
        size: usize,
        #[command(flatten)]
        time: Time,
    },
    /// How long a block of a file takes, wherever in it
    Random {
        file: PathBuf,
        #[command(flatten)]
        time: Time,
    },
}

/// Where the server is.
#[derive(Debug, Args)]
#[group(required = true)]
struct To {
    /// The pod's address
    #[arg(long)]
    to: Option<IpAddr>,
    /// Through the API server that this kubeconfig names
    #[arg(long)]
    pipe: Option<PathBuf>,
}

/// How long to measure, and how long before that not to.
#[derive(Clone, Copy, Debug, Args)]
struct Time {
    #[arg(long, value_parser = parse_seconds, default_value = "3")]
    seconds: Duration,
    #[arg(long, value_parser = parse_seconds, default_value = "0.5")]
    warm: Duration,
}

/// Where the bytes of a flow go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// To the client
    Down,
    /// To the server
    Up,
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(measured) => {
            say(&measured);
            // Threads that still send have nothing more to tell.
            std::process::exit(0)
        }
        Err(error) => {
            eprintln!("kvpn-bench: {error:#}");
            std::process::exit(1)
        }
    }
}

fn run(command: Command) -> Result<Value> {
    raise_file_limit()?;
    let mut measured = match command {
        Command::Server => return server::run(),
        Command::Bulk {
            direction,
            to,
            flows,
            time,
        } => bulk::run(&to.target()?, direction, flows, time),
        Command::Pingpong { to, beside, time } => pingpong::run(&to.target()?, beside, time),
        Command::Connects {
            to,
            at_once,
            stalled,
            time,
        } => connects::run(&to.target()?, at_once, stalled, time),
        Command::Idle { to, count } => idle::run(&to.target()?, count),
        Command::Names {
            name,
            distinct,
            time,
        } => names::run(&name, distinct, time),
        Command::Datagrams { to, size, time } => datagrams::run(to.address()?, size, time),
        Command::Random { file, time } => random::run(&file, time),
    }?;
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("read the CPU time")?;
    let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    measured["cpu_seconds"] = (spent as f64 / 1e6).into();
    Ok(measured)
}

impl To {
    fn target(&self) -> Result<Target> {
        match (self.to, &self.pipe) {
            (Some(address), _) => Ok(Target::Pod(address)),
            (None, Some(kubeconfig)) => pipe::Pipe::read(kubeconfig).map(Target::Pipe),
            (None, None) => bail!("no server given"),
        }
    }

    fn address(&self) -> Result<IpAddr> {
        self.to.context("the pipe carries no datagrams")
    }
}

/// Prints a line at once, also into a pipe.
fn say(line: impl std::fmt::Display) {
    let mut stdout = std::io::stdout().lock();
    // Nobody may be listening.
    drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// Allows as many connections as the machine does.
fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read the limit of files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of files")
}

fn parse_seconds(text: &str) -> Result<Duration> {
    Duration::try_from_secs_f64(text.parse().context("a number of seconds")?)
        .context("a number of seconds")
}
