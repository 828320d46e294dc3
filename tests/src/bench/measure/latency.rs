//! How long a byte takes there and back, alone and beside a flow.

use anyhow::Result;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::rig::Family;

const ALONE: [&str; 2] = ["pingpong_p50_us", "pingpong_p99_us"];
const BESIDE_DOWN: [&str; 2] = ["pingpong_p50_beside_down_us", "pingpong_p99_beside_down_us"];
const BESIDE_UP: [&str; 2] = ["pingpong_p50_beside_up_us", "pingpong_p99_beside_up_us"];
const WORSE: &str = "pingpong_p99_under_bulk_us";

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    let worse = work.wants(WORSE);
    for round in work.rounds() {
        let runs = [
            (ALONE, None, false),
            (BESIDE_DOWN, Some("--beside=down"), worse),
            (BESIDE_UP, Some("--beside=up"), worse),
        ];
        for (keys, beside, needed) in runs {
            if !needed && !work.wants_any(&keys) {
                continue;
            }
            for way in Way::NETWORK {
                exchange(work, keys, beside, way)?;
            }
            work.tell(round, &keys);
        }
        if worse {
            for way in Way::NETWORK {
                let last = |key| work.samples.last(key, way);
                if let (Some(down), Some(up)) = (last(BESIDE_DOWN[1]), last(BESIDE_UP[1])) {
                    work.samples.add(WORSE, way, down.max(up));
                }
            }
        }
    }
    Ok(())
}

fn exchange(
    work: &mut Work<'_>,
    [p50, p99]: [&'static str; 2],
    beside: Option<&'static str>,
    way: Way,
) -> Result<()> {
    let [seconds, warm] = work.time();
    let args = ["pingpong", &seconds, &warm];
    let args: Vec<&str> = args.into_iter().chain(beside).collect();
    let measured = work.rig.client(way, Family::V4, &args)?;
    work.samples.add(p50, way, number(&measured, "p50_us")?);
    work.samples.add(p99, way, number(&measured, "p99_us")?);
    if beside.is_some() {
        let gbits = number(&measured, "beside_bits_per_second")? / 1e9;
        let name = format!("beside_gbit_per_s_{}", way.name());
        work.samples.note(p50, name, gbits.into());
    }
    Ok(())
}
