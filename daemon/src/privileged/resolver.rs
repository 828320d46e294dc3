//! What on the host is told of the session's name server: systemd-resolved where it
//! runs, and resolv.conf unless that leads to systemd-resolved already.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use kvpn_proto::v1;
use tracing::{info, warn};

use super::resolv_conf::{Change, Watch};
use super::resolved::{self, Resolved};
use super::upstreams;

/// Where systemd-resolved listens, for programs that read resolv.conf.
const STUBS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54)),
];

/// What is to be told, and to whom. Nothing is told yet.
pub(super) struct Plan {
    resolved: Option<Resolved>,
    resolv_conf: Option<Change>,
}

/// What was told.
pub(super) struct Told {
    servers: Vec<IpAddr>,
    search_domains: Vec<String>,
    resolved: Option<Resolved>,
    resolv_conf: Option<Written>,
}

struct Written {
    path: PathBuf,
    change: Change,
    watch: Watch,
}

impl Plan {
    /// Looks at the host. `servers` are the session's addresses on the device.
    pub(super) async fn make(
        resolv_conf: &Path,
        link: u32,
        servers: &[IpAddr],
        network: &v1::Network,
    ) -> io::Result<Self> {
        let change = Change::plan(resolv_conf, servers, &network.search_domains)?;
        let resolved = Resolved::find(link).await?;
        let names = change.upstreams();
        let leads_to_resolved = !names.is_empty() && names.iter().all(|name| STUBS.contains(name));
        Ok(Self {
            resolv_conf: (resolved.is_none() || !leads_to_resolved).then_some(change),
            resolved,
        })
    }

    /// The change of resolv.conf, for the journal.
    pub(super) fn resolv_conf(&self) -> Option<&Change> {
        self.resolv_conf.as_ref()
    }

    /// Tells them.
    pub(super) async fn apply(
        self,
        run_dir: &Path,
        path: &Path,
        servers: &[IpAddr],
        network: &v1::Network,
    ) -> io::Result<Told> {
        let Self {
            resolved,
            resolv_conf,
        } = self;
        let resolv_conf = match resolv_conf {
            Some(change) => Some(Written::write(run_dir, path, change)?),
            None => None,
        };
        let told = Told {
            servers: servers.to_vec(),
            search_domains: network.search_domains.clone(),
            resolved,
            resolv_conf,
        };
        told.tell_resolved(network).await?;
        info!(resolver = ?told.kind(), "Name server is in force");
        Ok(told)
    }
}

impl Told {
    pub(super) fn kind(&self) -> v1::Resolver {
        match &self.resolv_conf {
            Some(_) => v1::Resolver::ResolvConf,
            None => v1::Resolver::SystemdResolved,
        }
    }

    /// The file with the host's own name servers.
    pub(super) fn upstreams(&self, run_dir: &Path) -> PathBuf {
        match &self.resolv_conf {
            Some(_) => upstreams::path(run_dir),
            None => resolved::UPSTREAMS.into(),
        }
    }

    /// Resolves when somebody else may have changed what was told.
    pub(super) async fn changed(&self) {
        let Some(written) = &self.resolv_conf else {
            return std::future::pending().await;
        };
        if let Err(error) = written.watch.changed().await {
            warn!(%error, "Changes of resolv.conf are not noticed any more");
            std::future::pending().await
        }
    }

    /// Plans to tell again what somebody else has replaced; `None` where nobody
    /// has.
    pub(super) fn plan_again(&self) -> io::Result<Option<Change>> {
        let Some(Written { path, change, .. }) = &self.resolv_conf else {
            return Ok(None);
        };
        change.plan_again(path, &self.servers, &self.search_domains)
    }

    /// Tells again, after `plan_again`.
    pub(super) fn apply_again(&mut self, run_dir: &Path, change: Change) -> io::Result<()> {
        let Some(written) = &mut self.resolv_conf else {
            return Ok(());
        };
        if written.change.path() != change.path() {
            // The path has become a link to another file.
            written.change.restore()?;
        }
        *written = Written::write(run_dir, &written.path, change)?;
        Ok(())
    }

    /// Tells systemd-resolved of other domains. What stands in resolv.conf stays.
    pub(super) async fn set(&self, network: &v1::Network) -> io::Result<()> {
        self.tell_resolved(network).await
    }

    async fn tell_resolved(&self, network: &v1::Network) -> io::Result<()> {
        let Some(resolved) = &self.resolved else {
            return Ok(());
        };
        let v1::Network {
            search_domains,
            domains,
            ..
        } = network;
        match resolved.set(&self.servers, search_domains, domains).await {
            // Programs go by resolv.conf.
            Err(error) if self.resolv_conf.is_some() => {
                warn!(%error, "systemd-resolved cannot be told of kvpn");
                Ok(())
            }
            outcome => outcome,
        }
    }
}

impl Written {
    fn write(run_dir: &Path, path: &Path, change: Change) -> io::Result<Self> {
        upstreams::store(run_dir, &change.upstreams())?;
        let named = |error: io::Error| {
            let message = format!("write {}: {error}", change.path().display());
            io::Error::new(error.kind(), message)
        };
        change.apply().map_err(named)?;
        // Our own writing is not to be noticed.
        let watch = Watch::new(path, change.path())?;
        Ok(Self {
            path: path.to_owned(),
            change,
            watch,
        })
    }
}
