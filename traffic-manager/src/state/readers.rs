//! The containers that read what others have: how they come, call, and go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::agents::AgentStatus;
use super::companions::Companions;
use super::pods::CompanionContainer;
use super::{LinkId, PodView};

/// How long one that runs may take to call, at first and after its call has ended.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How many a pod may have had. Containers cannot be taken out of a pod again.
const MAX_READERS: usize = 100;

/// User and group of a process, in the pod's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What a reader says as it calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Calling {
    /// Its own container, and the one that it reads.
    pub(crate) container: String,
    pub(crate) target: String,
    /// Why it cannot read, for people.
    pub(crate) unreadable: Option<String>,
    /// Whose the processes are, where that is why.
    pub(crate) owner: Option<Owner>,
}

/// The readers of one pod.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    /// Their containers.
    companions: Companions,
    /// By the container that each reads.
    readers: BTreeMap<String, Reader>,
    /// As whom each must run, as far as one has found out; for as long as the pod is there.
    owners: BTreeMap<String, Owner>,
    /// The containers that were told to end.
    dismissed: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Reader {
    link: Option<Link>,
    /// Somebody waits for it.
    is_needed: bool,
    /// It runs and has not called in time.
    is_silent: bool,
    /// When its last call ended.
    unlinked_at: Option<Instant>,
    /// Until when it stays that nobody wants, so that the next who does finds it.
    idle_until: Option<Instant>,
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    container: String,
    unreadable: Option<String>,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The containers for which a reader must be added, and as whom.
    pub(super) add: Vec<(String, Option<Owner>)>,
    pub(super) dismiss: Vec<LinkId>,
}

impl Readers {
    pub(super) fn handle_added(&mut self, target: &str, container: String, now: Instant) {
        self.companions.handle_added(target, container, now);
    }

    pub(super) fn handle_not_added(
        &mut self,
        target: &str,
        message: String,
        is_refused: bool,
        at: Instant,
    ) {
        self.companions
            .handle_not_added(target, message, is_refused, at);
    }

    /// One has called. Returns the links of those that are to end.
    pub(super) fn handle_linked(&mut self, id: LinkId, calling: Calling) -> Vec<LinkId> {
        let Calling {
            container,
            target,
            unreadable,
            owner,
        } = calling;
        if self.dismissed.contains(&container) {
            return vec![id];
        }
        let reader = self.readers.entry(target.clone()).or_default();
        reader.is_silent = false;
        let before = reader.link.take();
        let mut to_end: Vec<LinkId> = before.iter().map(|link| link.id).collect();
        // Whose call was another container's ends with it.
        let other = before.filter(|link| link.container != container);
        self.dismissed.extend(other.map(|link| link.container));
        let other_owner = owner.filter(|owner| self.owners.get(&target) != Some(owner));
        if let Some(owner) = other_owner {
            // Another one, who runs as that, can read.
            self.owners.insert(target.clone(), owner);
            self.companions.discard(&target);
            self.dismissed.insert(container);
            to_end.push(id);
        } else {
            reader.link = Some(Link {
                id,
                container,
                unreadable,
            });
        }
        to_end
    }

    pub(super) fn handle_unlinked(&mut self, id: LinkId, now: Instant) {
        for reader in self.readers.values_mut() {
            if reader.link.take_if(|link| link.id == id).is_some() {
                reader.unlinked_at = Some(now);
            }
        }
    }

    /// Brings those nearer that are wanted: `true` where somebody waits for one, `false`
    /// where it is just to stay. Who is not wanted any more stays for `linger`.
    pub(super) fn advance(
        &mut self,
        wanted: &BTreeMap<String, bool>,
        pod: &PodView,
        image: &str,
        linger: Duration,
        now: Instant,
    ) -> Due {
        let mut due = Due::default();
        if !pod.is_running() {
            self.companions.clear();
        }
        for (target, is_needed) in wanted {
            if *is_needed {
                self.readers.entry(target.clone()).or_default();
            }
        }
        self.readers.retain(|target, reader| {
            let is_wanted = wanted.contains_key(target);
            reader.is_needed = pod.is_running() && wanted.get(target) == Some(&true);
            let idle_until = *reader.idle_until.get_or_insert(now + linger);
            if is_wanted {
                reader.idle_until = None;
            }
            if is_wanted || now < idle_until {
                return true;
            }
            if let Some(link) = &reader.link {
                due.dismiss.push(link.id);
                self.dismissed.insert(link.container.clone());
            }
            false
        });
        let there = pod.readers.iter();
        let there = there.filter(|it| !self.dismissed.contains(&it.name));
        let there: Vec<CompanionContainer> = there.cloned().collect();
        let needed = self.readers.iter().filter(|(_, reader)| reader.is_needed);
        let needed: BTreeSet<String> = needed.map(|(target, _)| target.clone()).collect();
        for target in self.companions.advance(&needed, &there, image, now) {
            if pod.readers.len() + due.add.len() >= MAX_READERS {
                let message = format!(
                    "the pod has had {MAX_READERS} readers, which stay in it as ended containers; \
                     delete the pod, so that another one takes its place"
                );
                (self.companions).handle_not_added(&target, message, false, now);
                continue;
            }
            let owner = self.owners.get(&target).copied();
            due.add.push((target, owner));
        }
        for (target, reader) in &mut self.readers {
            let call_by = reader.call_by(self.companions.running_since(target));
            let is_late = call_by.is_some_and(|call_by| now >= call_by);
            reader.is_silent = reader.link.is_none() && is_late;
        }
        due
    }

    /// How far the one is that reads a container; for people where it is not there.
    pub(super) fn status(&self, pod: &str, target: &str) -> AgentStatus {
        let reader = self.readers.get(target);
        let failed = |why: &str| {
            AgentStatus::Failed(format!(
                "pod {pod}: container {target} cannot be read: {why}"
            ))
        };
        match reader.and_then(|reader| reader.link.as_ref()) {
            Some(link) => match &link.unreadable {
                Some(why) => failed(why),
                None => AgentStatus::Ready,
            },
            None if reader.is_some_and(|reader| reader.is_silent) => {
                failed("its reader does not call the traffic manager")
            }
            None => self
                .companions
                .trouble(pod, target, "read")
                .unwrap_or_else(|| {
                    AgentStatus::Progressing(format!("waiting for the reader in pod {pod}"))
                }),
        }
    }

    /// The call of the one that reads a container.
    pub(super) fn link(&self, target: &str) -> Option<LinkId> {
        Some(self.readers.get(target)?.link.as_ref()?.id)
    }

    /// Whether another container reads that one, and has not ended. Who was told to end is
    /// not kept from hearing it again.
    pub(super) fn is_linked_elsewhere(&self, target: &str, container: &str, pod: &PodView) -> bool {
        let reader = self.readers.get(target);
        let Some(link) = reader.and_then(|reader| reader.link.as_ref()) else {
            return false;
        };
        let mut there = pod.readers.iter();
        let has_ended = there.any(|it| it.name == link.container && it.has_ended());
        link.container != container && !has_ended && !self.dismissed.contains(container)
    }

    /// The calls of all.
    pub(super) fn links(&self) -> impl Iterator<Item = LinkId> {
        let links = self.readers.values().filter_map(|it| it.link.as_ref());
        links.map(|link| link.id)
    }

    /// Whether there is nothing to see to.
    pub(super) fn is_empty(&self) -> bool {
        self.readers.is_empty()
    }

    /// Whether one is there, or on its way.
    pub(super) fn expects_any(&self) -> bool {
        self.links().next().is_some() || self.companions.expects_any()
    }

    /// The container that one reads which was added here, though no watch may have shown it
    /// yet.
    pub(super) fn target_of_added(&self, container: &str) -> Option<&str> {
        self.companions.target_of_added(container)
    }

    /// When time alone changes something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let own = self.readers.iter().filter_map(|(target, reader)| {
            let is_awaited = reader.is_needed && reader.link.is_none() && !reader.is_silent;
            let call_by = reader.call_by(self.companions.running_since(target));
            let late = call_by.filter(|_| is_awaited);
            reader.idle_until.into_iter().chain(late).min()
        });
        own.chain(self.companions.deadline()).min()
    }
}

impl Reader {
    /// Until when it may take to call, if its container runs since then.
    fn call_by(&self, running_since: Option<Instant>) -> Option<Instant> {
        let since = running_since?;
        let since = self.unlinked_at.map_or(since, |at| since.max(at));
        Some(since + CALL_LIMIT)
    }
}

#[cfg(test)]
mod tests;
