//! The host's network as one transaction: all of a lease is applied, or none.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kvpn_proto::v1::{self, Descriptor};
use kvpn_proto::{Failure, Reason};
use tracing::{debug, error, info, warn};

use super::guard::Guard;
use super::journal::{Device, Journal};
use super::resolver::{Plan, Told};
use super::routing::{Planned, Routing};
use super::{address, name_server, tun, undo};
use crate::netlink::Netlink;

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
}

/// What was changed on the host.
struct Changed {
    journal: Journal,
    routing: Routing,
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
        let planned = Planned::new(&netlink, wanted).await?;
        check_domains(wanted)?;
        let guard = Guard::start(&self.run_dir)
            .await
            .map_err(|error| failed("start the guard", &error))?;
        match self.change(&netlink, planned, wanted).await {
            Ok((changed, grant)) => {
                let applied = Applied {
                    netlink,
                    guard,
                    changed,
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
        planned: Planned,
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
        let routing = Routing::add(netlink, tun.index, addresses.clone(), planned).await?;
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
            routing,
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
        let Changed { routing, told, .. } = &mut self.changed;
        routing.replace(&self.netlink, network).await?;
        let set = told.set(network).await;
        set.map_err(|error| failed("tell this host's resolver of other domains", &error))
    }

    /// Resolves when somebody else may have replaced what was changed.
    pub(super) async fn touched(&self) {
        self.changed.told.changed().await;
    }

    /// The subnets that are routed to the device.
    pub(super) fn subnets(&self) -> Vec<String> {
        self.changed.routing.subnets()
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
}
