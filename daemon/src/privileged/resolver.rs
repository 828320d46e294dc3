//! What on the host is told of the sessions' name servers: systemd-resolved where it
//! runs, and resolv.conf unless that leads to systemd-resolved already.
//!
//! resolv.conf names the name server of the latest lease only. That asks the one
//! before it for what it does not know itself, and the first asks the host's own.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvpn_proto::v1;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::resolv_conf::{Change, Watch};
use super::resolved::{self, Resolved};
use super::upstreams;
use crate::fault::point;
use crate::lease::slot::Slot;

/// Where systemd-resolved listens, for programs that read resolv.conf.
const STUBS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54)),
];

/// How the host looks up names while there are leases.
pub(super) struct Resolver {
    run_dir: PathBuf,
    path: PathBuf,
    /// In the order of their leases.
    members: Vec<Member>,
    /// What was written into resolv.conf.
    written: Option<Change>,
    watch: watch::Sender<Option<Arc<Watch>>>,
}

/// A lease's part in it.
struct Member {
    slot: Slot,
    servers: Vec<IpAddr>,
    search_domains: Vec<String>,
    resolved: Option<Resolved>,
    /// What systemd-resolved is still to be told.
    untold: Option<Vec<String>>,
    is_in_resolv_conf: bool,
}

/// A new lease's part, and what it takes. Nothing is told yet.
pub(super) struct Plan {
    member: Member,
    resolv_conf: Option<Change>,
}

impl Plan {
    /// The change of resolv.conf, for the journal.
    pub(super) fn resolv_conf(&self) -> Option<&Change> {
        self.resolv_conf.as_ref()
    }
}

impl Member {
    async fn tell(&mut self, domains: Vec<String>) -> io::Result<()> {
        let Some(resolved) = &mut self.resolved else {
            return Ok(());
        };
        // The search domains stay as they were granted.
        let set = resolved.set(&self.servers, &self.search_domains, &domains);
        let outcome = set.await;
        self.untold = outcome.is_err().then_some(domains);
        outcome
    }
}

impl Resolver {
    pub(super) fn new(run_dir: &Path, path: &Path) -> Self {
        Self {
            run_dir: run_dir.to_owned(),
            path: path.to_owned(),
            members: Vec::new(),
            written: None,
            watch: watch::Sender::new(None),
        }
    }

    /// Looks at the host for a new lease. `servers` are the host's addresses on its
    /// device, whose index is `link`.
    pub(super) async fn plan(
        &self,
        slot: Slot,
        link: u32,
        servers: &[IpAddr],
        network: &v1::Network,
    ) -> io::Result<Plan> {
        let mut member = Member {
            slot,
            servers: servers.to_vec(),
            search_domains: network.search_domains.clone(),
            resolved: Resolved::find(link).await?,
            untold: None,
            is_in_resolv_conf: true,
        };
        let change = self.change(&member)?;
        let names = change.upstreams();
        let leads_to_resolved = !names.is_empty() && names.iter().all(|name| STUBS.contains(name));
        member.is_in_resolv_conf =
            self.written.is_some() || member.resolved.is_none() || !leads_to_resolved;
        Ok(Plan {
            resolv_conf: member.is_in_resolv_conf.then_some(change),
            member,
        })
    }

    /// Tells the host of a new lease; tells whom, and where its session finds whom
    /// to ask for names of other networks. After a failure, `leave` is needed.
    pub(super) async fn join(
        &mut self,
        plan: Plan,
        network: &v1::Network,
    ) -> io::Result<(v1::Resolver, PathBuf)> {
        let Plan {
            member,
            resolv_conf,
        } = plan;
        let slot = member.slot;
        self.members.push(member);
        let told = match resolv_conf {
            Some(change) => {
                self.write(change)?;
                let upstreams = slot.upstreams(&self.run_dir);
                (v1::Resolver::ResolvConf, upstreams)
            }
            None => (
                v1::Resolver::SystemdResolved,
                PathBuf::from(resolved::UPSTREAMS),
            ),
        };
        self.set(slot, network).await?;
        info!(resolver = ?told.0, "Name server is in force");
        Ok(told)
    }

    /// Tells systemd-resolved of other domains of a lease. What stands in
    /// resolv.conf stays. After a failure `set_again` tries it again.
    pub(super) async fn set(&mut self, slot: Slot, network: &v1::Network) -> io::Result<()> {
        let mut members = self.members.iter_mut();
        match members.find(|member| member.slot == slot) {
            Some(member) => match member.tell(network.domains.clone()).await {
                // Programs go by resolv.conf.
                Err(error) if member.is_in_resolv_conf => {
                    warn!(%error, "systemd-resolved cannot be told of kvpn");
                    Ok(())
                }
                outcome => outcome,
            },
            None => Ok(()),
        }
    }

    /// Tells systemd-resolved what it could not be told before.
    pub(super) async fn set_again(&mut self) {
        for member in &mut self.members {
            let Some(domains) = member.untold.take() else {
                continue;
            };
            if let Err(error) = member.tell(domains).await {
                debug!(%error, "systemd-resolved still cannot be told of domains");
                if error.kind() == io::ErrorKind::TimedOut {
                    // Leases wait meanwhile.
                    break;
                }
            }
        }
    }

    /// Plans resolv.conf without a lease that ends while others go on.
    pub(super) fn plan_without(&self, slot: Slot) -> io::Result<Option<Change>> {
        let mut rest = self.listed().filter(|member| member.slot != slot);
        match rest.next_back() {
            Some(last) if self.written.is_some() => self.change_of(rest, last).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    /// Takes a lease out, with the change that `plan_without` planned. The rest go
    /// on.
    pub(super) fn leave(&mut self, slot: Slot, change: Option<Change>) -> io::Result<()> {
        self.members.retain(|member| member.slot != slot);
        match change {
            Some(change) => self.write(change)?,
            None => {
                if let Some(written) = &self.written {
                    written.restore()?;
                    self.written = None;
                    self.watch.send_replace(None);
                }
            }
        }
        upstreams::remove(&self.run_dir, slot)
    }

    /// Forgets all leases, after what they changed was undone.
    pub(super) fn clear(&mut self) {
        self.members.clear();
        self.written = None;
        self.watch.send_replace(None);
    }

    /// Plans to tell again what somebody else has replaced; `None` where nobody
    /// has.
    pub(super) fn plan_again(&self) -> io::Result<Option<Change>> {
        let mut listed = self.listed();
        match (&self.written, listed.next_back()) {
            (Some(written), Some(last)) if written.is_replaced(&self.path)? => {
                self.change_of(listed, last).map(Some)
            }
            (Some(_) | None, _) => Ok(None),
        }
    }

    /// Restores what was written, if the path has become a link to another file than
    /// `plan_again` has planned to change. To be called while the journal has it.
    pub(super) fn let_go(&self, planned: &Change) -> io::Result<()> {
        match &self.written {
            Some(written) if written.path() != planned.path() => written.restore().map(drop),
            Some(_) | None => Ok(()),
        }
    }

    /// Tells again, after `plan_again`.
    pub(super) fn apply_again(&mut self, change: Change) -> io::Result<()> {
        self.write(change)
    }

    /// What notices that somebody else may have replaced what was written.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<Watch>>> {
        self.watch.subscribe()
    }

    /// Those that resolv.conf leads to.
    fn listed(&self) -> impl DoubleEndedIterator<Item = &Member> {
        let members = self.members.iter();
        members.filter(|member| member.is_in_resolv_conf)
    }

    /// The change of resolv.conf with one more lease.
    fn change(&self, latest: &Member) -> io::Result<Change> {
        self.change_of(self.listed(), latest)
    }

    fn change_of<'a>(
        &self,
        earlier: impl DoubleEndedIterator<Item = &'a Member>,
        latest: &'a Member,
    ) -> io::Result<Change> {
        let mut search: Vec<String> = Vec::new();
        for member in std::iter::once(latest).chain(earlier.rev()) {
            for domain in &member.search_domains {
                if !search.contains(domain) {
                    search.push(domain.clone());
                }
            }
        }
        match &self.written {
            Some(written) if !written.is_replaced(&self.path)? => {
                Ok(written.with(&latest.servers, &search))
            }
            Some(_) | None => Change::plan(&self.path, &latest.servers, &search),
        }
    }

    fn write(&mut self, change: Change) -> io::Result<()> {
        self.store_upstreams(&change)?;
        point("upstreams written");
        let named = |error: io::Error| {
            let message = format!("write {}: {error}", change.path().display());
            io::Error::new(error.kind(), message)
        };
        change.apply().map_err(named)?;
        point("resolv.conf written");
        // Our own writing is not to be noticed.
        let watch = Watch::new(&self.path, change.path());
        let watch = watch
            .inspect_err(|error| warn!(%error, "Changes of resolv.conf are not noticed"))
            .ok();
        self.watch.send_replace(watch.map(Arc::new));
        self.written = Some(change);
        Ok(())
    }

    /// Tells each session whom to ask next.
    fn store_upstreams(&self, change: &Change) -> io::Result<()> {
        let mut next = change.upstreams();
        let asks_resolved = |server: &IpAddr| STUBS.contains(server);
        if self.members.iter().any(|member| member.resolved.is_some())
            && !next.iter().all(asks_resolved)
        {
            // It takes its own name servers from this very file.
            next.retain(|server| !asks_resolved(server));
        }
        for member in self.listed() {
            upstreams::store(&self.run_dir, member.slot, &next)?;
            next.clone_from(&member.servers);
        }
        Ok(())
    }
}
