//! `cargo xtask lab …`.

use std::ffi::OsString;
use std::io::Write;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Subcommand, ValueEnum};
use kvpn_tests::lab::{Options, net};
use kvpn_tests::{Cmd, Lab, progress};

#[derive(Subcommand)]
pub(crate) enum LabCommand {
    /// Bring up what is not up yet
    Up {
        /// Install the chart, and start the laptops' root daemons
        #[arg(long)]
        kvpn: bool,
        /// Deploy the sample application
        #[arg(long)]
        sample: bool,
        /// Bring kvpn's images to the node
        #[arg(long)]
        images: bool,
        /// Deploy PostgreSQL, Redis, nginx, MariaDB, Knot, gRPC, WebSocket and HTTP
        #[arg(long)]
        services: bool,
    },
    /// Remove all of it
    Down,
    /// Show what runs, and where
    Status,
    /// Run kubectl on the lab
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run helm on the lab
    Helm {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Run a program at a laptop; a shell when none is given
    Laptop {
        /// Which laptop
        #[arg(long, short, default_value_t = 1)]
        n: u8,
        /// As whom
        #[arg(long, value_enum, default_value_t = Who::Dev)]
        user: Who,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Give a laptop that is not connected systemd-resolved, until tests run
    Resolved {
        /// Which laptop
        #[arg(long, short, default_value_t = 1)]
        n: u8,
        /// Give it its plain resolv.conf back
        #[arg(long)]
        off: bool,
    },
    /// Make the wire between laptops and node worse, or good again
    Wire {
        /// Hold packets that long, each way, such as 20ms; 0ms for not at all
        #[arg(long, value_parser = parse_delay)]
        delay: Option<Duration>,
        /// Lose that share of packets, such as 0.1%; 0% for none
        #[arg(long, value_parser = parse_percent)]
        loss: Option<f64>,
        /// Cut the laptop off
        #[arg(long, conflicts_with = "mend")]
        cut: bool,
        /// Join the laptop again
        #[arg(long)]
        mend: bool,
        /// Which laptop to cut or mend; both when not given
        #[arg(long, short)]
        n: Option<u8>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Who {
    Dev,
    Root,
}

pub(crate) fn run(command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Up {
            kvpn,
            sample,
            images,
            services,
        } => {
            let lab = Lab::up(Options {
                sample,
                kvpn,
                images,
                services,
            })?;
            progress::step("The lab is up");
            say(&lab.status())?;
        }
        LabCommand::Down => Lab::down()?,
        LabCommand::Status => say(&Lab::current()?.status())?,
        LabCommand::Kubectl { args } => return foreground(Lab::current()?.kubectl(args)),
        LabCommand::Helm { args } => return foreground(Lab::current()?.helm(args)),
        LabCommand::Laptop { n, user, command } => {
            let laptop = Lab::current()?.laptop(n)?;
            let login = match user {
                Who::Dev => laptop.user(),
                Who::Root => laptop.root(),
            };
            let command = if command.is_empty() {
                vec!["bash".into()]
            } else {
                command
            };
            let term = std::env::var_os("TERM").unwrap_or_else(|| "dumb".into());
            return foreground(login.cmd(command).env("TERM", term));
        }
        LabCommand::Resolved { n, off } => {
            let laptop = Lab::current()?.laptop(n)?;
            if off {
                laptop.stop_resolved()?;
            } else {
                laptop.start_resolved()?;
            }
        }
        LabCommand::Wire {
            delay,
            loss,
            cut,
            mend,
            n,
        } => {
            let mut lab = Lab::current()?;
            if let Some(delay) = delay {
                lab.delay_packets(delay)?;
            }
            if let Some(loss) = loss {
                lab.lose_packets(loss)?;
            }
            if cut || mend {
                for laptop in n.map_or(net::LAPTOPS.to_vec(), |n| vec![n]) {
                    lab.cut_wire(laptop, cut)?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints to stdout.
pub(crate) fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{}", text.trim_end()).context("print")
}

fn foreground(command: Cmd) -> Result<ExitCode> {
    Ok(exit_code(command.foreground()?))
}

/// The exit code to pass on.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn parse_delay(text: &str) -> Result<Duration> {
    let milliseconds = text
        .trim_end_matches("ms")
        .parse::<f64>()
        .context("a number of ms")?;
    Duration::try_from_secs_f64(milliseconds / 1000.0).context("a delay such as 20ms")
}

fn parse_percent(text: &str) -> Result<f64> {
    let percent: f64 = text
        .trim_end_matches('%')
        .parse()
        .context("a number of percent")?;
    if !(0.0..=100.0).contains(&percent) {
        bail!("not between 0% and 100%");
    }
    Ok(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_in_milliseconds() {
        assert_eq!(parse_delay("20ms").unwrap(), Duration::from_millis(20));
        assert_eq!(parse_delay("0.5").unwrap(), Duration::from_micros(500));
        assert!(parse_delay("-1ms").is_err());
    }

    #[test]
    fn losses_are_shares() {
        assert!((parse_percent("0.1%").unwrap() - 0.1).abs() < f64::EPSILON);
        assert!(parse_percent("101").is_err());
    }
}
