//! `cargo xtask fuzz`: feeds random bytes to all that reads bytes of a TUN or
//! of a peer.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use kvpn_tests::Cmd;
use kvpn_tests::lab::layout::Layout;
use kvpn_tests::progress::step;

/// The longest input, and the memory that one may take, in MiB.
const LONGEST: u32 = 4_096;
const MEMORY: u32 = 2_048;

#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Only these targets
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs targets one after the other. What makes one fail is kept among its
/// regression inputs, which tests replay.
pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let fuzz = Fuzz::new()?;
    let all = fuzz.targets()?;
    let targets = if args.targets.is_empty() {
        &all
    } else {
        &args.targets
    };
    if let Some(unknown) = targets.iter().find(|target| !all.contains(target)) {
        bail!("no target {unknown}; there are {}", all.join(", "));
    }
    let mut failed = Vec::new();
    for target in targets {
        step(format_args!("Fuzzing {target} for {} s", args.seconds));
        if !fuzz.run(target, args.seconds)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    step(format_args!(
        "FAILED: {}; the inputs are in fuzz/regressions",
        failed.join(", ")
    ));
    Ok(ExitCode::FAILURE)
}

struct Fuzz {
    repository: PathBuf,
    /// Where binaries go, and inputs that reach new code.
    output: PathBuf,
}

impl Fuzz {
    fn new() -> Result<Self> {
        let has_cargo_fuzz = Cmd::new("cargo")
            .args(["fuzz", "--version"])
            .run()
            .is_ok_and(|out| out.status.success());
        ensure!(
            has_cargo_fuzz,
            "cargo-fuzz is not installed; `cargo install cargo-fuzz --locked` installs it"
        );
        let repository = Layout::new().repository().to_owned();
        Ok(Self {
            output: repository.join("target/fuzz"),
            repository,
        })
    }

    fn targets(&self) -> Result<Vec<String>> {
        let directory = self.repository.join("fuzz/targets");
        let mut names = Vec::new();
        for file in fs::read_dir(&directory).context("list fuzz/targets")? {
            let path = file?.path();
            names.extend(path.file_stem().map(|name| name.display().to_string()));
        }
        names.sort();
        Ok(names)
    }

    /// Tells whether the target held.
    fn run(&self, target: &str, seconds: u32) -> Result<bool> {
        let corpus = self.output.join("corpus").join(target);
        let regressions = self.repository.join("fuzz/regressions").join(target);
        fs::create_dir_all(&corpus).context("make the corpus")?;
        fs::create_dir_all(&regressions).context("make the regressions")?;
        // It sets RUSTFLAGS, which takes the place of those that make binaries
        // static: the address sanitizer does not go with them.
        let status = Cmd::new("cargo")
            .args(["+nightly", "fuzz", "run", "--target-dir"])
            .arg(&self.output)
            .arg(target)
            .args([&corpus, &regressions])
            .arg("--")
            .arg(format!("-artifact_prefix={}/", regressions.display()))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-rss_limit_mb={MEMORY}"))
            .args(["-timeout=10", "-print_final_stats=1"])
            .dir(&self.repository)
            .foreground()?;
        Ok(status.success())
    }
}
