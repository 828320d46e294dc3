//! `kvpn`, the command line: asks the user's session for what the user wants,
//! and shows what it answers.

mod args;
mod check_process;
mod child;
mod commands;
mod ended;
mod environment;
mod file;
mod files;
mod handlers;
mod interrupts;
mod kubeconfig;
mod output;
mod progress;
mod rates;
mod report;
mod root_daemon;
mod screen;
mod session;
mod session_process;
mod watch;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let format = cli.flags.output;
    match commands::run(cli) {
        Ok(code) => code,
        Err(ended) => {
            report::ended(&ended, format);
            ExitCode::from(ended.exit_code())
        }
    }
}
