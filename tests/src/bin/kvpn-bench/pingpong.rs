//! How long a byte takes there and back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kvpn_tests::bench::ports::Service;
use kvpn_tests::bench::stats::percentile;
use serde_json::{Value, json};

use crate::bulk::Bulk;
use crate::target::{Target, exchange};
use crate::{Direction, Time};

/// Measures one connection, beside a flow when there is to be one.
pub(crate) fn run(target: &Target, beside: Option<Direction>, time: Time) -> Result<Value> {
    let mut stream = target.open(Service::Echo)?;
    let bulk = match beside {
        Some(direction) => Some(Bulk::start(target, direction, 1)?),
        None => None,
    };
    let warm = Instant::now() + time.warm;
    while Instant::now() < warm {
        exchange(&mut stream)?;
    }
    let carried = bulk.as_ref().map_or(0, Bulk::bytes);
    let start = Instant::now();
    let mut took = Vec::new();
    while start.elapsed() < time.seconds {
        let sent = Instant::now();
        exchange(&mut stream)?;
        took.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut measured = summary(&took)?;
    if let Some(bulk) = bulk {
        // A flow that has failed is not one to be beside of.
        bulk.pass(Duration::ZERO)?;
        measured["beside_bits_per_second"] =
            ((bulk.bytes() - carried) as f64 * 8.0 / seconds).into();
    }
    Ok(measured)
}

/// Percentiles of times in microseconds.
pub(crate) fn summary(took: &[f64]) -> Result<Value> {
    let at = |share| percentile(took, share).context("nothing was measured");
    Ok(json!({
        "count": took.len(),
        "p50_us": at(0.5)?,
        "p99_us": at(0.99)?,
        "max_us": at(1.0)?,
    }))
}
