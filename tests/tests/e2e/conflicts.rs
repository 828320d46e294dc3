//! Routes of the laptop's own beside those of a connection: who is in the way is
//! named, `--vnat` gets past it, and `--never-proxy` keeps what is there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kvpn_tests::lab::laptop::Laptop;
use kvpn_tests::wait_for;

use crate::support::{Developer, bracketed, cluster_ips, pod};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// As VPNs name theirs.
const VPN: &str = "tun9";

/// The other end of its device.
const PEER: &str = "tun9-peer";

/// A device with routes to subnets, until dropped.
struct Vpn<'a>(&'a Laptop);

impl<'a> Vpn<'a> {
    fn to(laptop: &'a Laptop, subnets: &[String]) -> Result<Self> {
        let vpn = Self(laptop);
        vpn.ip(&["link", "add", VPN, "type", "veth", "peer", "name", PEER])?;
        vpn.ip(&["link", "set", PEER, "up"])?;
        vpn.ip(&["link", "set", VPN, "up"])?;
        for subnet in subnets {
            vpn.ip(&["route", "add", subnet, "dev", VPN])?;
        }
        Ok(vpn)
    }

    fn ip(&self, args: &[&str]) -> Result<()> {
        let command = ["ip"].iter().chain(args);
        self.0.root().run(command)?.success().map(drop)
    }
}

impl Drop for Vpn<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.ip(&["link", "delete", VPN]));
    }
}

/// The cluster's service subnets, of both families.
fn service_subnets(developer: &Developer) -> Result<Vec<String>> {
    developer.connect()?;
    let status = developer.kvpn_json(["status"])?;
    developer.kvpn(["quit"])?.success()?;
    let subnets = status["serviceSubnets"].as_array().context("subnets")?;
    let subnets = subnets.iter().filter_map(|it| it.as_str());
    Ok(subnets.map(str::to_owned).collect())
}

/// The device that the laptop sends packets for an address to.
fn device(developer: &Developer, address: &str) -> Result<String> {
    let route = ["ip", "-o", "route", "get", address];
    let route = developer.laptop.user().run(route)?.success()?.stdout;
    let mut words = route.split_whitespace();
    words.find(|word| *word == "dev");
    words.next().map(str::to_owned).context("a device")
}

#[test]
fn conflicting_route_is_named_and_vnat_gets_past_it() -> Result<()> {
    let developer = Developer::at(1)?;
    let subnets = service_subnets(&developer)?;
    let services = cluster_ips(&developer.lab, "web")?;
    let _vpn = Vpn::to(&developer.laptop, &subnets)?;
    let before = developer.laptop.host_state()?;

    let refused = developer.kvpn(["connect", "-n", "shop"])?;
    assert_eq!(refused.code(), 11, "{}", refused.stderr);
    for part in [
        &format!("the cluster's subnet {}", subnets[0]),
        &format!("{} on {VPN} (a VPN)", subnets[0]),
        "--vnat",
    ] {
        ensure!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    developer.is_as_before(&before)?;

    developer
        .kvpn(["connect", "-n", "shop", "--vnat", "all"])?
        .success()?;
    let web = pod(&developer.lab, "web")?;
    assert_eq!(developer.get(["http://web/"])?.pod, web.name);
    let names = developer.laptop.user().run(["getent", "ahosts", "web"])?;
    let names = names.success()?.stdout;
    let mapped: Vec<&str> = names
        .lines()
        .filter(|line| line.contains("STREAM"))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(mapped.len(), services.len(), "{names}");
    for address in mapped {
        ensure!(!services.contains(&address.to_owned()), "{names}");
        let url = format!("http://{}/", bracketed(address));
        assert_eq!(developer.get([url.as_str()])?.pod, web.name, "{url}");
        let reverse = ["dig", "+short", "-x", address];
        let reverse = developer.laptop.user().run(reverse)?.success()?.stdout;
        assert_eq!(reverse.trim(), "web.shop.svc.cluster.local.", "{address}");
    }
    let status = developer.kvpn_json(["status"])?;
    let shown = status["virtualSubnets"].as_array().context("subnets")?;
    assert_eq!(shown.len(), 4, "{status}");
    // What the laptop has at the cluster's addresses stays there.
    for address in &services {
        assert_eq!(device(&developer, address)?, VPN);
    }
    developer.kvpn(["quit"])?.success()?;
    developer.is_as_before(&before)
}

#[test]
fn never_proxy_keeps_gateway_and_source() -> Result<()> {
    let developer = Developer::at(1)?;
    let services = cluster_ips(&developer.lab, "web")?;
    let way = |address: &str| -> Result<String> {
        let route = ["ip", "-o", "route", "get", address];
        let route = developer.laptop.user().run(route)?.success()?.stdout;
        // But for how long the kernel remembers it.
        Ok(route.split("cache").next().unwrap_or_default().to_owned())
    };
    let before = services
        .iter()
        .map(|it| way(it))
        .collect::<Result<Vec<_>>>()?;
    let never = services.join(",");
    developer
        .kvpn(["connect", "-n", "shop", "--never-proxy", &never])?
        .success()?;
    for (address, before) in services.iter().zip(before) {
        assert_eq!(way(address)?, before);
    }
    // Its neighbours go to the cluster.
    let store = pod(&developer.lab, "web")?.addresses;
    for address in store {
        ensure!(device(&developer, &address)?.starts_with("kvpn"));
    }
    Ok(())
}

/// The laptop's resolv.conf, put back when dropped.
struct ResolvConf<'a> {
    laptop: &'a Laptop,
    content: String,
}

impl<'a> ResolvConf<'a> {
    fn of(laptop: &'a Laptop) -> Result<Self> {
        let content = laptop.root().run(["cat", RESOLV_CONF])?.success()?.stdout;
        Ok(Self { laptop, content })
    }

    /// As programs do that join another network.
    fn write(&self, content: &str) -> Result<()> {
        let tee = self.laptop.root().cmd(["tee", RESOLV_CONF]);
        tee.stdin(content).run()?.success().map(drop)
    }
}

impl Drop for ResolvConf<'_> {
    fn drop(&mut self) {
        // The test has its result.
        drop(self.write(&self.content));
    }
}

#[test]
fn name_servers_of_another_network_stay_the_hosts() -> Result<()> {
    let developer = Developer::at(1)?;
    let file = ResolvConf::of(&developer.laptop)?;
    let before = developer.laptop.host_state()?;
    developer.connect()?;
    let server = cluster_ips(&developer.lab, "web")?.remove(0);
    ensure!(device(&developer, &server)?.starts_with("kvpn"));

    let other = format!("nameserver {server}\n");
    file.write(&other)?;
    wait_for("it is not captured", Duration::from_secs(10), || {
        let device = device(&developer, &server)?;
        Ok((!device.starts_with("kvpn")).then_some(()))
    })?;
    developer.kvpn(["quit"])?.success()?;
    assert_eq!(ResolvConf::of(&developer.laptop)?.content, other);
    file.write(&file.content)?;
    developer.is_as_before(&before)
}

#[test]
fn name_servers_behind_a_connection_stay_the_hosts() -> Result<()> {
    let developer = Developer::at(1)?;
    let file = ResolvConf::of(&developer.laptop)?;
    let before = developer.laptop.host_state()?;
    developer.connect()?;
    let mut services = cluster_ips(&developer.lab, "web")?;
    developer.kvpn(["quit"])?.success()?;

    let server = services.remove(0);
    let line = format!("nameserver {server}");
    file.write(&format!("{line}\n"))?;
    developer.kvpn(["connect", "--vnat", "all"])?.success()?;
    // From here on resolv.conf names kvpn alone.
    let content = developer.laptop.root().run(["cat", RESOLV_CONF])?;
    let content = content.success()?.stdout;
    ensure!(!content.lines().any(|it| it == line), "{content}");
    developer.kvpn(["connect", "--name", "other"])?.success()?;
    ensure!(!device(&developer, &server)?.starts_with("kvpn"));
    for address in &services {
        ensure!(device(&developer, address)?.starts_with("kvpn"));
    }
    developer.kvpn(["quit"])?.success()?;
    file.write(&file.content)?;
    developer.is_as_before(&before)
}
