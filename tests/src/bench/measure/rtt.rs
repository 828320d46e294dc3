//! One flow over a wire that is long, and loses packets.

use std::time::Duration;

use anyhow::Result;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::rig::Family;

/// A wire: the figure's key, its delay each way, and what it loses in percent.
const WIRES: [(&str, Duration, f64); 2] = [
    ("tcp_down_1_rtt20", Duration::from_millis(10), 0.0),
    ("tcp_down_1_rtt50_loss01", Duration::from_millis(25), 0.1),
];

/// How much longer a flow takes to show what it can.
const LONGER: f64 = 2.0;

/// Seconds until a flow has found its speed.
const WARM: f64 = 2.0;

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    for (key, delay, loss) in WIRES {
        if !work.wants(key) {
            continue;
        }
        work.rig.wire(delay, loss)?;
        // Connections that saw the short wire would not be what users have.
        let measured = work.rig.reconnect().and_then(|()| over(work, key));
        work.rig.wire(Duration::ZERO, 0.0)?;
        measured?;
        work.rig.reconnect()?;
    }
    Ok(())
}

fn over(work: &mut Work<'_>, key: &'static str) -> Result<()> {
    let seconds = format!("--seconds={}", work.rig.pace.seconds * LONGER);
    let warm = format!("--warm={WARM}");
    for round in work.rounds() {
        for way in Way::NETWORK {
            let args = ["bulk", "down", &seconds, &warm];
            let measured = work.rig.client(way, Family::V4, &args)?;
            let speed = number(&measured, "bits_per_second")? / 1e9;
            work.samples.add(key, way, speed);
        }
        work.tell(round, &[key]);
    }
    Ok(())
}
