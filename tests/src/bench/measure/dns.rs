//! How long names take: of the cluster, asked in a pod or by kvpn, and of the laptop's
//! own network, connected or not.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::rig::Rig;
use crate::lab::wire::{OFFICE_POOL, OFFICE_PRINTER};

/// A service that every cluster has.
const SERVICE: &str = "kubernetes.default.svc.cluster.local.";

const OF_CLUSTER: &Keys = &[("name_p50_us", "p50_us"), ("name_p99_us", "p99_us")];
const FOREIGN: &Keys = &[
    ("foreign_name_p50_us", "p50_us"),
    ("foreign_name_p99_us", "p99_us"),
];
const FIRST: &Keys = &[
    ("foreign_first_name_p50_us", "p50_us"),
    ("foreign_first_name_p99_us", "p99_us"),
];
const FIRST_FAR: &Keys = &[("foreign_first_name_rtt20_p50_us", "p50_us")];

/// Names below [`OFFICE_POOL`] of which none was asked for before.
const OTHERS: [&str; 3] = ["--distinct", "--name", OFFICE_POOL];

/// How far the far name server is, each way.
const FAR: Duration = Duration::from_millis(10);

/// A figure's key, and what the client calls it.
type Keys = [(&'static str, &'static str)];

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    let in_pod = |rig: &Rig, args: &[&str]| rig.in_pod(args);
    measure(work, &["--name", SERVICE], OF_CLUSTER, in_pod)?;
    let apart = |rig: &Rig, args: &[&str]| rig.local_client(Way::Direct, args);
    measure(work, &["--name", OFFICE_PRINTER.0], FOREIGN, apart)?;
    measure(work, &OTHERS, FIRST, apart)?;
    if !work.wants_any(&figures_of(FIRST_FAR)) {
        return Ok(());
    }
    work.rig.wire(FAR, 0.0)?;
    let measured = measure(work, &OTHERS, FIRST_FAR, apart);
    work.rig.wire(Duration::ZERO, 0.0)?;
    measured
}

/// `direct` asks without kvpn.
fn measure(
    work: &mut Work<'_>,
    names: &[&str],
    keys: &Keys,
    direct: impl Fn(&Rig, &[&str]) -> Result<Value>,
) -> Result<()> {
    let figures = figures_of(keys);
    if !work.wants_any(&figures) {
        return Ok(());
    }
    for round in work.rounds() {
        for way in [Way::Kvpn, Way::Direct] {
            let [seconds, warm] = work.time();
            let args = [&["names", &seconds, &warm], names].concat();
            let measured = match way {
                Way::Direct => direct(work.rig, &args)?,
                Way::Kvpn | Way::Pipe | Way::Copy => work.rig.local_client(way, &args)?,
            };
            for (figure, name) in keys {
                work.samples.add(figure, way, number(&measured, name)?);
            }
        }
        work.tell(round, &figures);
    }
    Ok(())
}

fn figures_of(keys: &Keys) -> Vec<&'static str> {
    keys.iter().map(|(figure, _)| *figure).collect()
}
