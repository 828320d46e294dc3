//! The host's network as one transaction: all of a lease is applied, or none.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ipnet::IpNet;
use kvpn_proto::v1::{self, Descriptor};
use kvpn_proto::{Failure, Reason};
use tracing::{debug, error, info, warn};

use super::guard::Guard;
use super::journal::{Device, Journal};
use super::netlink::Netlink;
use super::resolver::{Plan, Told};
use super::subnets::{self, Taken};
use super::{address, name_server, route, tun, undo};

/// The most search domains of a lease. Each costs a question for every name
/// that the host looks up.
const MAX_SEARCH_DOMAINS: usize = 16;

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
    changed: Changed,
    subnets: BTreeSet<IpNet>,
}

/// What was changed on the host, but for the routes.
struct Changed {
    journal: Journal,
    addresses: Vec<IpAddr>,
    told: Told,
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
        check_domains(wanted)?;
        let guard = Guard::start(&self.run_dir)
            .await
            .map_err(|error| failed("start the guard", &error))?;
        match self.change(&netlink, &subnets, wanted).await {
            Ok((changed, grant)) => {
                let applied = Applied {
                    netlink,
                    guard,
                    changed,
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
        network: &v1::Network,
    ) -> Result<(Changed, Grant), Failure> {
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
        let plan = Plan::make(&self.resolv_conf, tun.index, &addresses, network)
            .await
            .map_err(|error| failed("find out how this host looks up names", &error))?;
        journal.resolv_conf = plan.resolv_conf().cloned();
        self.store(&journal)?;
        let told = plan
            .apply(&self.run_dir, &self.resolv_conf, &addresses, network)
            .await
            .map_err(|error| failed("set up how this host looks up names", &error))?;
        let message = v1::Granted {
            device: tun::DEVICE.into(),
            mtu: tun::MTU.into(),
            addresses: texts(&addresses),
            upstreams: told.upstreams(&self.run_dir).display().to_string(),
            descriptors: kinds.into_iter().map(i32::from).collect(),
            resolver: told.kind().into(),
        };
        let grant = Grant {
            message,
            descriptors,
        };
        let changed = Changed {
            journal,
            addresses,
            told,
        };
        Ok((changed, grant))
    }

    /// Changes again what somebody else has replaced, who is then the one whose
    /// settings come back at the end of the lease.
    pub(super) fn follow(&self, applied: &mut Applied) {
        if let Err(error) = self.change_again(&mut applied.changed) {
            warn!(%error, "Names may not be looked up in the cluster any more");
        }
    }

    fn change_again(&self, changed: &mut Changed) -> io::Result<()> {
        let Some(change) = changed.told.plan_again()? else {
            debug!("What was written for a lease is still there, and left as it is");
            return Ok(());
        };
        info!(path = %change.path().display(), "Somebody else has replaced it; changed again");
        let journal = Journal {
            resolv_conf: Some(change.clone()),
            ..changed.journal.clone()
        };
        journal.store(&self.run_dir)?;
        changed.journal = journal;
        changed.told.apply_again(&self.run_dir, change)
    }

    fn store(&self, journal: &Journal) -> Result<(), Failure> {
        journal
            .store(&self.run_dir)
            .map_err(|error| failed("write the journal", &error))
    }
}

impl Applied {
    /// Replaces the subnets and the domains; after a failure the subnets are as
    /// they were. The search domains stay as they were granted.
    pub(super) async fn set_network(&mut self, network: &v1::Network) -> Result<(), Failure> {
        check_domains(network)?;
        let taken = taken(&self.netlink, Some(self.index())).await?;
        let wanted = subnets::check(&network.subnets, &taken)?;
        let mut added = Vec::new();
        for subnet in wanted.difference(&self.subnets) {
            match add_route(
                &self.netlink,
                self.index(),
                *subnet,
                &self.changed.addresses,
            )
            .await
            {
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
        let told = self.changed.told.set(network).await;
        told.map_err(|error| failed("tell this host's resolver of other domains", &error))
    }

    /// Resolves when somebody else may have replaced what was changed.
    pub(super) async fn touched(&self) {
        self.changed.told.changed().await;
    }

    fn index(&self) -> u32 {
        self.changed.journal.device.index
    }

    /// The subnets that are routed to the device.
    pub(super) fn subnets(&self) -> Vec<String> {
        texts(&self.subnets)
    }

    async fn delete_routes(&self, subnets: &[IpNet]) {
        for subnet in subnets {
            let Some(source) = source(*subnet, &self.changed.addresses) else {
                continue;
            };
            if let Err(error) = route::delete(&self.netlink, self.index(), *subnet, source).await {
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
fn check_domains(network: &v1::Network) -> Result<(), Failure> {
    let is_domain = |domain: &String| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=253).contains(&domain.len()) && domain.chars().all(is_letter)
    };
    let search = &network.search_domains;
    if search.len() > MAX_SEARCH_DOMAINS {
        return Err(Failure::new(
            Reason::Usage,
            format!(
                "{} search domains are more than {MAX_SEARCH_DOMAINS}",
                search.len()
            ),
            "name fewer",
        ));
    }
    match search
        .iter()
        .chain(&network.domains)
        .find(|domain| !is_domain(domain))
    {
        None => Ok(()),
        Some(domain) => Err(Failure::new(
            Reason::Usage,
            format!("{domain:?} is not a domain"),
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
    fn domains_cannot_smuggle_lines_or_words() {
        let check = |domain: &str| {
            check_domains(&v1::Network {
                domains: vec![domain.to_owned()],
                ..search(&[domain])
            })
        };
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
        let domains = ["svc.x"; MAX_SEARCH_DOMAINS + 1];
        assert!(check_domains(&search(&domains[1..])).is_ok());
        let failure = check_domains(&search(&domains)).unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
    }

    fn search(domains: &[&str]) -> v1::Network {
        v1::Network {
            search_domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            ..v1::Network::default()
        }
    }

    #[test]
    fn source_is_of_the_subnets_family() {
        let (v4, v6) = (IpAddr::V4(address::V4), IpAddr::V6(address::V6));
        let subnet = "fd00:96::/108".parse().unwrap();
        assert_eq!(source(subnet, &[v4, v6]), Some(v6));
        assert_eq!(source(subnet, &[v4]), None);
    }
}
