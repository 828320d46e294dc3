//! The whole state, its events and its effects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::agents::AgentSlot;
use super::births::{Births, Newborn};
use super::deletions::{Deletion, Deletions};
use super::engagements::EngagementRecord;
use super::pods::Pods;
use super::sessions::SessionRecord;
use super::{
    AgentRejected, Caller, Change, ClaimRoute, Effect, EngagementView, Event, Key, Now, PodView,
    Role, SessionView, StreamId,
};

/// What the state depends on besides events.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How long an absent session lives on.
    pub(crate) grace: Duration,
    /// How long an engagement of one that is absent keeps its ports from others.
    pub(crate) idle: Duration,
    /// How long a reader stays that nobody wants.
    pub(crate) linger: Duration,
    /// Whether pods can be born with an agent.
    pub(crate) has_births: bool,
    pub(crate) agent_image: String,
    /// The traffic manager's own pod; its namespace holds the sessions.
    pub(crate) manager: Key,
}

/// Everything that the traffic manager knows.
#[derive(Debug)]
pub(crate) struct World {
    pub(super) settings: Settings,
    pub(super) sessions: BTreeMap<Key, SessionRecord>,
    pub(super) engagements: BTreeMap<Key, EngagementRecord>,
    pub(super) pods: Pods,
    /// By the UID of the pod.
    pub(super) slots: BTreeMap<String, AgentSlot>,
    synced: bool,
    /// How many engagements were ever seen.
    arrivals: u64,
    /// Namespaces in which something changed.
    dirty: BTreeSet<String>,
    /// Namespaces with readers, which may have no engagements any more.
    pub(super) read: BTreeSet<String>,
    pub(super) births: Births,
    pub(super) deletions: Deletions,
}

impl World {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            deletions: Deletions::new(&settings.manager.namespace),
            settings,
            sessions: BTreeMap::new(),
            engagements: BTreeMap::new(),
            pods: Pods::default(),
            slots: BTreeMap::new(),
            synced: false,
            arrivals: 0,
            dirty: BTreeSet::new(),
            read: BTreeSet::new(),
            births: Births::default(),
        }
    }

    /// Takes an event in and says what is to be done.
    pub(crate) fn handle(&mut self, event: Event, now: &Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Sessions(change) => self.handle_sessions(change, now, &mut effects),
            Event::Engagements(change) => self.handle_engagements(change, now),
            Event::Pods(change) => {
                self.births.handle_pods(&change);
                let (namespaces, gone) = self.pods.apply(change);
                self.dirty.extend(namespaces);
                for slot in gone.iter().filter_map(|uid| self.slots.remove(uid)) {
                    let links = slot.link().into_iter().chain(slot.readers.links());
                    effects.extend(links.map(|link| Effect::EndLink { link }));
                }
            }
            Event::Synced => {
                self.synced = true;
                self.touch_all();
            }
            Event::SessionOpened { uid, stream } => {
                self.with_session(&uid, |session| session.handle_opened(stream));
            }
            Event::SessionClosed { uid, stream } => {
                self.with_session(&uid, |session| session.handle_closed(stream, now));
            }
            Event::WorkloadResolved {
                engagement,
                uid,
                resolution,
            } => {
                let record = self.engagements.get_mut(&engagement);
                if let Some(record) = record.filter(|record| record.view.uid == uid) {
                    record.handle_resolved(resolution, now);
                    self.dirty.insert(engagement.namespace);
                }
            }
            Event::TlsGiven {
                engagement,
                uid,
                identity,
            } => {
                let record = self.engagements.get_mut(&engagement);
                if let Some(record) = record.filter(|record| record.view.uid == uid) {
                    record.handle_tls_given(identity);
                    self.dirty.insert(engagement.namespace);
                }
            }
            Event::AgentAdded { pod_uid, container } => {
                self.with_slot(&pod_uid, |slot| slot.handle_added(container, now.instant));
            }
            Event::AgentRefused { pod_uid, message } => {
                self.with_slot(&pod_uid, |slot| slot.handle_refused(message, now.instant));
            }
            Event::AgentNotAdded { pod_uid, message } => {
                self.with_slot(&pod_uid, |slot| {
                    slot.handle_add_failed(message, now.instant)
                });
            }
            Event::AgentStuck {
                pod_uid,
                container,
                message,
            } => self.with_slot(&pod_uid, |slot| slot.handle_stuck(container, message)),
            Event::CompanionAdded {
                role,
                pod_uid,
                target,
                container,
            } => self.with_slot(&pod_uid, |slot| {
                let at = now.instant;
                match role {
                    Role::Holder => slot.holders.handle_added(&target, container, at),
                    Role::Reader => slot.readers.handle_added(&target, container, at),
                }
            }),
            Event::CompanionNotAdded {
                role,
                pod_uid,
                target,
                message,
                is_refused,
            } => self.with_slot(&pod_uid, |slot| {
                let at = now.instant;
                let AgentSlot {
                    holders, readers, ..
                } = slot;
                match role {
                    Role::Holder => holders.handle_not_added(&target, message, is_refused, at),
                    Role::Reader => readers.handle_not_added(&target, message, is_refused, at),
                }
            }),
            Event::AgentLinked {
                pod_uid,
                link,
                container,
            } => {
                let slot = self.slots.entry(pod_uid).or_default();
                let replaced = slot.handle_linked(link, container);
                effects.extend(replaced.map(|link| Effect::EndLink { link }));
                effects.push(Effect::SendClaims {
                    link,
                    claims: slot.claims().clone(),
                });
                self.touch_all();
            }
            Event::AgentUnlinked { pod_uid, link } => {
                self.with_slot(&pod_uid, |slot| {
                    slot.handle_unlinked(link, now.instant);
                });
            }
            Event::AgentApplied {
                pod_uid,
                link,
                generation,
                not_stopped,
                without_tls,
            } => self.with_slot(&pod_uid, |slot| {
                slot.handle_applied(link, generation, not_stopped, without_tls);
            }),
            Event::AgentApplyFailed {
                pod_uid,
                link,
                generation,
                detail,
            } => self.with_slot(&pod_uid, |slot| {
                slot.handle_apply_failed(link, generation, detail);
            }),
            Event::ReaderLinked {
                pod,
                pod_uid,
                link,
                calling,
            } => {
                self.read.insert(pod.namespace);
                let slot = self.slots.entry(pod_uid).or_default();
                let to_end = slot.readers.handle_linked(link, calling);
                effects.extend(
                    to_end
                        .into_iter()
                        .map(|link| Effect::DismissReader { link }),
                );
                self.touch_all();
            }
            Event::ReaderUnlinked { pod_uid, link } => {
                self.with_slot(&pod_uid, |slot| {
                    slot.readers.handle_unlinked(link, now.instant);
                });
            }
            Event::Tick => self.touch_all(),
        }
        if self.synced {
            self.keep_sessions(now, &mut effects);
            for namespace in std::mem::take(&mut self.dirty) {
                self.reconcile(&namespace, now, &mut effects);
            }
            self.expect_questions(&mut effects);
        }
        effects
    }

    /// When [`Event::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if !self.synced {
            return None;
        }
        let Settings { grace, idle, .. } = self.settings;
        let sessions = self
            .sessions
            .values()
            .map(|session| session.deadline(grace, idle));
        let engagements = self
            .engagements
            .values()
            .filter_map(|engagement| engagement.deadline(grace, &self.pods));
        let slots = self.slots.values().filter_map(AgentSlot::deadline);
        sessions.chain(engagements).chain(slots).min()
    }

    pub(crate) fn session(&self, name: &str) -> Option<&SessionView> {
        let key = Key::new(&self.settings.manager.namespace, name);
        self.sessions.get(&key).map(|record| &record.view)
    }

    /// The stream that dials for a session go to, while it is present.
    pub(crate) fn dial_stream(&self, session_uid: &str) -> Option<StreamId> {
        self.sessions
            .values()
            .find(|session| session.view.uid == session_uid)
            .and_then(SessionRecord::stream)
    }

    /// The pod that an agent calls from.
    pub(super) fn calling_pod(&self, caller: &Caller) -> Option<&PodView> {
        match caller {
            Caller::Address(ip) => self.pods.by_ip(*ip),
            Caller::Pod { key, uid } => self.pods.get(key).filter(|pod| pod.uid == *uid),
        }
    }

    /// The pod of a caller, when that container of it is an agent of ours
    /// and no other agent serves the pod.
    pub(crate) fn identify_agent(
        &self,
        caller: &Caller,
        container: &str,
    ) -> Result<(String, Key), AgentRejected> {
        let pod = self.calling_pod(caller);
        let pod = pod.ok_or_else(|| AgentRejected::NoPod(caller.clone()))?;
        let slot = self.slots.get(&pod.uid);
        let ours = pod
            .agent(container)
            .is_some_and(|agent| agent.image == self.settings.agent_image)
            || slot.is_some_and(|slot| slot.has_added(container));
        if !ours {
            return Err(AgentRejected::NoContainer(
                pod.key.clone(),
                container.to_owned(),
            ));
        }
        if slot.is_some_and(|slot| slot.is_linked_elsewhere(container)) {
            return Err(AgentRejected::Taken(pod.key.clone()));
        }
        Ok((pod.uid.clone(), pod.key.clone()))
    }

    /// Whether an agent or a reader may call from an address: one was brought into the
    /// pod there, or is on its way.
    pub(crate) fn expects_agent(&self, ip: IpAddr) -> bool {
        self.pods.by_ip(ip).is_some_and(|pod| {
            let slot = self.slots.get(&pod.uid);
            let is_there = !pod.agents.is_empty() || !pod.readers.is_empty();
            is_there || slot.is_some_and(|slot| slot.expects_agent() || slot.readers.expects_any())
        })
    }

    /// Whether that container was added to a pod, and its agent has not called yet.
    pub(crate) fn awaits_agent(&self, pod_uid: &str, container: &str) -> bool {
        let slot = self.slots.get(pod_uid);
        slot.is_some_and(|slot| slot.has_added(container))
    }

    /// Whether an agent may call whose pod has no address yet that is known.
    pub(crate) fn expects_newborn(&self, now: &Now) -> bool {
        self.births.are_recent(now.instant) || self.pods.has_newborn()
    }

    /// Where a connection goes that an agent has intercepted: only a claim that is on its
    /// very pod counts, and only while an agent of ours is connected from there.
    pub(crate) fn route(&self, caller: &Caller, claim_id: &str) -> Option<ClaimRoute> {
        let pod = self.calling_pod(caller)?;
        let slot = self.slots.get(&pod.uid)?;
        slot.link()?;
        let claim = slot
            .claims()
            .claims
            .iter()
            .find(|claim| claim.id == claim_id)?;
        let (engagement_uid, _) = claim_id.split_once('/')?;
        let engagement = self.engagements.values().find(|engagement| {
            engagement.view.uid == engagement_uid
                && engagement.view.key.namespace == pod.key.namespace
        })?;
        let session = self.session(&engagement.view.spec.session)?;
        Some(ClaimRoute {
            session_uid: session.uid.clone(),
            engagement: engagement.view.key.clone(),
            container_port: claim.container_port,
            protocol: claim.protocol,
            pod: pod.key.clone(),
        })
    }

    /// Whether a pod that is about to be created gets an agent of this name.
    pub(crate) fn delivers(&mut self, newborn: &Newborn, agent: &str, now: &Now) -> bool {
        self.births.deliver(newborn, agent, now.instant)
    }

    /// Takes note of who asked the API server for a deletion.
    pub(crate) fn note_deletion(&mut self, deletion: Deletion, now: &Now) {
        self.deletions.note(deletion, now.instant);
    }

    /// The deletion of late of what is that user's.
    pub(crate) fn deletion(&self, uid: &str, owner: &str, now: &Now) -> Option<&Deletion> {
        self.deletions.of(uid, owner, now.instant)
    }

    /// The agent of a caller that is connected: its pod, and the pod's UID with the
    /// container.
    pub(crate) fn linked_agent(&self, caller: &Caller) -> Option<(Key, (String, String))> {
        let pod = self.calling_pod(caller)?;
        let container = self.slots.get(&pod.uid)?.container()?;
        Some((pod.key.clone(), (pod.uid.clone(), container.to_owned())))
    }

    /// The ports of a pod on which an engagement has claims.
    pub(crate) fn claimed_ports<'a>(
        &'a self,
        pod_uid: &str,
        engagement_uid: &'a str,
    ) -> impl Iterator<Item = u16> + 'a {
        let claims = self.slots.get(pod_uid).map(|slot| &slot.claims().claims);
        let its = claims.into_iter().flatten();
        let its = its.filter(move |claim| claim.is_of(engagement_uid));
        its.map(|claim| claim.container_port)
    }

    /// Whether a claim is on a pod.
    pub(crate) fn has_claim(&self, pod_uid: &str, claim_id: &str) -> bool {
        let slot = self.slots.get(pod_uid);
        slot.is_some_and(|slot| {
            slot.claims()
                .claims
                .iter()
                .any(|claim| claim.id == claim_id)
        })
    }

    pub(crate) fn engagement(&self, uid: &str) -> Option<&EngagementView> {
        let mut views = self.engagements.values().map(|record| &record.view);
        views.find(|view| view.uid == uid)
    }

    /// The engagements of a session.
    pub(crate) fn engagements_of<'a>(
        &'a self,
        session: &'a str,
    ) -> impl Iterator<Item = &'a EngagementView> + 'a {
        let views = self.engagements.values().map(|record| &record.view);
        views.filter(move |view| view.spec.session == session)
    }

    /// The pod that has an address for itself.
    pub(crate) fn pod_at(&self, ip: IpAddr) -> Option<&Key> {
        self.pods.by_ip(ip).map(|pod| &pod.key)
    }

    fn handle_sessions(
        &mut self,
        change: Change<SessionView>,
        now: &Now,
        effects: &mut Vec<Effect>,
    ) {
        let (gone, present) = change.resolve(&self.sessions);
        for key in gone {
            if let Some(session) = self.sessions.remove(&key) {
                let SessionView { uid, user, .. } = session.view;
                let deletion = self.deletion(&uid, &user, now).cloned();
                effects.push(Effect::RevokeSession { uid, deletion });
                self.touch_engagements_of(&key.name);
            }
        }
        for view in present {
            let name = view.key.name.clone();
            match self.sessions.get_mut(&view.key) {
                Some(session) => session.view = view,
                None => {
                    let key = view.key.clone();
                    self.sessions.insert(key, SessionRecord::new(view, now));
                    self.touch_engagements_of(&name);
                }
            }
        }
    }

    fn handle_engagements(&mut self, change: Change<EngagementView>, now: &Now) {
        let (gone, present) = change.resolve(&self.engagements);
        for key in gone {
            self.engagements.remove(&key);
            self.dirty.insert(key.namespace);
        }
        for view in present {
            self.dirty.insert(view.key.namespace.clone());
            if view.terminating {
                self.engagements.remove(&view.key);
                continue;
            }
            match self.engagements.get_mut(&view.key) {
                Some(record) => record.update(view, now),
                None => {
                    self.arrivals += 1;
                    let key = view.key.clone();
                    let record = EngagementRecord::new(view, self.arrivals, now);
                    self.engagements.insert(key, record);
                }
            }
        }
    }

    fn with_session(&mut self, uid: &str, change: impl FnOnce(&mut SessionRecord)) {
        let session = self
            .sessions
            .values_mut()
            .find(|session| session.view.uid == uid);
        if let Some(session) = session {
            change(session);
            let name = session.view.key.name.clone();
            self.touch_engagements_of(&name);
        }
    }

    fn with_slot(&mut self, pod_uid: &str, change: impl FnOnce(&mut AgentSlot)) {
        if let Some(slot) = self.slots.get_mut(pod_uid) {
            change(slot);
            self.touch_all();
        }
    }

    fn touch_engagements_of(&mut self, session: &str) {
        let touched = self
            .engagements
            .values()
            .filter(|engagement| engagement.view.spec.session == session)
            .map(|engagement| engagement.view.key.namespace.clone());
        self.dirty.extend(touched);
    }

    fn touch_all(&mut self) {
        let namespaces = self.engagements.keys().map(|key| key.namespace.clone());
        self.dirty.extend(namespaces);
        self.dirty.extend(self.read.iter().cloned());
    }

    /// Writes the status of sessions, has their engagements block nobody after a while of
    /// absence, and deletes those that were absent for too long, with their engagements.
    fn keep_sessions(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        let mut idle = Vec::new();
        for session in self.sessions.values_mut() {
            let (key, uid) = (session.view.key.clone(), session.view.uid.clone());
            if session.becomes_idle(self.settings.idle, now) {
                idle.push(key.name.clone());
            }
            if session.expires(self.settings.grace, now) {
                let engagements = self
                    .engagements
                    .values_mut()
                    .filter(|engagement| engagement.view.spec.session == key.name)
                    .filter(|engagement| engagement.view.spec.user == session.view.user);
                effects.extend(engagements.map(|engagement| Effect::DeleteEngagement {
                    engagement: engagement.view.key.clone(),
                    uid: engagement.view.uid.clone(),
                }));
                effects.push(Effect::DeleteSession { session: key, uid });
            } else if let Some(status) = session.status_due(now) {
                effects.push(Effect::WriteSession {
                    session: key,
                    uid,
                    status,
                });
            }
        }
        for name in idle {
            self.touch_engagements_of(&name);
        }
    }
}
