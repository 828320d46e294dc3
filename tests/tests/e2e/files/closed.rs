//! Whom files are not served to: there is no port to ask at.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::shop::{NAMESPACE, Shop, directory};
use crate::support::Developer;

/// The states of sockets that anybody may reach, as the kernel numbers them: TCP that
/// listens, and UDP that has no peer.
const OPEN: [(&str, &str); 4] = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];

#[test]
fn pod_has_no_port_for_its_files() -> Result<()> {
    let developer = Developer::at(1)?;
    let shop = Shop::open(&developer.lab)?;
    developer.kvpn(["connect", "-n", NAMESPACE])?.success()?;
    let at = directory(&developer)?;
    let before = open_ports(&shop)?;
    developer
        .kvpn(["ingest", "web", "--mount", &at])?
        .success()?;
    let read = developer
        .laptop
        .user()
        .run(["cat", &format!("{at}/etc/one")])?;
    assert_eq!(read.success()?.stdout, "fast");
    assert_eq!(open_ports(&shop)?, before);
    developer.kvpn(["leave", "web"])?.success()?;
    // An agent has one, for what is redirected to it, so that it would have been seen.
    developer
        .kvpn(["intercept", "web", "--port", "8080", "--mount=false"])?
        .success()?;
    let with_agent = open_ports(&shop)?;
    ensure!(with_agent.len() > before.len(), "{with_agent:?}");
    Ok(())
}

/// Protocols and local addresses of the pod's sockets that anybody may reach.
fn open_ports(shop: &Shop) -> Result<BTreeSet<(&'static str, String)>> {
    let mut open = BTreeSet::new();
    for (protocol, state) in OPEN {
        let table = shop.in_pod(&format!("cat /proc/net/{protocol}"))?;
        for line in table.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let address = fields.next().context("a line without an address")?;
            if fields.nth(1) == Some(state) {
                open.insert((protocol, address.to_owned()));
            }
        }
    }
    Ok(open)
}
