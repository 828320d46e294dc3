//! The project's tasks: `cargo xtask …`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod demo;
mod deny;
mod fuzz;
mod generate;
mod lab;
mod test;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A throwaway Kubernetes with two laptops, on this machine
    Lab {
        #[command(subcommand)]
        command: lab::LabCommand,
    },
    /// Build all images; bring them to the lab when it is up
    Images,
    /// Write the files that are generated from code
    Generate {
        /// Only fail when one differs
        #[arg(long)]
        check: bool,
    },
    /// Everything that must hold: format, lints, generated files, all tests
    Test(test::TestArgs),
    /// Check licences, bans and sources of dependencies with cargo-deny
    Deny,
    /// Feed random bytes to all that reads bytes of others; needs cargo-fuzz and
    /// a nightly toolchain
    Fuzz(fuzz::FuzzArgs),
    /// Measure kvpn beside the direct way and the raw pipe, on the lab
    Bench(bench::BenchArgs),
    /// See kvpn at work on this machine, step by step
    Demo,
}

fn main() -> ExitCode {
    kvpn_tests::progress::begin();
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    match cli.task {
        Task::Lab { command } => lab::run(command),
        Task::Images => kvpn_tests::lab::build_images().map(|()| ExitCode::SUCCESS),
        Task::Generate { check } => generate::run(check).map(|()| ExitCode::SUCCESS),
        Task::Test(args) => test::run(&args),
        Task::Deny => deny::run(),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Demo => demo::run().map(|()| ExitCode::SUCCESS),
    }
}
