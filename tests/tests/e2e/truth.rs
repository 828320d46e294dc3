//! The laptop hears what a pod would hear: nothing is accepted that the far
//! side has not accepted.

mod datagrams;
mod icmp;
mod tcp;

use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kvpn_tests::Lab;
use kvpn_tests::lab::laptop::Laptop;
use kvpn_tests::lab::net;
use nix::sched::{CloneFlags, setns};

use crate::support::{Developer, bracketed, cluster_ips, pod};

#[test]
fn refused_port_is_refused_at_connect() -> Result<()> {
    let developer = Developer::connected(1)?;
    for address in pod(&developer.lab, "web")?.addresses {
        let start = Instant::now();
        let url = format!("http://{}:81/", bracketed(&address));
        let output = developer.curl(["-v", &url])?;
        assert_eq!(output.code(), 7, "{}", output.stderr);
        ensure!(
            output.stderr.contains("Connection refused"),
            "{}",
            output.stderr
        );
        ensure!(!output.stderr.contains("Connected to"), "{}", output.stderr);
        ensure!(
            start.elapsed() < Duration::from_secs(2),
            "took {:?}",
            start.elapsed()
        );
    }
    Ok(())
}

#[test]
fn missing_pod_never_looks_connected() -> Result<()> {
    let developer = Developer::connected(1)?;
    // Inside the node's pod subnets, and nobody's.
    for address in ["10.244.0.250", "[fd00:244::fa]"] {
        let url = format!("http://{address}:80/");
        let output = developer.curl(["-v", "--connect-timeout", "8", &url])?;
        ensure!(
            [7, 28].contains(&output.code()),
            "{}: {}",
            output.code(),
            output.stderr
        );
        ensure!(!output.stderr.contains("Connected to"), "{}", output.stderr);
        ensure!(
            !output.stderr.contains("Connection refused"),
            "{}",
            output.stderr
        );
    }
    Ok(())
}

#[test]
fn unused_service_address_never_looks_connected() -> Result<()> {
    let developer = Developer::connected(1)?;
    let service = &cluster_ips(&developer.lab, "web")?[0];
    let output = developer.curl([
        "-v",
        "--connect-timeout",
        "3",
        &format!("http://{service}:81/"),
    ])?;
    ensure!(!output.status.success(), "{}", output.stdout);
    ensure!(!output.stderr.contains("Connected to"), "{}", output.stderr);
    Ok(())
}

#[test]
fn clusters_own_name_server_answers_over_udp_and_tcp() -> Result<()> {
    let developer = Developer::connected(1)?;
    let expected = &cluster_ips(&developer.lab, "web")?[0];
    for server in [net::CLUSTER_DNS_V4, net::CLUSTER_DNS_V6] {
        for transport in ["+notcp", "+tcp"] {
            let at = format!("@{server}");
            let name = "web.shop.svc.cluster.local";
            let dig = ["dig", "+short", "+time=3", "+tries=1", transport, &at, name];
            let output = developer.laptop.user().run(dig)?.success()?;
            assert_eq!(output.stdout.trim(), expected, "{server} {transport}");
        }
    }
    Ok(())
}

#[test]
fn large_bodies_arrive_whole_both_ways() -> Result<()> {
    let developer = Developer::connected(1)?;
    for family in ["-4", "-6"] {
        let script = format!(
            "head -c 20000000 /dev/urandom >/tmp/sent && \
             curl {family} -sS --max-time 30 --data-binary @/tmp/sent -o /tmp/received \
             http://web/echo && cmp /tmp/sent /tmp/received"
        );
        developer
            .laptop
            .user()
            .run(["sh", "-c", &script])?
            .success()?;
    }
    Ok(())
}

/// Where the pods of `web` serve HTTP and send datagrams back, and where a TCP
/// server with odd manners listens.
const PORT: u16 = 8080;
const MANNERS: u16 = 7000;

/// A port of the pod of `web`: over IPv4, then over IPv6.
fn web(lab: &Lab, port: u16) -> Result<Vec<SocketAddr>> {
    let addresses = pod(lab, "web")?.addresses;
    let ips = addresses
        .iter()
        .map(|ip| Ok(SocketAddr::new(ip.parse()?, port)));
    ips.collect()
}

/// Works in a laptop's network, on a thread of its own.
fn in_network<T: Send>(laptop: &Laptop, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let namespace = File::open(net::file(&net::laptop(laptop.number())))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
