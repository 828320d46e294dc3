//! How long a block of a file takes, wherever it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::Value;

use crate::Time;
use crate::pingpong::summary;

const BLOCK: u64 = 4_096;

/// Reads blocks in no order.
pub(crate) fn run(path: &Path, time: Time) -> Result<Value> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let blocks = file.metadata().context("look at the file")?.len() / BLOCK;
    ensure!(blocks > 0, "{} is too short", path.display());
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).context("advise")?;
    let start = Instant::now();
    let mut number = 1_u64;
    let mut took = Vec::new();
    while start.elapsed() < time.warm + time.seconds {
        // Knuth's generator for 64 bits, the upper half of which is random enough.
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = (number >> 32) % blocks * BLOCK;
        let asked = Instant::now();
        file.read_exact_at(&mut [0; BLOCK as usize], at)
            .context("read a block")?;
        if start.elapsed() >= time.warm {
            took.push(asked.elapsed().as_secs_f64() * 1e6);
        }
    }
    summary(&took)
}
