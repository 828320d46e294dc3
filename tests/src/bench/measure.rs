//! What is run for each figure: in each round all ways, one after the other.

mod connect;
mod dns;
mod engage;
mod files;
mod filters;
mod idle;
mod latency;
mod rtt;
mod throughput;
mod udp;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figures::Figure;
use super::report::Samples;
use super::rig::Rig;
use crate::progress::step;

/// What is to be measured, and what has been.
struct Work<'a> {
    rig: &'a mut Rig,
    figures: &'a [&'static Figure],
    samples: Samples,
}

/// Measures all figures.
pub(super) fn all(rig: &mut Rig, figures: &[&'static Figure]) -> Result<Samples> {
    let mut work = Work {
        rig,
        figures,
        samples: Samples::default(),
    };
    throughput::run(&mut work)?;
    latency::run(&mut work)?;
    connect::run(&mut work)?;
    dns::run(&mut work)?;
    udp::run(&mut work)?;
    idle::run(&mut work)?;
    rtt::run(&mut work)?;
    filters::run(&mut work)?;
    engage::run(&mut work)?;
    files::run(&mut work)?;
    Ok(work.samples)
}

impl Work<'_> {
    fn wants(&self, key: &str) -> bool {
        self.figures.iter().any(|figure| figure.key == key)
    }

    fn wants_any(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.wants(key))
    }

    fn rounds(&self) -> std::ops::Range<usize> {
        0..self.rig.pace.rounds
    }

    /// Arguments that make a client measure as long as it should.
    fn time(&self) -> [String; 2] {
        let pace = &self.rig.pace;
        [
            format!("--seconds={}", pace.seconds),
            format!("--warm={}", pace.warm),
        ]
    }

    /// Tells what a round gave.
    fn tell(&self, round: usize, keys: &[&'static str]) {
        for key in keys {
            if let Some(last) = self.samples.describe_last(key) {
                step(format_args!("{key}, round {}: {last}", round + 1));
            }
        }
    }
}

/// A number of what a client printed.
fn number(measured: &Value, name: &str) -> Result<f64> {
    let number = measured[name].as_f64();
    number.with_context(|| format!("no {name} in {measured}"))
}
