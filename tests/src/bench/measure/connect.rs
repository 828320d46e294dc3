//! How fast connections open.

use anyhow::Result;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::rig::Family;

const AT_ONCE: &str = "connects_per_s";
const ONE: &str = "open_us";
const STALLED: &str = "open_beside_stalled_ratio";

/// The ways that open a connection of their own for each.
const WAYS: [Way; 2] = [Way::Kvpn, Way::Direct];

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    for round in work.rounds() {
        if work.wants(AT_ONCE) {
            for way in WAYS {
                let rate = open(work, AT_ONCE, way, &["--at-once=16"], "per_second")?;
                work.samples.add(AT_ONCE, way, rate);
            }
        }
        if work.wants_any(&[ONE, STALLED]) {
            for way in WAYS {
                let without = open(work, ONE, way, &["--at-once=1"], "p50_us")?;
                let stalled = ["--at-once=1", "--stalled=16"];
                let beside = open(work, STALLED, way, &stalled, "p50_us")?;
                work.samples.add(ONE, way, without);
                work.samples.add(STALLED, way, beside / without);
            }
        }
        work.tell(round, &[AT_ONCE, ONE, STALLED]);
    }
    Ok(())
}

fn open(work: &mut Work<'_>, key: &'static str, way: Way, how: &[&str], what: &str) -> Result<f64> {
    let [seconds, warm] = work.time();
    let args: Vec<&str> = ["connects", &seconds, &warm]
        .into_iter()
        .chain(how.iter().copied())
        .collect();
    let measured = work.rig.client(way, Family::V4, &args)?;
    let noted = format!("p99_us_{}", way.name());
    work.samples.note(key, noted, measured["p99_us"].clone());
    number(&measured, what)
}
