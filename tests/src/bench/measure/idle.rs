//! What flows that do nothing cost: speed of others, and memory.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::process::{Role, anonymous_bytes, open_files};
use crate::bench::rig::Family;
use crate::wait_for;

const RATIO: &str = "idle_10k_throughput_ratio";
const MEMORY: [(&str, Role); 2] = [
    ("idle_flow_bytes_session", Role::Session),
    ("idle_flow_bytes_manager", Role::Manager),
];

const FLOWS: u32 = 10_000;

/// How long opening them may take.
const OPEN: Duration = Duration::from_secs(120);

/// How long all of them may take to be gone, and how many files are then open.
const GONE: Duration = Duration::from_secs(60);
const FILES: usize = 500;

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    if !work.wants_any(&[RATIO, MEMORY[0].0, MEMORY[1].0]) {
        return Ok(());
    }
    for round in work.rounds() {
        // Memory that earlier flows have left would hide what these take.
        work.rig.renew()?;
        let memory = |work: &Work<'_>| -> Result<Vec<u64>> {
            MEMORY
                .iter()
                .map(|(_, role)| anonymous_bytes(role.pid(work.rig.lab())?))
                .collect()
        };
        let before = memory(work)?;
        let count = format!("--count={FLOWS}");
        let mut idle = work.rig.hold(Way::Kvpn, Family::V4, &["idle", &count])?;
        let opened = idle.wait_for_line("opened", OPEN)?;
        let opened: Value = serde_json::from_str(&opened).context("read what opened")?;
        let after = memory(work)?;
        for (((key, _), before), after) in MEMORY.into_iter().zip(before).zip(after) {
            let each = (after as f64 - before as f64) / f64::from(FLOWS);
            work.samples.add(key, Way::Kvpn, each);
        }
        work.tell(round, &MEMORY.map(|(key, _)| key));
        let beside = speed(work)?;
        drop(idle);
        let manager = Role::Manager.pid(work.rig.lab())?;
        wait_for("the idle flows are gone", GONE, || {
            Ok((open_files(manager)? < FILES).then_some(()))
        })?;
        let without = speed(work)?;
        work.samples.add(RATIO, Way::Kvpn, beside / without);
        work.samples
            .note(RATIO, "gbit_per_s_without", without.into());
        work.samples.note(RATIO, "gbit_per_s_beside", beside.into());
        let seconds = number(&opened, "seconds")?;
        work.samples
            .note(RATIO, "opened_per_s", (f64::from(FLOWS) / seconds).into());
        work.tell(round, &[RATIO]);
    }
    Ok(())
}

fn speed(work: &Work<'_>) -> Result<f64> {
    let [seconds, warm] = work.time();
    let args = ["bulk", "down", &seconds, &warm];
    let measured = work.rig.client(Way::Kvpn, Family::V4, &args)?;
    Ok(number(&measured, "bits_per_second")? / 1e9)
}
