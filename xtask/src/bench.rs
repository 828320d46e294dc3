//! `cargo xtask bench …`.

mod documents;
mod picture;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use kvpn_tests::bench::{Group, Pace, Plan, Report, figures};
use kvpn_tests::progress::step;
use serde::Serialize;

use crate::lab::say;

/// What is run alone.
const SOAK: &str = "soak";

#[derive(Args)]
pub(crate) struct BenchArgs {
    #[arg(help = help_of_what())]
    what: Vec<String>,
    /// Write what was measured to a file
    #[arg(long)]
    json: Option<PathBuf>,
    /// How often each figure is measured
    #[arg(long)]
    rounds: Option<usize>,
    /// Only see a tendency: fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// How long a soak lasts
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Measure what is built already
    #[arg(long)]
    no_build: bool,
    /// Leave the lab up, with the release build installed
    #[arg(long)]
    keep: bool,
    /// Write the table and the picture of docs/benchmarks.md, of a full run
    #[arg(long)]
    docs: bool,
    /// Measure nothing; show what an earlier run wrote
    #[arg(long, value_name = "JSON", conflicts_with_all = ["what", "rounds", "quick", "keep", "no_build"])]
    from: Option<PathBuf>,
}

fn help_of_what() -> String {
    format!(
        "Groups ({}) or figures by their keys, such as {}; all when none is given. Alone: {SOAK}",
        Group::ALL.map(Group::name).join(", "),
        figures::ALL[0]
    )
}

pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    if args.docs {
        // Before anything is measured in vain.
        let is_full = args.what.is_empty()
            && !args.quick
            && args.rounds.is_none_or(|rounds| rounds >= Pace::FULL.rounds);
        ensure!(
            is_full,
            "--docs takes a full run: all figures, without --quick, at least {} rounds. Run \
             `cargo xtask bench --docs`",
            Pace::FULL.rounds
        );
    }
    if args.from.is_none() && !args.no_build {
        kvpn_tests::bench::build()?;
    }
    if args.what == [SOAK] {
        return soak(args);
    }
    let report = match &args.from {
        Some(path) => read(path)?,
        None => measure(args)?,
    };
    if let Some(path) = &args.json {
        write(path, &report)?;
    }
    if args.docs {
        documents::write(&report)?;
    }
    say(&table::text(&report))?;
    Ok(ExitCode::SUCCESS)
}

/// Mixed traffic for a long time, instead of figures.
fn soak(args: &BenchArgs) -> Result<ExitCode> {
    kvpn_tests::bench::soak(Duration::from_secs(args.minutes * 60), args.keep)?;
    say(&format!(
        "{} minutes of mixed traffic, every byte as it must be, at bounded memory",
        args.minutes
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn measure(args: &BenchArgs) -> Result<Report> {
    let pace = match args.quick {
        true => Pace::QUICK,
        false => Pace::FULL,
    };
    let plan = Plan {
        figures: figures::select(&args.what).map_err(|error| anyhow!(error))?,
        pace: Pace {
            rounds: args.rounds.unwrap_or(pace.rounds).max(1),
            ..pace
        },
        keep: args.keep,
    };
    step(format_args!("Measuring {} figures", plan.figures.len()));
    kvpn_tests::bench::run(&plan)
}

fn read(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_group() {
        let mut bench = BenchArgs::augment_args(clap::Command::new("bench"));
        let help = bench.render_help().to_string();
        for group in Group::ALL {
            assert!(help.contains(group.name()), "{group:?}: {help}");
        }
    }
}
