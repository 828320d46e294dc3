//! Several connections at once: each with names and addresses of its own, though
//! their clusters have the same ones.

use anyhow::{Result, ensure};

use crate::support::{Developer, SHOP, cluster_ips, pod};

const OTHER: &str = "other";

#[test]
fn two_connections_by_resolv_conf() -> Result<()> {
    connect_twice(&Developer::at(1)?)
}

#[test]
fn two_connections_by_resolved() -> Result<()> {
    let developer = Developer::at(1)?;
    let _resolved = developer.laptop.with_resolved()?;
    connect_twice(&developer)
}

fn connect_twice(developer: &Developer) -> Result<()> {
    let before = developer.laptop.host_state()?;
    developer.connect()?;
    let real = cluster_ips(&developer.lab, "web")?;

    // Both clusters use the same addresses, being the same.
    let connect = ["connect", "--name", OTHER, "-n", "default"];
    let refused = developer.kvpn(connect)?;
    assert_eq!(refused.code(), 11, "{}", refused.stderr);
    for part in ["another connection of kvpn", "--vnat"] {
        ensure!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let [connect, flag, name, n, namespace] = connect;
    developer
        .kvpn([connect, flag, name, n, namespace, "--vnat", "all"])?
        .success()?;

    let look_up = |name: &str| -> Result<Vec<String>> {
        let output = developer.laptop.user().run(["getent", "ahosts", name])?;
        let text = output.success()?.stdout;
        let mut found: Vec<String> = text
            .lines()
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect();
        found.sort();
        found.dedup();
        Ok(found)
    };
    let mut wanted = real.clone();
    wanted.sort();
    assert_eq!(look_up("web.shop.default.kvpn")?, wanted);
    assert_eq!(look_up("web.default.kvpn")?, wanted);
    let mapped = look_up("web.shop.other.kvpn")?;
    ensure!(mapped.len() == wanted.len(), "{mapped:?}");
    for address in &mapped {
        ensure!(
            address.starts_with("246.") || address.starts_with("fd6b:7670:6e"),
            "{mapped:?}"
        );
    }
    // Each is completed in its own namespace.
    let kubernetes = look_up("kubernetes")?;
    assert_eq!(kubernetes, look_up("kubernetes.default.other.kvpn")?);
    ensure!(!look_up("web")?.is_empty());
    let web = pod(&developer.lab, "web")?.name;
    for url in [
        "http://web.shop.default.kvpn/",
        "http://web.shop.other.kvpn/",
        "http://web/",
    ] {
        assert_eq!(developer.get([url])?.pod, web, "{url}");
    }

    // Which one is meant must be said.
    let unclear = developer.kvpn(["list", "-n", SHOP])?;
    assert_eq!(unclear.code(), 2, "{}", unclear.stderr);
    ensure!(
        unclear.stderr.contains("default, other"),
        "{}",
        unclear.stderr
    );
    developer
        .kvpn(["list", "-n", SHOP, "--name", OTHER])?
        .success()?;
    let both = developer.kvpn(["status"])?.success()?.stdout;
    ensure!(both.contains(", as other"), "{both}");

    developer.kvpn(["quit", "default"])?.success()?;
    assert_eq!(developer.get(["http://web.shop.other.kvpn/"])?.pod, web);
    assert_eq!(developer.get(["http://web.shop/"])?.pod, web);
    let one = developer.kvpn_json(["status"])?;
    assert_eq!(one["name"], OTHER, "{one}");
    developer.kvpn(["quit", OTHER])?.success()?;
    developer.is_as_before(&before)
}
