//! Addresses that stay the host's own, whatever is routed to the cluster.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kvpn_tunnel::dns::parse_resolv_conf;
use tokio::time::sleep;

use super::cluster::Cluster;
use crate::lease::slot::{self, Slot};

/// Files that name the host's own name servers. The second has those behind
/// systemd-resolved, of which the first may tell no more than that it runs.
const RESOLV_CONFS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// How often they are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// What the tunnel runs through, and what the host asks for names.
#[derive(Clone, Debug, Default)]
pub(crate) struct Protected {
    servers: Vec<IpAddr>,
    files: Vec<PathBuf>,
    name_servers: BTreeSet<IpAddr>,
}

impl Protected {
    /// Finds them. While there are leases, files beside the root daemon's socket name
    /// the name servers that resolv.conf named before.
    pub(crate) async fn find(cluster: &Cluster, daemon_socket: &Path) -> Self {
        let run_dir = daemon_socket.parent().unwrap_or(Path::new("/"));
        let of_leases = Slot::all().map(|slot| slot.upstreams(run_dir));
        let files = RESOLV_CONFS.into_iter().map(PathBuf::from);
        let mut protected = Self {
            servers: cluster.server_addresses().await,
            files: files.chain(of_leases).collect(),
            name_servers: BTreeSet::new(),
        };
        protected.name_servers = protected.read();
        protected
    }

    /// Has one more file that names the host's name servers.
    pub(crate) fn add_file(&mut self, file: &Path) {
        self.files.push(file.to_owned());
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.servers.iter().chain(&self.name_servers).copied()
    }

    /// Resolves once the host has other name servers, which are from then on in
    /// `addresses`.
    pub(crate) async fn changed(&mut self) {
        let mut last = self.read();
        loop {
            sleep(INTERVAL).await;
            let read = self.read();
            // Whoever writes the files may be in the middle of it.
            let is_settled = read == last;
            if is_settled && read != self.name_servers {
                self.name_servers = read;
                return;
            }
            last = read;
        }
    }

    fn read(&self) -> BTreeSet<IpAddr> {
        let texts = self
            .files
            .iter()
            .filter_map(|it| fs::read_to_string(it).ok());
        let name_servers = texts.flat_map(|text| parse_resolv_conf(&text).name_servers);
        name_servers.filter(|it| !slot::is_own(it)).collect()
    }
}

#[cfg(test)]
impl FromIterator<IpAddr> for Protected {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        Self {
            servers: addresses.into_iter().collect(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_name_servers_are_noticed_and_our_own_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kvpn0.upstreams");
        let mut protected = Protected::default();
        protected.add_file(&file);
        fs::write(&file, "nameserver 10.0.0.1\nnameserver 198.18.1.1\n").unwrap();
        protected.changed().await;
        assert!(
            protected
                .addresses()
                .eq(["10.0.0.1".parse::<IpAddr>().unwrap()])
        );

        fs::write(&file, "nameserver 198.18.1.1\nnameserver 10.0.0.1\n").unwrap();
        let same = tokio::time::timeout(3 * INTERVAL, protected.changed()).await;
        assert!(same.is_err());
    }
}
