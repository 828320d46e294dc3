//! What engaging costs beside the requests themselves: how long it takes until it is in
//! force, whether connections are lost to it, and what it does to ports that are not
//! engaged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::ports;
use crate::bench::rig::Family;
use crate::lab::services;

const FIRST: &str = "intercept_first_ms";
const AGAIN: &str = "intercept_again_ms";
const FAILED: &str = "matched_connections_failed";
const UNENGAGED: &str = "unengaged_down_1";

/// How many pods are intercepted.
const PODS: usize = 3;

/// How many connections none of which may fail.
const CONNECTIONS: &str = "10000";

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    if work.wants(UNENGAGED) {
        unengaged(work)?;
    }
    if work.wants_any(&[FIRST, AGAIN, FAILED]) {
        work.rig.add_services()?;
    }
    if work.wants_any(&[FIRST, AGAIN]) {
        let timed = intercepts(work);
        work.rig.renew_nginx(1)?;
        timed?;
    }
    if work.wants(FAILED) {
        let failed = failed_connections(work)?;
        work.samples.add(FAILED, Way::Kvpn, failed);
        work.tell(0, &[FAILED]);
    }
    Ok(())
}

/// How long intercepts take, each as a whole command.
fn intercepts(work: &mut Work<'_>) -> Result<()> {
    for round in work.rounds() {
        work.rig.renew_nginx(PODS)?;
        for key in [FIRST, AGAIN] {
            let start = Instant::now();
            let intercept = work
                .rig
                .intercept(services::NAMESPACE, "nginx", "8080:http")?;
            let took = start.elapsed();
            drop(intercept);
            work.samples.add(key, Way::Kvpn, milliseconds(took));
        }
        work.tell(round, &[FIRST, AGAIN]);
    }
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How many of many requests that a laptop answers fail, each over a new connection.
fn failed_connections(work: &Work<'_>) -> Result<f64> {
    let _intercept = work.rig.intercept_nginx(None)?;
    // Which nginx does not have.
    let url = format!("http://{}:8080/bytes/100", work.rig.nginx()?);
    let ab = ["ab", "-q", "-r", "-c16", "-n", CONNECTIONS, &url];
    failures(&work.rig.outside(&ab)?)
}

/// Reads what ab prints for people.
fn failures(printed: &str) -> Result<f64> {
    let count = |key: &str| {
        let mut lines = printed.lines();
        let count = lines.find_map(|line| line.strip_prefix(key))?;
        count.trim().parse::<f64>().ok()
    };
    let failed = count("Failed requests:").with_context(|| format!("no count in {printed}"))?;
    // Only told where there are any.
    Ok(failed + count("Non-2xx responses:").unwrap_or(0.0))
}

/// One flow from outside to a port of a pod of which another port is engaged, beside the
/// same while none is.
fn unengaged(work: &mut Work<'_>) -> Result<()> {
    for round in work.rounds() {
        // Without first: an agent stays for a while after the intercept.
        for way in [Way::Direct, Way::Kvpn] {
            let _intercept = match way {
                Way::Kvpn => Some(work.rig.intercept(
                    ports::NAMESPACE,
                    ports::NAME,
                    "8080:pipe",
                )?),
                Way::Direct | Way::Pipe | Way::Copy => None,
            };
            let [seconds, warm] = work.time();
            let args = ["bulk", "down", &seconds, &warm];
            let measured = work.rig.client(Way::Direct, Family::V4, &args)?;
            let speed = number(&measured, "bits_per_second")? / 1e9;
            work.samples.add(UNENGAGED, way, speed);
        }
        work.tell(round, &[UNENGAGED]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ab_prints_is_read() {
        let printed = "Complete requests:      10000\nFailed requests:        3\n\
                       \x20  (Connect: 0, Receive: 1, Length: 1, Exceptions: 1)\n";
        let failed = failures(printed).unwrap();
        assert!((failed - 3.0).abs() < 1e-6);
        let failed = failures(&format!("{printed}Non-2xx responses:      4\n")).unwrap();
        assert!((failed - 7.0).abs() < 1e-6);
        failures("ab: cannot connect").unwrap_err();
    }
}
