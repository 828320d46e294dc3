//! How long a name of the cluster takes.

use anyhow::Result;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::lab::net::CLUSTER_DNS_V4;

const KEYS: [(&str, &str); 2] = [("name_p50_us", "p50_us"), ("name_p99_us", "p99_us")];

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    let keys = KEYS.map(|(key, _)| key);
    if !work.wants_any(&keys) {
        return Ok(());
    }
    for round in work.rounds() {
        for way in [Way::Kvpn, Way::Direct] {
            let [seconds, warm] = work.time();
            let server = format!("--server={CLUSTER_DNS_V4}");
            let mut args = vec!["names", &seconds, &warm];
            if way == Way::Direct {
                args.push(&server);
            }
            let measured = work.rig.local_client(way, &args)?;
            for (key, name) in KEYS {
                work.samples.add(key, way, number(&measured, name)?);
            }
        }
        work.tell(round, &keys);
    }
    Ok(())
}
