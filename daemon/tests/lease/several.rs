//! Several leases at once, of one user.

use std::fs;

use crate::client::Client;
use crate::host::{Host, wait_for};

const DEV: [&str; 2] = ["10.96.0.0/16", "fd00:96::/108"];
const STAGING: [&str; 1] = ["10.97.0.0/16"];

fn client(host: &Host, name: &str) -> Client {
    let mut client = host.client();
    name.clone_into(&mut client.name);
    client
}

fn upstreams(host: &Host, device: &str) -> String {
    fs::read_to_string(host.run_dir().join(format!("{device}.upstreams"))).unwrap()
}

fn name_servers(host: &Host) -> Vec<String> {
    let text = host.resolv_conf_text();
    let servers = text.lines().filter_map(|it| it.strip_prefix("nameserver "));
    servers.map(str::to_owned).collect()
}

#[test]
fn each_lease_has_a_device_and_asks_the_one_before_it() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut dev = client(&host, "default");
    let first = dev.acquire_with(&DEV, &["dev.x"], "dev").unwrap();
    let with_dev = host.snapshot();
    let theirs = upstreams(&host, "kvpn0");

    let mut staging = client(&host, "staging");
    let second = staging.acquire_with(&STAGING, &["staging.x", "dev.x"], "staging");
    let second = second.unwrap();
    assert_eq!(second.message.device, "kvpn1");
    assert_eq!(
        second.message.addresses,
        ["198.18.1.1", "fd6b:7670:6e:1::1"]
    );
    assert_eq!(name_servers(&host), second.message.addresses);
    let text = host.resolv_conf_text();
    assert!(text.contains("\nsearch staging.x dev.x "), "{text}");
    assert_eq!(
        upstreams(&host, "kvpn1"),
        "nameserver 198.18.0.1\nnameserver fd6b:7670:6e::1\n"
    );
    assert_eq!(upstreams(&host, "kvpn0"), theirs);
    let held: Vec<String> = dev
        .describe()
        .holders
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(held, ["default", "staging"]);

    // The later one ends first.
    drop((staging, second));
    host.wait_until_it_is(&with_dev);
    drop((dev, first));
    host.wait_until_it_is(&before);
    assert!(!host.run_dir().join("journal.json").exists());
}

#[test]
fn earlier_lease_may_end_first() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut dev = client(&host, "default");
    let first = dev.acquire_with(&DEV, &["dev.x"], "dev").unwrap();
    let theirs = upstreams(&host, "kvpn0");
    let mut staging = client(&host, "staging");
    let second = staging.acquire_with(&STAGING, &["staging.x"], "staging");
    let second = second.unwrap();

    drop((dev, first));
    wait_for("the end of the first", || {
        !host.sh("ip link").contains("kvpn0")
    });
    wait_for("its upstreams", || upstreams(&host, "kvpn1") == theirs);
    assert_eq!(name_servers(&host), second.message.addresses);
    let text = host.resolv_conf_text();
    assert!(!text.contains("dev.x"), "{text}");

    // Its place is free again.
    let mut again = client(&host, "default");
    let granted = again.acquire_with(&DEV, &["dev.x"], "dev").unwrap();
    assert_eq!(granted.message.device, "kvpn0");
    drop((staging, second, again, granted));
    host.wait_until_it_is(&before);
}

#[test]
fn lease_that_is_refused_leaves_the_others_as_they_were() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut dev = client(&host, "default");
    let _first = dev.acquire_with(&DEV, &["dev.x"], "dev").unwrap();
    let with_dev = host.snapshot();

    let refused = client(&host, "default").acquire(&STAGING).unwrap_err();
    assert!(refused.next_step.contains("--name"), "{refused:?}");
    // Two clusters often have the same subnets.
    let refused = client(&host, "staging").acquire(&DEV).unwrap_err();
    assert!(
        refused
            .message
            .contains("on kvpn0 (another connection of kvpn)"),
        "{refused:?}"
    );
    host.sh("ip addr add 198.18.1.1/32 dev up0");
    client(&host, "staging").acquire(&STAGING).unwrap_err();
    host.sh("ip addr del 198.18.1.1/32 dev up0");
    host.wait_until_it_is(&with_dev);
}

#[test]
fn killed_daemon_leaves_nothing_of_several_leases() {
    let host = Host::new();
    let before = host.snapshot();
    let mut daemon = host.daemon();
    let mut dev = client(&host, "default");
    let _first = dev.acquire_with(&DEV, &["dev.x"], "dev").unwrap();
    let mut staging = client(&host, "staging");
    let _second = staging.acquire_with(&STAGING, &["staging.x"], "staging");
    daemon.kill();
    host.wait_until_it_is(&before);
}
