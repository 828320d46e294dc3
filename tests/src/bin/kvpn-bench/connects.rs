//! Connections that are opened, exchange a byte and close. The server closes
//! first, so that it is its side that remembers the ports: the client's can be
//! used again at once, and no RST cuts anything short.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kvpn_tests::bench::ports::Service;
use serde_json::Value;

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
    all.measured(time.seconds)
}

impl Seen {
    /// What that comes to. A way on which connections fail is not measured: the
    /// others would look the faster for it.
    fn measured(&self, time: Duration) -> Result<Value> {
        if let Some(first) = self.failures.first() {
            bail!(
                "of the connections, {} failed and {} opened; the first to fail: {first:#}",
                self.failures.len(),
                self.opened.len()
            );
        }
        let mut measured = summary(&self.opened)?;
        measured["per_second"] = (self.opened.len() as f64 / time.as_secs_f64()).into();
        Ok(measured)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_fails_fails_the_measurement() {
        let mut seen = Seen {
            opened: vec![200.0, 300.0, 400.0],
            failures: Vec::new(),
        };
        let measured = seen.measured(Duration::from_secs(2)).unwrap();
        assert_eq!(measured["per_second"], 1.5);
        seen.failures.push(anyhow!("reset"));
        let error = seen.measured(Duration::from_secs(2)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "of the connections, 1 failed and 3 opened; the first to fail: reset"
        );
    }
}
