//! The host's network as one transaction: all of a lease is applied, or none.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ipnet::IpNet;
use kvpn_proto::v1::{self, Descriptor};
use kvpn_proto::{Failure, Reason};
use tracing::{error, warn};

use super::guard::Guard;
use super::journal::{Device, Journal};
use super::netlink::Netlink;
use super::resolv_conf::Change;
use super::subnets::{self, Taken};
use super::{address, name_server, route, tun, undo};

/// The most search domains of a lease. Each costs a question for every name
/// that the host looks up.
const MAX_DOMAINS: usize = 16;

/// Where the daemon keeps and changes things.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) run_dir: PathBuf,
    pub(super) resolv_conf: PathBuf,
}

/// A lease that is applied to the host.
pub(super) struct Applied {
    netlink: Netlink,
    guard: Guard,
    index: u32,
    addresses: Vec<IpAddr>,
    subnets: BTreeSet<IpNet>,
}

/// What goes to the session.
pub(super) struct Grant {
    pub(super) message: v1::Granted,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Host {
    /// Undoes what an earlier daemon left.
    pub(super) async fn recover(&self) -> Result<(), Failure> {
        undo::undo(&self.run_dir)
            .await
            .map_err(|error| failed("undo what an earlier kvpnd left", &error))?;
        undo::restore_orphan(&self.resolv_conf)
            .map_err(|error| failed("restore what an earlier kvpnd left", &error))
    }

    /// Applies a lease; after a failure the host is as it was.
    pub(super) async fn apply(&self, wanted: &v1::Network) -> Result<(Applied, Grant), Failure> {
        self.recover().await?;
        let netlink = Netlink::open().map_err(|error| failed("speak to the kernel", &error))?;
        let taken = taken(&netlink, None).await?;
        check_own_addresses(&taken)?;
        let subnets = subnets::check(&wanted.subnets, &taken)?;
        check_domains(&wanted.search_domains)?;
        let guard = Guard::start(&self.run_dir)
            .await
            .map_err(|error| failed("start the guard", &error))?;
        match self
            .change(&netlink, &subnets, &wanted.search_domains)
            .await
        {
            Ok((index, addresses, grant)) => {
                let applied = Applied {
                    netlink,
                    guard,
                    index,
                    addresses,
                    subnets,
                };
                Ok((applied, grant))
            }
            Err(failure) => {
                self.take_back().await;
                guard.end().await;
                Err(failure)
            }
        }
    }

    /// Ends a lease: the host becomes as it was.
    pub(super) async fn undo(&self, applied: Applied) {
        self.take_back().await;
        applied.guard.end().await;
    }

    /// Undoes what the journal names, if anything.
    pub(super) async fn take_back(&self) {
        if let Err(error) = undo::undo(&self.run_dir).await {
            error!(%error, "The changes of a lease cannot be undone; this is tried again");
        }
    }

    async fn change(
        &self,
        netlink: &Netlink,
        subnets: &BTreeSet<IpNet>,
        search_domains: &[String],
    ) -> Result<(u32, Vec<IpAddr>, Grant), Failure> {
        // Nothing to journal yet: until the session has a copy of its
        // descriptor, the device ends with this process.
        let tun = tun::create().map_err(|error| device_failed(&error))?;
        let mut journal = Journal {
            device: Device {
                name: tun::DEVICE.into(),
                index: tun.index,
            },
            resolv_conf: None,
        };
        self.store(&journal)?;
        let addresses = address::configure(netlink, tun::DEVICE, tun.index)
            .await
            .map_err(|error| failed("give the TUN device its addresses", &error))?;
        for subnet in subnets {
            add_route(netlink, tun.index, *subnet, &addresses).await?;
        }
        let mut kinds = vec![Descriptor::Tun];
        let mut descriptors = vec![tun.descriptor];
        for address in &addresses {
            let (udp, tcp) =
                name_server::bind(*address).map_err(|error| bind_failed(*address, &error))?;
            kinds.extend([Descriptor::DnsUdp, Descriptor::DnsTcp]);
            descriptors.extend([udp, tcp]);
        }
        let change = Change::plan(&self.resolv_conf, &addresses, search_domains)
            .map_err(|error| self.dns_failed("read", &error))?;
        journal.resolv_conf = Some(change.clone());
        self.store(&journal)?;
        change
            .apply()
            .map_err(|error| self.dns_failed("write", &error))?;
        let message = v1::Granted {
            device: tun::DEVICE.into(),
            mtu: tun::MTU.into(),
            addresses: texts(&addresses),
            upstream_name_servers: texts(change.upstreams()),
            descriptors: kinds.into_iter().map(i32::from).collect(),
        };
        let grant = Grant {
            message,
            descriptors,
        };
        Ok((tun.index, addresses, grant))
    }

    fn store(&self, journal: &Journal) -> Result<(), Failure> {
        journal
            .store(&self.run_dir)
            .map_err(|error| failed("write the journal", &error))
    }

    fn dns_failed(&self, verb: &str, error: &io::Error) -> Failure {
        failed(&format!("{verb} {}", self.resolv_conf.display()), error)
    }
}

impl Applied {
    /// Replaces the subnets; after a failure they are as they were. The search
    /// domains stay as they were granted.
    pub(super) async fn set_network(&mut self, network: &v1::Network) -> Result<(), Failure> {
        let taken = taken(&self.netlink, Some(self.index)).await?;
        let wanted = subnets::check(&network.subnets, &taken)?;
        let mut added = Vec::new();
        for subnet in wanted.difference(&self.subnets) {
            match add_route(&self.netlink, self.index, *subnet, &self.addresses).await {
                Ok(()) => added.push(*subnet),
                Err(failure) => {
                    self.delete_routes(&added).await;
                    return Err(failure);
                }
            }
        }
        let dropped: Vec<IpNet> = self.subnets.difference(&wanted).copied().collect();
        self.delete_routes(&dropped).await;
        self.subnets = wanted;
        Ok(())
    }

    /// The subnets that are routed to the device.
    pub(super) fn subnets(&self) -> Vec<String> {
        texts(&self.subnets)
    }

    async fn delete_routes(&self, subnets: &[IpNet]) {
        for subnet in subnets {
            let Some(source) = source(*subnet, &self.addresses) else {
                continue;
            };
            if let Err(error) = route::delete(&self.netlink, self.index, *subnet, source).await {
                warn!(%subnet, %error, "The route cannot be deleted");
            }
        }
    }
}

/// What must stay reachable as it is.
async fn taken(netlink: &Netlink, index: Option<u32>) -> Result<Taken, Failure> {
    let read = async {
        io::Result::Ok(Taken {
            addresses: address::others(netlink, index).await?,
            gateways: route::default_gateways(netlink).await?,
        })
    };
    read.await
        .map_err(|error| failed("read this host's addresses and routes", &error))
}

async fn add_route(
    netlink: &Netlink,
    index: u32,
    subnet: IpNet,
    addresses: &[IpAddr],
) -> Result<(), Failure> {
    let Some(source) = source(subnet, addresses) else {
        warn!(%subnet, "Not routed, because IPv6 is disabled on this host");
        return Ok(());
    };
    match route::add(netlink, index, subnet, source).await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::new(
            Reason::HostRefused,
            format!("this host has a route to the cluster's subnet {subnet} already"),
            format!(
                "look at it with `ip route show {subnet}`; leave the network or VPN it leads to"
            ),
        )),
        Err(error) => Err(failed(&format!("add a route to {subnet}"), &error)),
    }
}

/// The address of the subnet's family.
fn source(subnet: IpNet, addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses
        .iter()
        .copied()
        .find(|address| address.is_ipv4() == subnet.addr().is_ipv4())
}

/// Refuses to share the device's addresses with somebody else's device.
fn check_own_addresses(taken: &Taken) -> Result<(), Failure> {
    let ours = [IpAddr::V4(address::V4), IpAddr::V6(address::V6)];
    match ours.iter().find(|ours| taken.addresses.contains(ours)) {
        None => Ok(()),
        Some(address) => Err(Failure::new(
            Reason::HostRefused,
            format!("this host has the address {address}, which kvpn needs, on another device"),
            "end the VPN or proxy that uses it; `ip addr` shows the device",
        )),
    }
}

/// Refuses what would become another line of resolv.conf, or another word.
fn check_domains(domains: &[String]) -> Result<(), Failure> {
    let is_domain = |domain: &String| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=253).contains(&domain.len()) && domain.chars().all(is_letter)
    };
    if domains.len() > MAX_DOMAINS {
        return Err(Failure::new(
            Reason::Usage,
            format!(
                "{} search domains are more than {MAX_DOMAINS}",
                domains.len()
            ),
            "name fewer",
        ));
    }
    match domains.iter().find(|domain| !is_domain(domain)) {
        None => Ok(()),
        Some(domain) => Err(Failure::new(
            Reason::Usage,
            format!("{domain:?} is not a domain to search in"),
            "use letters, digits, hyphens and dots only",
        )),
    }
}

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

fn device_failed(error: &io::Error) -> Failure {
    let next_step = if error.kind() == io::ErrorKind::AlreadyExists {
        format!("remove it with `sudo ip link delete {}`", tun::DEVICE)
    } else {
        "make sure that /dev/net/tun exists and that kvpnd runs as root".into()
    };
    Failure::new(
        Reason::HostRefused,
        format!("cannot make the TUN device: {error}"),
        next_step,
    )
}

fn bind_failed(address: IpAddr, error: &io::Error) -> Failure {
    let next_step = if error.kind() == io::ErrorKind::AddrInUse {
        "look with `sudo ss -lnp sport = :53` for who is there: end a session of kvpn that was \
         left, and bind a name server of your own to its own address"
            .into()
    } else {
        failed("", error).next_step
    };
    Failure::new(
        Reason::HostRefused,
        format!("cannot serve DNS on {address}, port 53: {error}"),
        next_step,
    )
}

fn failed(step: &str, error: &io::Error) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("cannot {step}: {error}"),
        "make sure that kvpnd runs as root with CAP_NET_ADMIN, and look at its log",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_cannot_smuggle_lines_or_words() {
        let check = |domain: &str| check_domains(&[domain.to_owned()]);
        assert!(check("shop.svc.cluster.local").is_ok());
        for domain in [
            "",
            "a b",
            "a\nnameserver 10.0.0.1",
            "a\tb",
            "a#b",
            &"a".repeat(254),
        ] {
            assert_eq!(
                check(domain).unwrap_err().reason,
                Reason::Usage,
                "{domain:?}"
            );
        }
    }

    #[test]
    fn search_domains_cannot_be_many() {
        let domains = |count| vec!["svc.x".to_owned(); count];
        assert!(check_domains(&domains(MAX_DOMAINS)).is_ok());
        let failure = check_domains(&domains(MAX_DOMAINS + 1)).unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
    }

    #[test]
    fn source_is_of_the_subnets_family() {
        let (v4, v6) = (IpAddr::V4(address::V4), IpAddr::V6(address::V6));
        let subnet = "fd00:96::/108".parse().unwrap();
        assert_eq!(source(subnet, &[v4, v6]), Some(v6));
        assert_eq!(source(subnet, &[v4]), None);
    }
}
