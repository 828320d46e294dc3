//! The host's network as one transaction for each lease: all of it is applied, or
//! none.

mod check;
mod failures;
mod pauses;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvpn_proto::Failure;
use kvpn_proto::v1::{self, Descriptor};
use tokio::sync::Mutex;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::guard::Guard;
use super::journal::{Device, Journal};
use super::resolver::Resolver;
use super::routing::{Planned, Routing};
use super::{address, failed, name_server, tun, undo};
use crate::fault::point;
use crate::lease::slot::Slot;
use crate::netlink::Netlink;
use failures::{NotApplied, bind_failed, device_failed, no_slot};
use pauses::Pauses;

/// How often the host's resolver is told again what it could not be told.
const UNTOLD: Duration = Duration::from_secs(60);

/// The host, and where the daemon keeps and changes things.
pub(super) struct Host {
    run_dir: PathBuf,
    resolv_conf: PathBuf,
    state: Mutex<State>,
}

/// What is changed at the moment.
struct State {
    journal: Journal,
    guard: Option<Guard>,
    resolver: Resolver,
    leases: BTreeMap<Slot, Routing>,
    /// Those that have ended, but could not be undone.
    leftover: BTreeSet<Slot>,
}

/// What goes to the session.
pub(super) struct Grant {
    pub(super) message: v1::Granted,
    pub(super) descriptors: Vec<OwnedFd>,
    /// The subnets that are routed.
    pub(super) subnets: Vec<String>,
}

impl Host {
    pub(super) fn new(run_dir: PathBuf, resolv_conf: PathBuf) -> Self {
        let state = State {
            journal: Journal::default(),
            guard: None,
            resolver: Resolver::new(&run_dir, &resolv_conf),
            leases: BTreeMap::new(),
            leftover: BTreeSet::new(),
        };
        Self {
            run_dir,
            resolv_conf,
            state: Mutex::new(state),
        }
    }

    pub(super) fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Undoes what an earlier daemon left.
    pub(super) async fn recover(&self) -> Result<(), Failure> {
        undo::undo(&self.run_dir)
            .await
            .map_err(|error| failed("undo what an earlier kvpnd left", &error))?;
        undo::restore_orphan(&self.resolv_conf)
            .map_err(|error| failed("restore what an earlier kvpnd left", &error))
    }

    /// Applies a lease, in the first slot of which nobody else on the host has the
    /// device or the name server's port; after a failure the host is as it was.
    pub(super) async fn apply(&self, wanted: &v1::Network) -> Result<(Slot, Grant), Failure> {
        let mut state = self.state.lock().await;
        if state.leases.is_empty() {
            self.recover().await?;
            state.clear();
        }
        check::domains(wanted)?;
        let netlink = Netlink::open().map_err(|error| failed("speak to the kernel", &error))?;
        let mut first = None;
        for slot in state.free_slots() {
            match self.apply_in(&mut state, &netlink, slot, wanted).await {
                Ok(grant) => return Ok((slot, grant)),
                Err(NotApplied { failure, is_taken }) => {
                    first.get_or_insert(failure);
                    if !is_taken {
                        break;
                    }
                }
            }
        }
        Err(first.unwrap_or_else(no_slot))
    }

    async fn apply_in(
        &self,
        state: &mut State,
        netlink: &Netlink,
        slot: Slot,
        wanted: &v1::Network,
    ) -> Result<Grant, NotApplied> {
        let planned = Planned::new(netlink, slot, wanted).await?;
        if state.guard.is_none() {
            let guard = Guard::start(&self.run_dir).await;
            state.guard = Some(guard.map_err(|error| failed("start the guard", &error))?);
        }
        point("guard started");
        let change = self.change(state, netlink, slot, planned, wanted).await;
        if change.is_err() {
            self.end(state, slot).await;
        }
        change
    }

    /// Replaces the subnets of a lease, then the domains as far as the host's resolver
    /// takes them; after a failure the subnets are as they were. Returns the subnets.
    pub(super) async fn set_network(
        &self,
        slot: Slot,
        network: &v1::Network,
    ) -> Result<Vec<String>, Failure> {
        check::domains(network)?;
        let mut state = self.state.lock().await;
        let State {
            leases, resolver, ..
        } = &mut *state;
        let Some(routing) = leases.get_mut(&slot) else {
            return Err(Failure::internal("the lease has ended"));
        };
        let netlink = Netlink::open().map_err(|error| failed("speak to the kernel", &error))?;
        routing.replace(&netlink, network).await?;
        if let Err(error) = resolver.set(slot, network).await {
            // The routes are in force, and are what the session is to know of.
            warn!(%error, "This host's resolver cannot be told of other domains");
        }
        Ok(routing.subnets())
    }

    /// Ends a lease: the host becomes as it was without it.
    pub(super) async fn undo(&self, slot: Slot) {
        let mut state = self.state.lock().await;
        self.end(&mut state, slot).await;
    }

    /// Notes a file system that is about to be mounted.
    pub(super) async fn note_mount(&self, id: u64) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        state.journal.mounts.push(id);
        self.store(&state.journal)
    }

    /// Forgets one that is mounted no longer.
    pub(super) async fn forget_mount(&self, id: u64) {
        let mut state = self.state.lock().await;
        state.journal.mounts.retain(|noted| *noted != id);
        if let Err(failure) = self.store(&state.journal) {
            // Whoever reads of it finds it gone.
            debug!(%failure, "A mount stays in the journal");
        }
    }

    /// Tries again to undo what could not be undone.
    pub(super) async fn undo_leftover(&self) {
        let mut state = self.state.lock().await;
        for slot in state.leftover.clone() {
            self.end(&mut state, slot).await;
        }
    }

    /// Changes again, for as long as this is polled, what somebody else replaces, who
    /// is then the one whose settings come back at the end of the leases.
    pub(super) async fn keep_changed(&self) {
        let mut watches = self.state.lock().await.resolver.watch();
        let mut pauses = Pauses::default();
        loop {
            let watch = watches.borrow().clone();
            let touched = async {
                match watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                touched = touched => match touched {
                    Ok(()) => {
                        self.follow().await;
                        sleep(pauses.next(Instant::now())).await;
                    }
                    Err(error) => {
                        warn!(%error, "Changes of resolv.conf are not noticed any more");
                        // The sender is as old as this.
                        let _ = watches.changed().await;
                    }
                },
                // It may have been replaced before that began to watch.
                _ = watches.changed() => if watches.borrow().is_some() {
                    self.follow().await;
                },
            }
        }
    }

    /// Tells the host's resolver again, for as long as this is polled, what it could
    /// not be told.
    pub(super) async fn keep_told(&self) {
        loop {
            sleep(UNTOLD).await;
            self.state.lock().await.resolver.set_again().await;
        }
    }

    async fn follow(&self) {
        let mut state = self.state.lock().await;
        if let Err(error) = self.change_again(&mut state) {
            warn!(%error, "Names may not be looked up in the cluster any more");
        }
    }

    async fn change(
        &self,
        state: &mut State,
        netlink: &Netlink,
        slot: Slot,
        planned: Planned,
        network: &v1::Network,
    ) -> Result<Grant, NotApplied> {
        // Nothing to journal yet: until the session has a copy of its
        // descriptor, the device ends with this process.
        let name = slot.device();
        let tun = tun::create(&name).map_err(|error| device_failed(&name, &error))?;
        point("device made");
        state.journal.devices.push(Device {
            name: name.clone(),
            index: tun.index,
        });
        self.store(&state.journal)?;
        point("device in the journal");
        let addresses = address::configure(netlink, slot, tun.index)
            .await
            .map_err(|error| failed("give the TUN device its addresses", &error))?;
        point("addresses added");
        let mut kinds = vec![Descriptor::Tun];
        let mut descriptors = vec![tun.descriptor];
        for address in &addresses {
            let (udp, tcp) =
                name_server::bind(*address).map_err(|error| bind_failed(*address, &error))?;
            kinds.extend([Descriptor::DnsUdp, Descriptor::DnsTcp]);
            descriptors.extend([udp, tcp]);
        }
        let routing = Routing::add(netlink, slot, tun.index, addresses.clone(), planned).await?;
        point("routes added");
        let plan = state.resolver.plan(slot, tun.index, &addresses, network);
        let plan = plan
            .await
            .map_err(|error| failed("find out how this host looks up names", &error))?;
        if let Some(change) = plan.resolv_conf() {
            state.journal.resolv_conf = Some(change.clone());
            self.store(&state.journal)?;
            point("resolv.conf in the journal");
        }
        let joined = state.resolver.join(plan, network).await;
        let (resolver, upstreams) =
            joined.map_err(|error| failed("set up how this host looks up names", &error))?;
        point("resolver told");
        let subnets = routing.subnets();
        state.leases.insert(slot, routing);
        let message = v1::Granted {
            device: name,
            mtu: tun::MTU.into(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            upstreams: upstreams.display().to_string(),
            descriptors: kinds.into_iter().map(i32::from).collect(),
            resolver: resolver.into(),
        };
        Ok(Grant {
            message,
            descriptors,
            subnets,
        })
    }

    fn change_again(&self, state: &mut State) -> io::Result<()> {
        let Some(change) = state.resolver.plan_again()? else {
            debug!("What was written for a lease is still there, and left as it is");
            return Ok(());
        };
        info!(path = %change.path().display(), "Somebody else has replaced it; changed again");
        state.resolver.let_go(&change)?;
        point("file that the path led to restored");
        state.journal.resolv_conf = Some(change.clone());
        state.journal.store(&self.run_dir)?;
        state.resolver.apply_again(change)
    }

    /// Undoes what a lease changed, or part of it.
    async fn end(&self, state: &mut State, slot: Slot) {
        state.leases.remove(&slot);
        let undone = if state.leases.is_empty() {
            self.undo_all(state).await
        } else {
            self.undo_one(state, slot).await
        };
        match undone {
            Ok(()) => {
                state.leftover.remove(&slot);
            }
            Err(error) => {
                error!(%error, "The changes of a lease cannot be undone; this is tried again");
                state.leftover.insert(slot);
            }
        }
        if state.leases.is_empty()
            && let Some(guard) = state.guard.take()
        {
            guard.end().await;
        }
    }

    async fn undo_all(&self, state: &mut State) -> io::Result<()> {
        undo::undo(&self.run_dir).await?;
        state.clear();
        Ok(())
    }

    async fn undo_one(&self, state: &mut State, slot: Slot) -> io::Result<()> {
        let change = state.resolver.plan_without(slot)?;
        if change.is_some() {
            state.journal.resolv_conf.clone_from(&change);
            state.journal.store(&self.run_dir)?;
        }
        point("rest in the journal");
        state.resolver.leave(slot, change.clone())?;
        point("resolver told of the rest");
        state.journal.resolv_conf = change;
        let name = slot.device();
        let mut devices = state.journal.devices.iter();
        if let Some(device) = devices.find(|device| device.name == name) {
            let netlink = Netlink::open()?;
            netlink.delete_link(&device.name, device.index).await?;
            point("device of one deleted");
        }
        state.journal.devices.retain(|device| device.name != name);
        state.journal.store(&self.run_dir)
    }

    fn store(&self, journal: &Journal) -> Result<(), Failure> {
        journal
            .store(&self.run_dir)
            .map_err(|error| failed("write the journal", &error))
    }
}

impl State {
    fn free_slots(&self) -> Vec<Slot> {
        let is_free =
            |slot: &Slot| !self.leases.contains_key(slot) && !self.leftover.contains(slot);
        Slot::all().filter(is_free).collect()
    }

    /// Forgets everything, after it was undone.
    fn clear(&mut self) {
        self.journal = Journal::default();
        self.resolver.clear();
        self.leftover.clear();
    }
}
