//! The laptop hears what a pod would hear: nothing is accepted that the far
//! side has not accepted.

mod datagrams;
mod icmp;
mod quic;
mod tcp;

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::laptop::Laptop;
use kvpn_tests::lab::net;
use kvpn_tests::{Cmd, Lab};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

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
fn route_of_the_host_to_the_first_hop_is_let_be() -> Result<()> {
    let developer = Developer::at(1)?;
    let network = net::file(&net::laptop(1)).display().to_string();
    let own = ["198.18.0.2/32", "fd6b:7670:6e::2/128"];
    let routes: Vec<Route> = own
        .iter()
        .map(|hop| Route::add(&network, &[hop, "dev", "eth0"]))
        .collect::<Result<_>>()?;
    developer.connect()?;
    assert_eq!(developer.get(["http://web/"])?.service, "web");
    developer.kvpn(["quit"])?.success()?;
    for route in &routes {
        ensure!(route.exists()?, "it is gone");
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
/// server with odd manners listens, and a QUIC server.
const PORT: u16 = 8080;
const MANNERS: u16 = 7000;

const DEADLINE: Duration = Duration::from_secs(10);

/// Connects to the server with manners, and says which.
fn connect(to: SocketAddr, manner: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    stream.write_all(manner)?;
    Ok(stream)
}

/// A port of the pod of `web`: over IPv4, then over IPv6.
fn web(lab: &Lab, port: u16) -> Result<Vec<SocketAddr>> {
    let addresses = pod(lab, "web")?.addresses;
    let ips = addresses
        .iter()
        .map(|ip| Ok(SocketAddr::new(ip.parse()?, port)));
    ips.collect()
}

/// A subnet of pods is not a link, so its ends are addresses like others; but for the
/// lowest of IPv6, which is the routers' (RFC 4291 section 2.6.1).
#[test]
fn ends_of_a_pod_subnet_are_addresses_like_others() -> Result<()> {
    let developer = Developer::connected(1)?;
    let lab = &developer.lab;
    let node = net::file(net::NODE).display().to_string();
    let sample = lab.layout().binary("kvpn-sample").display().to_string();
    let server = ["--service", "node", "--port", "8099"];
    let mut server = lab.node(&sample, server).spawn()?;
    server.wait_for_line("listens", Duration::from_secs(5))?;
    for (end, gateway) in [
        ("10.244.0.0", "10.244.0.1"),
        ("10.244.0.255", "10.244.0.1"),
        ("fd00:244::ffff:ffff:ffff:ffff", "fd00:244::1"),
    ] {
        // Where the lab's pods have a link, it is a broadcast address.
        let _there = Route::add(&node, &["local", end, "dev", "lo", "table", "local"])?;
        let _way = Route::of_manager(lab, &[end, "via", gateway, "table", "local"])?;
        let url = format!("http://{}:8099/", bracketed(end));
        assert_eq!(developer.get([url.as_str()])?.service, "node", "{url}");
    }
    Ok(())
}

/// A route in a network, until this is dropped.
struct Route {
    network: String,
    route: Vec<String>,
}

impl Route {
    fn add(network: &str, route: &[&str]) -> Result<Self> {
        let added = Self {
            network: network.to_owned(),
            route: route.iter().map(|&word| word.to_owned()).collect(),
        };
        // One that a test has left is none of this one's.
        added.ip(&["route", "replace"])?;
        Ok(added)
    }

    /// In the network of the traffic manager's pod.
    fn of_manager(lab: &Lab, route: &[&str]) -> Result<Self> {
        let pods: Value = lab
            .kubectl(["-n", "kvpn", "get", "pods", "-ojson"])
            .run()?
            .success()?
            .json()?;
        let ip = pods["items"][0]["status"]["podIP"]
            .as_str()
            .context("the manager has no address")?;
        for process in std::fs::read_dir("/proc")? {
            let path = process?.path();
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            if name.trim() != "traffic-manager" {
                continue;
            }
            let network = path.join("ns/net").display().to_string();
            if ip_inside(&network, &["-4", "addr"])?.contains(&format!(" {ip}/")) {
                return Self::add(&network, route);
            }
        }
        anyhow::bail!("no traffic manager has {ip}")
    }

    fn exists(&self) -> Result<bool> {
        Ok(!self.ip(&["route", "show"])?.is_empty())
    }

    fn ip(&self, action: &[&str]) -> Result<String> {
        let is_v6 = self.route.iter().any(|word| word.contains(':'));
        let route = self.route.iter().map(String::as_str);
        let family = if is_v6 { "-6" } else { "-4" };
        let args: Vec<&str> = std::iter::once(family)
            .chain(action.iter().copied())
            .chain(route)
            .collect();
        ip_inside(&self.network, &args)
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        drop(self.ip(&["route", "del"]));
    }
}

/// Runs `ip` in a network namespace.
fn ip_inside(network: &str, args: &[&str]) -> Result<String> {
    let enter = Cmd::new("nsenter").arg(format!("--net={network}"));
    enter.arg("ip").args(args).ok()
}

/// Works in a laptop's network, on a thread of its own.
pub(crate) fn in_network<T: Send>(
    laptop: &Laptop,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
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
