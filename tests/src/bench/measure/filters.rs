//! What an intercept of some requests costs all others, and the laptop's own: wrk asks
//! nginx in a pod from outside, with an agent in the pod and without. And what the agent
//! takes itself.

use anyhow::{Context, Result};

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::process::{Role, resident_bytes};
use crate::bench::rig::Family;
use crate::lab::Lab;

const UNMATCHED: [&str; 2] = ["http_unmatched_per_s", "http_unmatched_p99_us"];
const UNMATCHED_ONE: &str = "http_unmatched_p50_us";
const MATCHED_ONE: &str = "http_matched_p50_us";
const MATCHED_MORE: &str = "http_matched_pingpongs";
const UNMATCHED_MANY: &str = "http_unmatched_250_p50_us";
const MEMORY: &str = "agent_memory_bytes";
const IMAGE: &str = "agent_image_bytes";
const ALL: [&str; 8] = [
    UNMATCHED[0],
    UNMATCHED[1],
    UNMATCHED_ONE,
    MATCHED_ONE,
    MATCHED_MORE,
    UNMATCHED_MANY,
    MEMORY,
    IMAGE,
];

/// How many intercepts there are at a time, at the most.
const MANY: usize = 250;

/// What the laptop's requests have.
const MATCHING: &str = "x-user: alice";

/// What wrk measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    if !work.wants_any(&ALL) {
        return Ok(());
    }
    work.rig.add_services()?;
    let address = work.rig.nginx()?;
    let url = format!("http://{address}:8080/who");
    for round in work.rounds() {
        // Without first: an agent stays for a while after the intercept.
        for way in [Way::Direct, Way::Kvpn] {
            let _intercept = match way {
                Way::Kvpn => Some(work.rig.intercept_nginx(Some("x-user=alice"))?),
                Way::Direct | Way::Pipe | Way::Copy => None,
            };
            if way == Way::Kvpn && round == 0 {
                let [memory, image] = agent(work.rig.lab())?;
                work.samples.add(MEMORY, way, memory);
                work.samples.add(IMAGE, way, image);
                work.tell(round, &[MEMORY, IMAGE]);
            }
            let many = wrk(work, 16, &url, None)?;
            let one = wrk(work, 1, &url, None)?;
            let laptops = wrk(work, 1, &url, Some(MATCHING))?;
            for (key, value) in [
                (UNMATCHED[0], many.per_second),
                (UNMATCHED[1], many.p99_us),
                (UNMATCHED_ONE, one.p50_us),
                (MATCHED_ONE, laptops.p50_us),
            ] {
                work.samples.add(key, way, value);
            }
            if way == Way::Direct {
                work.samples.add(UNMATCHED_MANY, way, one.p50_us);
            }
        }
        if work.wants(MATCHED_MORE) {
            pingpongs(work)?;
        }
        work.tell(
            round,
            &[
                UNMATCHED[0],
                UNMATCHED[1],
                UNMATCHED_ONE,
                MATCHED_ONE,
                MATCHED_MORE,
            ],
        );
    }
    if work.wants(UNMATCHED_MANY) {
        many(work, &url)?;
    }
    Ok(())
}

/// What of this round's matched request is not the pod's own, beside what a byte takes
/// through kvpn to a pod and back.
fn pingpongs(work: &mut Work<'_>) -> Result<()> {
    let [seconds, warm] = work.time();
    let args = ["pingpong", &seconds, &warm];
    let measured = work.rig.client(Way::Kvpn, Family::V4, &args)?;
    let pingpong = number(&measured, "p50_us")?;
    let last = |way| work.samples.last(MATCHED_ONE, way);
    let (laptop, pod) = last(Way::Kvpn).zip(last(Way::Direct)).context("a round")?;
    let more = (laptop - pod) / pingpong;
    work.samples.add(MATCHED_MORE, Way::Kvpn, more);
    work.samples
        .note(MATCHED_MORE, "pingpong_us", pingpong.into());
    Ok(())
}

/// The memory of the agent that has an intercept, and has had no request yet, and the size
/// of its image.
fn agent(lab: &Lab) -> Result<[f64; 2]> {
    let memory = resident_bytes(Role::Agent.pid(lab)?)?;
    let image = lab.layout().cache().join("images/sidecar-agent.tar");
    let size = image.metadata().context("the agent's image")?.len();
    Ok([memory as f64, size as f64])
}

/// Requests that none of many intercepts takes.
fn many(work: &mut Work<'_>, url: &str) -> Result<()> {
    let others: Vec<String> = (1..MANY).map(|i| format!("x-user=user-{i}")).collect();
    let _intercepts = work.rig.intercept_nginx_too("x-user=alice", &others)?;
    for round in work.rounds() {
        let one = wrk(work, 1, url, None)?;
        work.samples.add(UNMATCHED_MANY, Way::Kvpn, one.p50_us);
        work.tell(round, &[UNMATCHED_MANY]);
    }
    Ok(())
}

fn wrk(work: &Work<'_>, connections: usize, url: &str, header: Option<&str>) -> Result<Measured> {
    let seconds = format!("-d{}s", work.rig.pace.seconds.ceil());
    let threads = format!("-t{}", connections.min(2));
    let connections = format!("-c{connections}");
    let mut command = vec!["wrk", "--latency", &threads, &connections, &seconds];
    if let Some(header) = header {
        command.extend(["-H", header]);
    }
    command.push(url);
    parse(&work.rig.outside(&command)?)
}

/// Reads what wrk prints for people.
fn parse(printed: &str) -> Result<Measured> {
    let value = |key: &str| {
        let mut lines = printed.lines().map(str::trim);
        let rest = lines.find_map(|line| line.strip_prefix(key));
        rest.map(str::trim)
            .with_context(|| format!("no {key} in {printed}"))
    };
    let failed = |key: &str| printed.contains(key);
    anyhow::ensure!(
        !failed("Socket errors") && !failed("Non-2xx"),
        "requests failed: {printed}"
    );
    Ok(Measured {
        per_second: value("Requests/sec:")?.parse()?,
        p50_us: microseconds(value("50%")?)?,
        p99_us: microseconds(value("99%")?)?,
    })
}

fn microseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    anyhow::bail!("no time: {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_read() {
        let printed = "Running 3s test @ http://x/\n  Latency Distribution\n     50%  183.00us\n     \
                       75%  296.00us\n     99%    1.47ms\n  9 requests in 3.10s\n\
                       Requests/sec:  73838.72\nTransfer/sec:     16.55MB\n";
        let measured = parse(printed).unwrap();
        assert!((measured.per_second - 73_838.72).abs() < 1e-6);
        assert!((measured.p50_us - 183.0).abs() < 1e-6);
        assert!((measured.p99_us - 1_470.0).abs() < 1e-6);
        parse(&format!("{printed}  Socket errors: connect 0, read 3")).unwrap_err();
    }
}
