//! How long names take: of the cluster, asked in a pod or by kvpn, and of the laptop's
//! own network, connected or not.

use anyhow::Result;
use serde_json::Value;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::rig::Rig;
use crate::lab::wire::OFFICE_PRINTER;

/// A service that every cluster has.
const SERVICE: &str = "kubernetes.default.svc.cluster.local.";

const OF_CLUSTER: Keys = [("name_p50_us", "p50_us"), ("name_p99_us", "p99_us")];
const FOREIGN: Keys = [
    ("foreign_name_p50_us", "p50_us"),
    ("foreign_name_p99_us", "p99_us"),
];

/// A figure's key, and what the client calls it.
type Keys = [(&'static str, &'static str); 2];

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    let in_pod = |rig: &Rig, args: &[&str]| rig.in_pod(args);
    measure(work, SERVICE, OF_CLUSTER, in_pod)?;
    let apart = |rig: &Rig, args: &[&str]| rig.local_client(Way::Direct, args);
    measure(work, OFFICE_PRINTER.0, FOREIGN, apart)
}

/// `direct` asks without kvpn.
fn measure(
    work: &mut Work<'_>,
    name: &str,
    keys: Keys,
    direct: impl Fn(&Rig, &[&str]) -> Result<Value>,
) -> Result<()> {
    let names = keys.map(|(key, _)| key);
    if !work.wants_any(&names) {
        return Ok(());
    }
    for round in work.rounds() {
        for way in [Way::Kvpn, Way::Direct] {
            let [seconds, warm] = work.time();
            let args = ["names", "--name", name, &seconds, &warm];
            let measured = match way {
                Way::Direct => direct(work.rig, &args)?,
                Way::Kvpn | Way::Pipe => work.rig.local_client(way, &args)?,
            };
            for (key, name) in keys {
                work.samples.add(key, way, number(&measured, name)?);
            }
        }
        work.tell(round, &names);
    }
    Ok(())
}
