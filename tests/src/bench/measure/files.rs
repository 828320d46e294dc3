//! The files of a container on a laptop: how fast they come, beside the raw pipe and
//! `kubectl cp`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::rig::Family;

const READ: &str = "files_read_1";
const WRITE: &str = "files_write_1";
const RANDOM: &str = "files_random_p50_us";
const SMALL: &str = "files_small_per_s";
const BUSY: &str = "files_small_busy";

/// How long the file is that is read or written in order, in MiB.
const LENGTH: u32 = 1024;

/// How many small files there are, of so many bytes each.
const SMALL_FILES: u32 = 10_000;
const SMALL_BYTES: u32 = 4_000;

/// What makes them, in the container.
fn make_files() -> String {
    format!(
        "dd if=/dev/urandom of=/data/large bs=1M count={LENGTH} status=none; mkdir /data/small
         block=$(printf '%{SMALL_BYTES}s'); cd /data/small
         for i in {{1..{SMALL_FILES}}}; do printf %s \"$block\" > $i; done"
    )
}

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    if !work.wants_any(&[READ, WRITE, RANDOM, SMALL, BUSY]) {
        return Ok(());
    }
    work.rig.add_files()?;
    work.rig.in_files(&["bash", "-c", &make_files()])?;
    for round in work.rounds() {
        if work.wants(READ) {
            let gbits = |took| gbits(LENGTH, took);
            let took = mounted(work, "dd if=data/large of=/dev/null bs=1M status=none")?;
            work.samples.add(READ, Way::Kvpn, gbits(took));
            let took = copied(work, "/data/large")?;
            work.samples.add(READ, Way::Copy, gbits(took));
            let pipe = pipe(work, "down")?;
            work.samples.add(READ, Way::Pipe, pipe);
        }
        if work.wants(WRITE) {
            let write = format!(
                "dd if=/dev/zero of=data/written bs=1M count={LENGTH} conv=fsync status=none"
            );
            let took = mounted(work, &write)?;
            work.samples.add(WRITE, Way::Kvpn, gbits(LENGTH, took));
            let pipe = pipe(work, "up")?;
            work.samples.add(WRITE, Way::Pipe, pipe);
        }
        if work.wants(RANDOM) {
            random(work)?;
        }
        if work.wants_any(&[SMALL, BUSY]) {
            let before = Cpu::read()?;
            let took = mounted(work, "tar -cf - data/small | cat > /dev/null")?;
            let busy = Cpu::read()?.busy_since(&before);
            let per_second = |took: Duration| f64::from(SMALL_FILES) / took.as_secs_f64();
            work.samples.add(SMALL, Way::Kvpn, per_second(took));
            work.samples.add(BUSY, Way::Kvpn, busy);
            let took = copied(work, "/data/small")?;
            work.samples.add(SMALL, Way::Copy, per_second(took));
        }
        work.tell(round, &[READ, WRITE, RANDOM, SMALL, BUSY]);
    }
    Ok(())
}

/// How long a shell script takes where the files are mounted, of which nothing is known
/// yet.
fn mounted(work: &Work<'_>, script: &str) -> Result<Duration> {
    let mount = work.rig.mount_files()?;
    let start = Instant::now();
    work.rig.inside(&mount.script(script))?;
    Ok(start.elapsed())
}

/// How long `kubectl cp` takes.
fn copied(work: &Work<'_>, path: &str) -> Result<Duration> {
    let directory = tempfile::tempdir().context("make a directory")?;
    let to = directory.path().join("copy");
    let start = Instant::now();
    work.rig.copy_files(path, &to)?;
    Ok(start.elapsed())
}

fn pipe(work: &Work<'_>, direction: &str) -> Result<f64> {
    let [seconds, warm] = work.time();
    let args = ["bulk", direction, &seconds, &warm];
    let measured = work.rig.client(Way::Pipe, Family::V4, &args)?;
    Ok(number(&measured, "bits_per_second")? / 1e9)
}

/// Blocks of 4 KiB anywhere in the file, one after the other, beside bytes that come back.
fn random(work: &mut Work<'_>) -> Result<()> {
    let [seconds, warm] = work.time();
    let mount = work.rig.mount_files()?;
    let file = format!("{}/data/large", mount.path());
    let args = ["random", &file, &seconds, &warm];
    let measured = work.rig.local_client(Way::Kvpn, &args)?;
    drop(mount);
    work.samples
        .add(RANDOM, Way::Kvpn, number(&measured, "p50_us")?);
    let args = ["pingpong", &seconds, &warm];
    let measured = work.rig.client(Way::Pipe, Family::V4, &args)?;
    work.samples
        .add(RANDOM, Way::Pipe, number(&measured, "p50_us")?);
    Ok(())
}

fn gbits(mebibytes: u32, took: Duration) -> f64 {
    f64::from(mebibytes) * 8.0 * 1_048_576.0 / 1e9 / took.as_secs_f64()
}

/// What the machine's processors have done, in ticks.
#[derive(Debug, PartialEq)]
struct Cpu {
    all: u64,
    idle: u64,
}

impl Cpu {
    fn read() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Self::parse(&stat).context("read the CPU time")
    }

    /// The first line: user, nice, system, idle, iowait and others (proc_stat(5)).
    fn parse(stat: &str) -> Option<Self> {
        let fields = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = fields.split_whitespace().flat_map(str::parse).collect();
        let idle = ticks.get(3)? + ticks.get(4)?;
        // Guests are in those before.
        Some(Self {
            all: ticks.iter().take(8).sum(),
            idle,
        })
    }

    /// The share of the time that they were not idle.
    fn busy_since(&self, before: &Self) -> f64 {
        let all = (self.all - before.all).max(1);
        1.0 - (self.idle - before.idle) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_of_the_processors_is_read() {
        let cpu = |stat: &str| Cpu::parse(stat).unwrap();
        let before = cpu("cpu  10 0 20 100 5 1 1 3 0 0\ncpu0 1 2\n");
        assert_eq!(
            before,
            Cpu {
                all: 140,
                idle: 105
            }
        );
        let after = cpu("cpu  50 0 40 110 15 1 1 3 0 0\n");
        assert!((after.busy_since(&before) - 0.75).abs() < 1e-9);
        assert_eq!(Cpu::parse("cpu0 1 2 3"), None);
    }
}
