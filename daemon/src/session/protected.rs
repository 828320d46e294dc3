//! Addresses that stay the host's own, whatever is routed to the cluster.

use std::net::IpAddr;

use kvpn_tunnel::dns::parse_resolv_conf;

use super::cluster::Cluster;

/// Files that name the host's own name servers. The second has those behind
/// systemd-resolved, of which the first may tell no more than that it runs.
const RESOLV_CONFS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// What the tunnel runs through, and what the host asks for names. To be called
/// before the host's name servers are replaced.
pub(super) async fn addresses(cluster: &Cluster) -> Vec<IpAddr> {
    let name_servers = RESOLV_CONFS
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|text| parse_resolv_conf(&text).name_servers);
    let mut addresses: Vec<IpAddr> = name_servers.collect();
    addresses.extend(cluster.server_addresses().await);
    addresses
}
