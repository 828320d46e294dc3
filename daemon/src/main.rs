//! `kvpnd`: the root daemon that changes the host's network for a session, and
//! `kvpnd session`, the user's process that joins the host to a cluster.

use std::process::ExitCode;

use clap::Parser;
use kvpn_proto::Failure;
use kvpn_tunnel::memory::keep_freed;
use kvpn_tunnel::turns::EVENT_INTERVAL;

mod config;
mod datapath;
mod dns;
mod fault;
mod host_routes;
mod lease;
mod netlink;
mod privileged;
mod session;
mod why;

use config::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        None => exit_code(privileged::serve(cli.serve)),
        Some(Command::Serve(args)) => exit_code(privileged::serve(args)),
        Some(Command::Guard(args)) => exit_code(privileged::guard(args)),
        Some(Command::Session(args)) => run_session(*args),
        Some(Command::Check(args)) => exit_code(run_check(&args)),
        Some(Command::Why(args)) => exit_code(run_why(&args)),
    }
}

/// Runs a session; it tells its own failures to the command line.
fn run_session(args: session::args::SessionArgs) -> ExitCode {
    keep_freed();
    // One thread carries several Gbit/s. Between threads, each packet would wait
    // for another to wake up.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(session::run(args));
            // A credential plugin or a name lookup may block for minutes.
            runtime.shutdown_background();
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => failure.reason.exit_code().into(),
            }
        }
        Err(error) => exit_code(Err(Failure::internal(error))),
    }
}

/// Checks what a session needs, and tells what it finds.
fn run_check(args: &session::args::SessionArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    let outcome = runtime.block_on(session::check(args));
    // As in a session.
    runtime.shutdown_background();
    outcome.map_err(Failure::internal)
}

fn run_why(args: &why::WhyArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    let outcome = runtime.block_on(why::why(args));
    // As in a session.
    runtime.shutdown_background();
    outcome
}

fn exit_code(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}\nhint: {}", failure.message, failure.next_step);
            failure.reason.exit_code().into()
        }
    }
}
