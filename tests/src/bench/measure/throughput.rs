//! Flows that carry as much as they can, and the CPU time that this takes.

use anyhow::Result;

use super::{Work, number};
use crate::bench::figures::Way;
use crate::bench::process::{Role, cpu_seconds};
use crate::bench::rig::Family;

struct Flows {
    key: &'static str,
    direction: &'static str,
    count: usize,
    family: Family,
}

const fn flows(key: &'static str, direction: &'static str, count: usize, family: Family) -> Flows {
    Flows {
        key,
        direction,
        count,
        family,
    }
}

const ALL: [Flows; 8] = [
    flows("tcp_up_1", "up", 1, Family::V4),
    flows("tcp_down_1", "down", 1, Family::V4),
    flows("tcp_up_8", "up", 8, Family::V4),
    flows("tcp_down_8", "down", 8, Family::V4),
    flows("tcp_up_1_v6", "up", 1, Family::V6),
    flows("tcp_down_1_v6", "down", 1, Family::V6),
    flows("tcp_up_8_v6", "up", 8, Family::V6),
    flows("tcp_down_8_v6", "down", 8, Family::V6),
];

/// Figures of CPU time, and whose it is.
const CPU: [(&str, Role); 2] = [
    ("cpu_s_per_gbit_session", Role::Session),
    ("cpu_s_per_gbit_manager", Role::Manager),
];

/// What the pipe needs to carry as much as it can; more do not help.
const PIPE_STREAMS: usize = 4;

pub(super) fn run(work: &mut Work<'_>) -> Result<()> {
    let cpu = CPU.iter().any(|(key, _)| work.wants(key));
    for round in work.rounds() {
        let mut spent = Vec::new();
        for flows in &ALL {
            if work.wants(flows.key) {
                for way in Way::NETWORK {
                    let per_gbit = carry(work, flows, way)?;
                    if way == Way::Kvpn && is_for_cpu(flows) {
                        spent.push((flows.direction, per_gbit));
                    }
                }
                work.tell(round, &[flows.key]);
            } else if cpu && is_for_cpu(flows) {
                spent.push((flows.direction, carry(work, flows, Way::Kvpn)?));
            }
        }
        for (key, role) in CPU {
            let mut sum = 0.0;
            for (direction, per_gbit) in &spent {
                let own = per_gbit.iter().find(|(other, _)| *other == role);
                let own = own.map_or(0.0, |(_, seconds)| *seconds);
                work.samples.note(key, *direction, own.into());
                sum += own;
            }
            if !spent.is_empty() {
                work.samples.add(key, Way::Kvpn, sum / spent.len() as f64);
                work.tell(round, &[key]);
            }
        }
    }
    Ok(())
}

fn is_for_cpu(flows: &Flows) -> bool {
    flows.count == 1 && flows.family == Family::V4
}

/// Measures one way; gives the CPU seconds per Gbit of every process involved.
fn carry(work: &mut Work<'_>, flows: &Flows, way: Way) -> Result<Vec<(Role, f64)>> {
    let count = match (way, flows.count) {
        (Way::Pipe, 2..) => PIPE_STREAMS,
        (_, count) => count,
    };
    let mut before = Vec::new();
    for role in Role::ALL {
        let pid = role.pid(work.rig.lab())?;
        before.push((role, pid, cpu_seconds(pid)?));
    }
    let [seconds, warm] = work.time();
    let count = format!("--flows={count}");
    let args = ["bulk", flows.direction, &count, &seconds, &warm];
    let measured = work.rig.client(way, flows.family, &args)?;
    let gbits = number(&measured, "all_bytes")? * 8.0 / 1e9;
    let speed = number(&measured, "bits_per_second")? / 1e9;
    work.samples.add(flows.key, way, speed);
    let mut spent = Vec::new();
    for (role, pid, earlier) in before {
        let per_gbit = (cpu_seconds(pid)? - earlier) / gbits;
        let name = format!("cpu_s_per_gbit_{}_{}", way.name(), role.name());
        work.samples.note(flows.key, name, per_gbit.into());
        spent.push((role, per_gbit));
    }
    let client = number(&measured, "cpu_seconds")? / gbits;
    let name = format!("cpu_s_per_gbit_{}_client", way.name());
    work.samples.note(flows.key, name, client.into());
    Ok(spent)
}
