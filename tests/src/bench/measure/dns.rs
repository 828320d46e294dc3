//! How long names take: of the cluster, asked of its own name servers or by kvpn, and
//! of the laptop's own network, connected or not.

use anyhow::Result;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::lab::net::CLUSTER_DNS_V4;
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
    let server = format!("--server={CLUSTER_DNS_V4}");
    measure(work, SERVICE, OF_CLUSTER, Some(&server))?;
    measure(work, OFFICE_PRINTER.0, FOREIGN, None)
}

/// `server` is whom the laptop without kvpn asks, if not its own name server.
fn measure(work: &mut Work<'_>, name: &str, keys: Keys, server: Option<&str>) -> Result<()> {
    let names = keys.map(|(key, _)| key);
    if !work.wants_any(&names) {
        return Ok(());
    }
    for round in work.rounds() {
        for way in [Way::Kvpn, Way::Direct] {
            let [seconds, warm] = work.time();
            let mut args = vec!["names", "--name", name, &seconds, &warm];
            if way == Way::Direct {
                args.extend(server);
            }
            let measured = work.rig.local_client(way, &args)?;
            for (key, name) in keys {
                work.samples.add(key, way, number(&measured, name)?);
            }
        }
        work.tell(round, &names);
    }
    Ok(())
}
