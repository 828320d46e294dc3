//! The wire between laptops and node: a router that can be cut, lose packets
//! and delay them, and that lets nothing reach the cluster's networks directly.

use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::Layout;
use super::state::State;
use super::{net, start};
use crate::{Cmd, wait_for};

/// Process names in the state.
const DNS: &str = "wire-dns";
const DELAY: &str = "wire-delay";

/// Netfilter queue of delayed packets.
const QUEUE: &str = "77";

/// Zone of the office network's name servers.
pub const OFFICE_DOMAIN: &str = "office.example";
/// A name that only the office's name servers know, and its address.
pub const OFFICE_PRINTER: (&str, &str) = ("printer.office.example", "10.77.0.99");

/// Any name below it has the same address there.
pub const OFFICE_POOL: &str = "pool.office.example";

/// Makes the router isolate the cluster, and serves names to the laptops.
pub(crate) fn create(layout: &Layout, state: &mut State) -> Result<()> {
    let [pods_v4, pods_v6] = net::POD_CIDRS;
    let [services_v4, services_v6] = net::SERVICE_CIDRS;
    // Without these drops a node that forwards would make pods reachable
    // from the laptops, and every test would pass for nothing.
    nft(&format!(
        "table inet lab {{
            set exempt {{ type ifname; }}
            chain isolation {{
                type filter hook forward priority filter; policy accept;
                iifname @exempt accept
                iifname \"laptop*\" ip daddr {{ {pods_v4}, {services_v4} }} counter drop
                iifname \"laptop*\" ip6 daddr {{ {pods_v6}, {services_v6} }} counter drop
            }}
            chain loss {{
                type filter hook forward priority filter - 1; policy accept;
            }}
        }}"
    ))?;
    let zone = layout.run().join("office.zone");
    std::fs::write(&zone, office_zone()).context("write the office's zone")?;
    let corefile = layout.run().join("wire.Corefile");
    let binds: Vec<String> = net::LAPTOPS.into_iter().map(net::gateway_v4).collect();
    std::fs::write(
        &corefile,
        format!(
            "{OFFICE_DOMAIN}:53 {{
                bind {binds}
                errors
                file {zone}
            }}
            # Of the rest of the world, nothing exists.
            .:53 {{
                bind {binds}
                errors
                template ANY ANY {{
                    rcode NXDOMAIN
                    authority \". 60 IN SOA ns.{OFFICE_DOMAIN}. root.{OFFICE_DOMAIN}. 1 60 60 60 60\"
                }}
            }}
            ",
            binds = binds.join(" "),
            zone = zone.display()
        ),
    )
    .context("write the wire's Corefile")?;
    let server = Cmd::new(layout.tool("coredns")).arg("-conf").arg(&corefile);
    start::in_network(layout, state, DNS, net::WIRE, &server)
}

/// The names of the office.
fn office_zone() -> String {
    let (printer, address) = OFFICE_PRINTER;
    format!(
        "$ORIGIN {OFFICE_DOMAIN}.
$TTL 60
@          IN SOA  ns root 1 60 60 60 60
@          IN NS   ns
ns         IN A    {ns}
{printer}. IN A    {address}
*.{pool}.  IN A    {address}
wiki       IN A    10.77.0.98
wiki       IN AAAA fd00:77::98
",
        pool = OFFICE_POOL,
        ns = net::gateway_v4(1)
    )
}

/// Lets a laptop reach the cluster's networks without any VPN.
pub(crate) fn exempt(laptop: u8) -> Result<()> {
    let interface = net::wire_interface(laptop);
    nft(&format!(
        "add element inet lab exempt {{ \"{interface}\" }}"
    ))
}

/// Isolates every laptop again.
pub(crate) fn isolate() -> Result<()> {
    nft("flush set inet lab exempt")
}

/// Cuts a laptop off, or joins it again.
pub(crate) fn cut(laptop: u8, cut: bool) -> Result<()> {
    let direction = if cut { "down" } else { "up" };
    let interface = net::wire_interface(laptop);
    net::ip(&["-n", net::WIRE, "link", "set", &interface, direction])?;
    if cut {
        return Ok(());
    }
    // The laptop's end notices a little later.
    let what = format!("laptop {laptop} is joined again");
    wait_for(&what, Duration::from_secs(5), || {
        let ping = net::inside(&net::laptop(laptop), "ping");
        let ping = ping.args(["-c1", "-W1", &net::gateway_v4(laptop)]);
        ping.ok().map(|_| Some(()))
    })
}

/// Drops what a laptop sends to the API server, or lets it through again.
pub(crate) fn block_api_server(laptop: u8, block: bool) -> Result<()> {
    // A table of its own, so that it is there or not as a whole.
    let table = format!("inet api-server-of-laptop{laptop}");
    nft(&format!("table {table} {{}}\ndelete table {table}"))?;
    if !block {
        return Ok(());
    }
    let interface = net::wire_interface(laptop);
    nft(&format!(
        "table {table} {{
            chain forward {{
                type filter hook forward priority filter; policy accept;
                iifname \"{interface}\" tcp dport 6443 counter drop
            }}
        }}"
    ))
}

/// Loses that share of the packets between laptops and node, both ways.
pub(crate) fn lose(percent: f64) -> Result<()> {
    nft("flush chain inet lab loss")?;
    net::segment(percent > 0.0)?;
    // In millionths, the finest that people ask for.
    let share = (percent.clamp(0.0, 100.0) * 10_000.0).round();
    if share > 0.0 {
        // With `<`, all of them would be out of nft's range.
        let last = share - 1.0;
        nft(&format!(
            "add rule inet lab loss numgen random mod 1000000 <= {last} counter drop"
        ))?;
    }
    Ok(())
}

/// Holds every packet between laptops and node, or what serves names on the router,
/// that long, each way; zero leaves them to the kernel.
pub(crate) fn delay(layout: &Layout, state: &mut State, delay: Duration) -> Result<()> {
    let rules = |action: &str| {
        for tool in ["iptables-nft", "ip6tables-nft"] {
            for chain in ["FORWARD", "INPUT", "OUTPUT"] {
                let command = net::inside(net::WIRE, tool).args(["-t", "mangle", action, chain]);
                if action == "-A" {
                    // Bypass: when the program is gone, packets pass undelayed.
                    let queue = ["-j", "NFQUEUE", "--queue-num", QUEUE, "--queue-bypass"];
                    command.args(queue).ok()?;
                } else {
                    command.ok()?;
                }
            }
        }
        anyhow::Ok(())
    };
    rules("-F")?;
    if let Some(process) = state.process(DELAY) {
        process.stop(Duration::from_secs(2))?;
    }
    state.processes.retain(|process| process.name != DELAY);
    state.delay_ms = u64::try_from(delay.as_millis()).context("the delay")?;
    state.save(layout)?;
    if delay.is_zero() {
        return Ok(());
    }
    let microseconds = delay.as_micros().to_string();
    let program = Cmd::new(layout.binary("kvpn-lab")).args(["delay", QUEUE, &microseconds]);
    start::in_network(layout, state, DELAY, net::WIRE, &program)?;
    start::wait_for_log(layout, state, DELAY, "ready", Duration::from_secs(5))?;
    rules("-A")
}

fn nft(ruleset: &str) -> Result<()> {
    net::inside(net::WIRE, "nft")
        .args(["-f", "-"])
        .stdin(ruleset)
        .ok()
        .map(drop)
}
