//! The commands, one module each.

pub(crate) mod connect;
pub(crate) mod cp;
mod doctor;
pub(crate) mod down;
mod engage;
pub(crate) mod env;
mod files;
pub(crate) mod flows;
pub(crate) mod ingest;
pub(crate) mod init;
pub(crate) mod intercept;
pub(crate) mod leave;
mod list;
pub(crate) mod log;
pub(crate) mod ls;
pub(crate) mod quit;
pub(crate) mod replace;
pub(crate) mod shell;
mod status;
pub(crate) mod up;
mod version;
pub(crate) mod why;

use std::process::ExitCode;

use kvpn_proto::Failure;
use kvpn_proto::crd::Verb;

use crate::args::{Cli, Command};
use crate::ended::Ended;

/// Runs the command that the user gave.
pub(crate) fn run(cli: Cli) -> Result<ExitCode, Ended> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Ended> {
    let flags = &cli.flags;
    match cli.command {
        Command::Connect(args) => connect::run(flags, &args).await,
        Command::Quit(args) => quit::run(flags, &args).await,
        Command::Status => status::run(flags).await,
        Command::List => list::run(flags).await,
        Command::Intercept(args) => intercept::run(flags, &args, Verb::Intercept).await,
        Command::Wiretap(args) => intercept::run(flags, &args, Verb::Wiretap).await,
        Command::Replace(args) => replace::run(flags, &args).await,
        Command::Ingest(args) => ingest::run(flags, &args).await,
        Command::Env(args) => env::run(flags, &args).await,
        Command::Shell(args) => shell::run(flags, &args).await,
        Command::Ls(args) => ls::run(flags, &args).await,
        Command::Cp(args) => cp::run(flags, &args).await,
        Command::Leave(args) => leave::run(flags, &args).await,
        Command::Up(args) => up::run(flags, &args).await,
        Command::Down(args) => down::run(flags, &args).await,
        Command::Init(args) => init::run(flags, &args).await,
        Command::Log(args) => log::run(flags, &args).await,
        Command::Flows(args) => flows::run(flags, &args).await,
        Command::Doctor => doctor::run(flags).await,
        Command::Why(args) => why::run(flags, &args).await,
        Command::Version => version::run(flags).await,
    }
}
