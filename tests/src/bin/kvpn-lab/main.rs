//! The lab's helper: holds namespaces, enters them, delays packets.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

mod delay;
mod enter;
mod hold;

#[derive(Parser)]
#[command(about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the namespaces of a node or laptop, and keeps them
    #[command(subcommand)]
    Hold(Kind),
    /// Runs a program inside the lab
    Enter(Enter),
    /// Holds every packet of a netfilter queue for a while
    Delay { queue: u16, microseconds: u64 },
}

#[derive(Subcommand)]
enum Kind {
    Node,
    Laptop { number: u8 },
}

#[derive(Args)]
struct Enter {
    /// Only this network namespace, with the files of the host
    #[arg(long, conflicts_with = "like")]
    netns: Option<String>,
    /// Network, mount and host name namespaces of this process
    #[arg(long, value_name = "PID")]
    like: Option<i32>,
    /// User and group to become
    #[arg(long)]
    uid: Option<u32>,
    /// A further group
    #[arg(long)]
    group: Option<u32>,
    /// Working directory, inside
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Leave the terminal's session
    #[arg(long)]
    detach: bool,
    #[arg(last = true, required = true)]
    command: Vec<std::ffi::OsString>,
}

fn main() -> ExitCode {
    close_inherited();
    let result = match Cli::parse().command {
        Command::Hold(Kind::Node) => hold::node(),
        Command::Hold(Kind::Laptop { number }) => hold::laptop(number),
        Command::Enter(args) => enter::run(args),
        Command::Delay {
            queue,
            microseconds,
        } => delay::run(queue, Duration::from_micros(microseconds)),
    };
    let Err(error) = result;
    eprintln!("kvpn-lab: {error:#}");
    ExitCode::from(125)
}

/// Closes all that was inherited besides stdin, stdout and stderr: a daemon of
/// the lab would hold a lock of whoever brought the lab up as long as it runs.
fn close_inherited() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    let inherited: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2)
        .collect();
    for fd in inherited {
        // Among them is the one that listed them, which is closed by now.
        let _ = nix::unistd::close(fd);
    }
}
