//! Connections that are opened, exchange a byte and close. The server closes
//! first, so that it is its side that remembers the ports: the client's can be
//! used again at once, and no RST cuts anything short.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvpn_tests::bench::ports::Service;
use serde_json::{Value, json};

use crate::Time;
use crate::pingpong::summary;
use crate::stalled::Stalled;
use crate::target::{Target, exchange};

/// How many failures a thread suffers before it gives up.
const MAX_FAILURES: usize = 10;

/// What a thread has seen.
#[derive(Default)]
struct Seen {
    /// Microseconds from the first SYN to the byte that came back.
    opened: Vec<f64>,
    failures: Vec<anyhow::Error>,
}

/// Opens so many at a time, beside connections that nobody reads from.
pub(crate) fn run(target: &Target, at_once: usize, stalled: usize, time: Time) -> Result<Value> {
    let _stalled = Stalled::open(target, stalled)?;
    let warm = Instant::now() + time.warm;
    let threads: Vec<_> = (0..at_once)
        .map(|_| {
            let target = target.clone();
            thread::spawn(move || work(&target, warm, time.seconds))
        })
        .collect();
    let mut all = Seen::default();
    for thread in threads {
        let seen = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
        all.opened.extend(seen.opened);
        all.failures.extend(seen.failures);
    }
    let first = all.failures.first().map(|error| format!("{error:#}"));
    if all.opened.is_empty() {
        bail!("no connection opened: {}", first.unwrap_or_default());
    }
    let mut measured = summary(&all.opened)?;
    measured["per_second"] = (all.opened.len() as f64 / time.seconds.as_secs_f64()).into();
    measured["failures"] = json!(all.failures.len());
    measured["first_failure"] = json!(first);
    Ok(measured)
}

fn work(target: &Target, warm: Instant, time: Duration) -> Seen {
    let mut seen = Seen::default();
    let end = warm + time;
    loop {
        let start = Instant::now();
        if start >= end || seen.failures.len() >= MAX_FAILURES {
            return seen;
        }
        match once(target, start) {
            Ok(opened) if start >= warm => seen.opened.push(opened.as_secs_f64() * 1e6),
            Ok(_) => (),
            Err(error) => seen.failures.push(error),
        }
    }
}

fn once(target: &Target, start: Instant) -> Result<Duration> {
    let mut stream = target.open(Service::Once)?;
    exchange(&mut stream)?;
    let opened = start.elapsed();
    let rest = stream.read(&mut [0]).context("wait for the end")?;
    ensure!(rest == 0, "more came than was sent");
    Ok(opened)
}
