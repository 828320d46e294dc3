//! As many datagrams as go out, and how many of them arrive.

use anyhow::Result;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::rig::Family;

const KEY: &str = "udp_pps";

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    if !work.wants(KEY) {
        return Ok(());
    }
    for round in work.rounds() {
        for way in [Way::Kvpn, Way::Direct] {
            let [seconds, warm] = work.time();
            let measured = work
                .rig
                .client(way, Family::V4, &["datagrams", &seconds, &warm])?;
            work.samples.add(KEY, way, number(&measured, "per_second")?);
            for name in ["sent_per_second", "lost_percent"] {
                let noted = format!("{name}_{}", way.name());
                work.samples.note(KEY, noted, measured[name].clone());
            }
        }
        work.tell(round, &[KEY]);
    }
    Ok(())
}
