//! Everything that must hold, in the order of what is quickest to know.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::Args;
use kvpn_tests::Lab;
use kvpn_tests::lab::layout::Layout;
use kvpn_tests::lab::{Options, install_packages};
use kvpn_tests::progress::step;

use crate::generate;
use crate::lab::say;

#[derive(Args)]
pub(crate) struct TestArgs {
    /// Only what needs no lab
    #[arg(long, conflicts_with = "e2e")]
    unit: bool,
    /// Only the end-to-end tests
    #[arg(long)]
    e2e: bool,
    /// Leave the lab up
    #[arg(long)]
    keep: bool,
    /// Only tests whose names contain this, and no checks
    filter: Option<String>,
}

/// Counts of tests, and of checks that are not tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    // Tests of single crates make network namespaces and look into them, too.
    install_packages()?;
    let mut tally = Tally::default();
    if !args.e2e && args.filter.is_none() {
        tally.check("format", cargo(&["fmt", "--all", "--check"]));
        // The end-to-end tests are not among "all targets", as they need a lab.
        let targets = [
            &["--workspace", "--all-targets"][..],
            &["--workspace", "--test", "e2e"],
        ];
        for targets in targets {
            let clippy = [&["clippy", "--quiet"], targets, &["--", "-D", "warnings"]].concat();
            tally.check("lints", cargo(&clippy));
        }
        tally.check("generated files", generate::run(true));
    }
    if !args.e2e {
        tally.tests(
            "unit tests",
            &["--workspace", "--no-fail-fast"],
            args.filter.as_deref(),
        );
    }
    if !args.unit {
        end_to_end(&mut tally, args);
    }
    say(&format!("{} passed, {} failed", tally.passed, tally.failed))?;
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the end-to-end tests on a lab that goes away again, whatever happens.
fn end_to_end(tally: &mut Tally, args: &TestArgs) {
    match Lab::up(Options::ALL) {
        Ok(_) => {
            let target = ["--workspace", "--test", "e2e"];
            tally.tests("end-to-end tests", &target, args.filter.as_deref());
        }
        Err(error) => tally.check("bringing the lab up", Err(error)),
    }
    if !args.keep {
        tally.check("taking the lab down", Lab::end());
    }
}

impl Tally {
    /// Counts a check.
    fn check(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                step(format_args!("ok: {name}"));
            }
            Err(error) => {
                self.failed += 1;
                step(format_args!("FAILED: {name}: {error:#}"));
            }
        }
    }

    /// Runs `cargo test`, and counts the tests.
    fn tests(&mut self, name: &str, target: &[&str], filter: Option<&str>) {
        step(format_args!("Running the {name}"));
        let before = self.failed;
        let result = self.count(target, filter);
        // A test that fails is counted as such; anything else, as one more.
        if self.failed == before || result.is_ok() {
            self.check(name, result);
        }
    }

    fn count(&mut self, target: &[&str], filter: Option<&str>) -> Result<()> {
        let is_e2e = target.contains(&"e2e");
        let mut command = cargo_command();
        command.arg("test").args(target).args(filter);
        if is_e2e {
            // They share the lab, and print what they measure.
            command.args(["--", "--test-threads=1", "--nocapture"]);
        }
        command
            .current_dir(Layout::new().repository())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("run cargo test")?;
        let stdout = child.stdout.take().context("the output of cargo test")?;
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read the output of cargo test")?;
            if let Some((passed, failed)) = parse_result(&line) {
                self.passed += passed;
                self.failed += failed;
            }
            say(&line)?;
        }
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "cargo test ended with {status}");
        Ok(())
    }
}

/// Reads a line such as `test result: ok. 5 passed; 0 failed; …`.
fn parse_result(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line
        .trim()
        .strip_prefix("test result: ")?
        .split_once(". ")?;
    let mut counts = counts.split("; ");
    let mut number = |word: &str| counts.next()?.strip_suffix(word)?.trim().parse().ok();
    Some((number("passed")?, number("failed")?))
}

fn cargo_command() -> Command {
    let mut command = Command::new("cargo");
    command.env_clear().envs(kvpn_tests::cargo::environment());
    command
}

fn cargo(args: &[&str]) -> Result<()> {
    step(format_args!("cargo {}", args.join(" ")));
    let root = Layout::new().repository().to_owned();
    let status = cargo_command()
        .args(args)
        .current_dir(root)
        .status()
        .context("run cargo")?;
    anyhow::ensure!(
        status.success(),
        "cargo {} ended with {status}",
        args.join(" ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured";
        assert_eq!(parse_result(line), Some((12, 3)));
        assert_eq!(parse_result("test a::b ... ok"), None);
    }

    #[test]
    fn failed_check_counts() {
        let mut tally = Tally::default();
        tally.check("one", Ok(()));
        tally.check("other", Err(anyhow::anyhow!("no")));
        assert_eq!(
            tally,
            Tally {
                passed: 1,
                failed: 1
            }
        );
    }
}
