//! systemd-resolved, which chooses name servers by domain
//! (<https://www.freedesktop.org/software/systemd/man/org.freedesktop.resolve1.html>).
//! What it is told of a device it forgets with the device.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::timeout;
use tracing::{debug, warn};
use zbus::{Connection, fdo, proxy};

/// Where it writes the name servers of all other devices.
pub(super) const UPSTREAMS: &str = "/run/systemd/resolve/resolv.conf";

/// How long it may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// The most domains of a device that it takes.
const MAX_DOMAINS: usize = 1_000;

/// Numbers of address families in its messages.
const INET: i32 = nix::libc::AF_INET;
const INET6: i32 = nix::libc::AF_INET6;

#[proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Manager {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, link: i32, addresses: &[(i32, Vec<u8>)]) -> zbus::Result<()>;
    fn set_link_domains(&self, link: i32, domains: &[(&str, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, link: i32, enable: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkLLMNR")]
    fn set_link_llmnr(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkMulticastDNS")]
    fn set_link_multicast_dns(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSOverTLS")]
    fn set_link_dns_over_tls(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSSEC")]
    fn set_link_dnssec(&self, link: i32, mode: &str) -> zbus::Result<()>;
}

/// systemd-resolved, told of a device.
pub(super) struct Resolved {
    manager: ManagerProxy<'static>,
    link: i32,
}

impl Resolved {
    /// Finds it; `None` where it does not run.
    pub(super) async fn find(link: u32) -> io::Result<Option<Self>> {
        let link = i32::try_from(link).map_err(io::Error::other)?;
        let manager = manager().await;
        Ok(manager.map(|manager| Self { manager, link }))
    }

    /// Has it ask these servers for names under the domains, and complete names by
    /// the search domains.
    pub(super) async fn set(
        &mut self,
        servers: &[IpAddr],
        search_domains: &[String],
        domains: &[String],
    ) -> io::Result<()> {
        let servers: Vec<_> = servers.iter().map(|server| wire(*server)).collect();
        let search = search_domains.iter().map(|domain| (domain.as_str(), false));
        let route_only = domains.iter().map(|domain| (domain.as_str(), true));
        let mut all: Vec<_> = search.chain(route_only).collect();
        if all.len() > MAX_DOMAINS {
            warn!(
                count = all.len(),
                limit = MAX_DOMAINS,
                "The host's resolver cannot be told of all domains"
            );
            all.truncate(MAX_DOMAINS);
        }
        match self.tell(&servers, &all).await {
            Ok(()) => Ok(()),
            // It is there.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(error),
            Err(error) => {
                // The bus, or systemd-resolved, may have been started anew.
                debug!(%error, "systemd-resolved is looked for again");
                let Some(found) = manager().await else {
                    return Err(error);
                };
                self.manager = found;
                self.tell(&servers, &all).await
            }
        }
    }

    async fn tell(&self, servers: &[(i32, Vec<u8>)], domains: &[(&str, bool)]) -> io::Result<()> {
        let (manager, link) = (&self.manager, self.link);
        let tell = async {
            // First, so that it never asks us for names that are not ours.
            manager.set_link_default_route(link, false).await?;
            manager.set_link_llmnr(link, "no").await?;
            manager.set_link_multicast_dns(link, "no").await?;
            // The way to us is this host, and a cluster signs nothing.
            manager.set_link_dns_over_tls(link, "no").await?;
            manager.set_link_dnssec(link, "no").await?;
            manager.set_link_domains(link, domains).await?;
            manager.set_link_dns(link, servers).await
        };
        match timeout(DEADLINE, tell).await {
            Ok(told) => told.map_err(io::Error::other),
            Err(_) => {
                let message = "systemd-resolved does not answer; restart it";
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }
}

/// Finds it on the system's bus.
async fn manager() -> Option<ManagerProxy<'static>> {
    let find = async {
        let connection = Connection::system().await?;
        let bus = fdo::DBusProxy::new(&connection).await?;
        let name = "org.freedesktop.resolve1".try_into()?;
        if !bus.name_has_owner(name).await? {
            return Ok(None);
        }
        ManagerProxy::new(&connection).await.map(Some)
    };
    match timeout(DEADLINE, find).await {
        Ok(Ok(manager)) => manager,
        // A host without D-Bus is not worth a word.
        Ok(Err(error)) => {
            debug!(%error, "No system bus");
            None
        }
        Err(_) => {
            warn!("The system bus does not answer; systemd-resolved is not told of kvpn");
            None
        }
    }
}

fn wire(server: IpAddr) -> (i32, Vec<u8>) {
    match server {
        IpAddr::V4(address) => (INET, address.octets().into()),
        IpAddr::V6(address) => (INET6, address.octets().into()),
    }
}
