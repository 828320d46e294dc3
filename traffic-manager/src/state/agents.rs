//! The agent of one pod: how it comes, and which claims it has in force.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::companions::Companions;
use super::pods::AgentState;
use super::readers::Readers;
use super::{Claim, ClaimSet, LinkId, PodView};

/// How long an agent that was just added may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long an agent that was there before may take to come back, before
/// another is added.
const RETURN_LIMIT: Duration = Duration::from_secs(10);

/// How long after a failure the next try is.
const RETRY: Duration = Duration::from_secs(60);

/// How often agents are added to a pod for the same engagements. Containers
/// cannot be taken out of a pod again.
const MAX_TRIES: u32 = 5;

/// How long after an agent was added its successor counts as a first try.
const STEADY: Duration = Duration::from_secs(300);

/// The agent of one pod.
#[derive(Debug)]
pub(crate) struct AgentSlot {
    link: Option<Link>,
    launch: Launch,
    tries: u32,
    /// When a container was last asked for.
    tried_at: Option<Instant>,
    /// Containers that came up but did not call.
    given_up: BTreeSet<String>,
    /// A container that the kubelet cannot start, and its words, which the container's
    /// status may not have yet.
    complaint: Option<(String, String)>,
    /// UIDs of the engagements that need an agent.
    wanted_by: BTreeSet<String>,
    set: ClaimSet,
    /// Ids of the claims that the agent has put in force and that still hold.
    in_force: BTreeSet<String>,
    /// The containers that are to be stopped and are not, and why, as far as it is known.
    not_stopped: BTreeMap<String, String>,
    /// Ids of claims for which the agent has nothing to end TLS with.
    without_tls: BTreeSet<String>,
    /// Why the agent could not put the present claims in force.
    apply_failure: Option<String>,
    /// Those that stop its containers, and those that read them.
    pub(super) holders: Companions,
    pub(super) readers: Readers,
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    container: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Launch {
    Idle,
    /// The API server is asked to add a container.
    Adding,
    /// A container is there and has not called yet.
    Starting {
        container: String,
        since: Instant,
        /// It was not added just now.
        returning: bool,
    },
    Refused {
        message: String,
        at: Instant,
    },
    Failed {
        message: String,
        at: Instant,
    },
}

/// How far an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AgentStatus {
    Ready,
    Progressing(String),
    Refused(String),
    Failed(String),
}

enum Step {
    Wait,
    Again,
    Add,
}

impl Default for AgentSlot {
    fn default() -> Self {
        Self {
            link: None,
            launch: Launch::Idle,
            tries: 0,
            tried_at: None,
            given_up: BTreeSet::new(),
            complaint: None,
            wanted_by: BTreeSet::new(),
            set: ClaimSet {
                generation: 1,
                claims: Vec::new(),
            },
            in_force: BTreeSet::new(),
            not_stopped: BTreeMap::new(),
            without_tls: BTreeSet::new(),
            apply_failure: None,
            holders: Companions::default(),
            readers: Readers::default(),
        }
    }
}

impl AgentSlot {
    /// Puts other claims on the pod. Returns whether they differ.
    pub(crate) fn set_claims(&mut self, mut claims: Vec<Claim>) -> bool {
        claims.sort();
        claims.dedup();
        if claims == self.set.claims {
            return false;
        }
        self.set = ClaimSet {
            generation: self.set.generation + 1,
            claims,
        };
        let ids: BTreeSet<&str> = self.set.claims.iter().map(|claim| &*claim.id).collect();
        self.in_force.retain(|id| ids.contains(&**id));
        self.without_tls.retain(|id| ids.contains(&**id));
        self.apply_failure = None;
        true
    }

    /// The claims on the pod.
    pub(crate) fn claims(&self) -> &ClaimSet {
        &self.set
    }

    /// Whether new connections of that claim go to the laptop, also those of TLS if it ends
    /// that, and what it stops is stopped.
    pub(crate) fn is_in_force(&self, claim_id: &str) -> bool {
        let claim = self.set.claims.iter().find(|claim| claim.id == claim_id);
        let stops = claim.and_then(|claim| claim.stops.as_ref());
        let is_stopped = stops.is_none_or(|container| !self.not_stopped.contains_key(container));
        self.has_taken(claim_id) && !self.lacks_tls(claim_id) && is_stopped
    }

    /// Whether the agent knows that claim, whatever keeps it from traffic.
    pub(crate) fn has_taken(&self, claim_id: &str) -> bool {
        self.link.is_some() && self.in_force.contains(claim_id)
    }

    /// Whether the agent has nothing to end TLS with for that claim.
    pub(crate) fn lacks_tls(&self, claim_id: &str) -> bool {
        self.without_tls.contains(claim_id)
    }

    /// Why a container is not stopped that is to be; empty while it may soon be.
    pub(crate) fn not_stopped(&self, container: &str) -> Option<&str> {
        self.not_stopped.get(container).map(String::as_str)
    }

    pub(crate) fn apply_failure(&self) -> Option<&str> {
        self.apply_failure.as_deref()
    }

    pub(crate) fn link(&self) -> Option<LinkId> {
        self.link.as_ref().map(|link| link.id)
    }

    /// The container of the agent that is connected.
    pub(crate) fn container(&self) -> Option<&str> {
        self.link.as_ref().map(|link| &*link.container)
    }

    /// Whether the agent of another container is connected.
    pub(crate) fn is_linked_elsewhere(&self, container: &str) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.container != container)
    }

    /// Whether an agent is connected, or on its way.
    pub(crate) fn expects_agent(&self) -> bool {
        let on_its_way = matches!(self.launch, Launch::Adding | Launch::Starting { .. });
        self.link.is_some() || on_its_way
    }

    /// Whether that container was added here, though no watch may have shown
    /// it yet.
    pub(crate) fn has_added(&self, name: &str) -> bool {
        matches!(&self.launch, Launch::Starting { container, .. } if container == name)
    }

    /// The agent has called. Returns the link that it replaces.
    pub(crate) fn handle_linked(&mut self, id: LinkId, container: String) -> Option<LinkId> {
        self.given_up.remove(&container);
        self.complaint = None;
        self.launch = Launch::Idle;
        self.in_force.clear();
        self.not_stopped.clear();
        self.without_tls.clear();
        self.apply_failure = None;
        self.link
            .replace(Link { id, container })
            .map(|replaced| replaced.id)
    }

    /// The agent's call has ended. Returns whether it was the present one.
    pub(crate) fn handle_unlinked(&mut self, id: LinkId, now: Instant) -> bool {
        let Some(link) = self.link.take_if(|link| link.id == id) else {
            return false;
        };
        self.in_force.clear();
        self.not_stopped.clear();
        self.without_tls.clear();
        self.launch = Launch::Starting {
            container: link.container,
            since: now,
            returning: true,
        };
        true
    }

    /// The agent has put the claims of a generation in force, but for what they stop where
    /// these containers are not stopped, and for TLS where it has nothing to end that with.
    pub(crate) fn handle_applied(
        &mut self,
        link: LinkId,
        generation: u64,
        not_stopped: BTreeMap<String, String>,
        without_tls: BTreeSet<String>,
    ) {
        if self.link() == Some(link) && self.set.generation == generation {
            self.in_force = self
                .set
                .claims
                .iter()
                .map(|claim| claim.id.clone())
                .collect();
            self.not_stopped = not_stopped;
            self.without_tls = without_tls;
            self.apply_failure = None;
        }
    }

    pub(crate) fn handle_apply_failed(&mut self, link: LinkId, generation: u64, detail: String) {
        if self.link() == Some(link) && self.set.generation == generation {
            self.in_force.clear();
            self.apply_failure = Some(detail);
        }
    }

    pub(crate) fn handle_added(&mut self, container: String, now: Instant) {
        if self.launch == Launch::Adding {
            self.launch = Launch::Starting {
                container,
                since: now,
                returning: false,
            };
        }
    }

    pub(crate) fn handle_refused(&mut self, message: String, now: Instant) {
        if self.launch == Launch::Adding {
            self.launch = Launch::Refused { message, at: now };
        }
    }

    pub(crate) fn handle_add_failed(&mut self, message: String, now: Instant) {
        if self.launch == Launch::Adding {
            self.launch = Launch::Failed { message, at: now };
        }
    }

    /// The kubelet says that it cannot start a container, for now.
    pub(crate) fn handle_stuck(&mut self, container: String, message: String) {
        if self.has_added(&container) {
            self.complaint = Some((container, message));
        }
    }

    /// Says which engagements need an agent. A new one is worth a new try.
    pub(crate) fn want(&mut self, engagements: BTreeSet<String>) {
        let is_new = !engagements.is_subset(&self.wanted_by);
        self.wanted_by = engagements;
        if is_new {
            self.tries = 0;
            if matches!(self.launch, Launch::Refused { .. } | Launch::Failed { .. }) {
                self.launch = Launch::Idle;
            }
        }
    }

    /// Brings an agent nearer, while one is needed. Returns whether a
    /// container must be added now; there is at most one try at a time.
    pub(crate) fn advance(&mut self, pod: &PodView, image: &str, now: Instant) -> bool {
        if self.link.is_some() || self.wanted_by.is_empty() {
            return false;
        }
        loop {
            match self.step(pod, image, now) {
                Step::Wait => return false,
                Step::Again => {}
                // The kubelet starts nothing in it.
                Step::Add if !pod.is_running() => {
                    self.launch = Launch::Idle;
                    return false;
                }
                Step::Add => {
                    self.launch = Launch::Adding;
                    self.tries += 1;
                    self.tried_at = Some(now);
                    return true;
                }
            }
        }
    }

    fn step(&mut self, pod: &PodView, image: &str, now: Instant) -> Step {
        match &mut self.launch {
            Launch::Adding => Step::Wait,
            Launch::Idle => self.begin(pod, image, now),
            Launch::Refused { at, .. } | Launch::Failed { at, .. } => {
                if now < *at + RETRY || self.tries >= MAX_TRIES {
                    return Step::Wait;
                }
                self.begin(pod, image, now)
            }
            Launch::Starting {
                container,
                since,
                returning,
            } => {
                let limit = if *returning {
                    RETURN_LIMIT
                } else {
                    START_LIMIT
                };
                let agent = pod.agent(container);
                if agent.is_some_and(|agent| agent.is_sidecar) && !pod.is_running() {
                    // Its image may still be on the way.
                    *since = now;
                    return Step::Wait;
                }
                // The kubelet starts a sidecar again, whatever became of it.
                let agent = agent.filter(|agent| !agent.is_sidecar);
                let complaint = self.complaint.as_ref();
                let complaint = complaint.filter(|(about, _)| *about == *container);
                let failure = match (agent.map(|agent| &agent.state), complaint) {
                    (Some(AgentState::Terminated(_)), _) if *returning => {
                        self.launch = Launch::Idle;
                        return Step::Again;
                    }
                    (Some(AgentState::Terminated(words)), _) => {
                        format!("the agent ended: {words}")
                    }
                    (Some(AgentState::Stuck(words)), _)
                    | (Some(AgentState::Pending) | None, Some((_, words))) => words.clone(),
                    _ if now < *since + limit => return Step::Wait,
                    (Some(AgentState::Running | AgentState::Pending) | None, _) => {
                        self.given_up.insert(container.clone());
                        if *returning {
                            self.launch = Launch::Idle;
                            return Step::Again;
                        }
                        let seconds = limit.as_secs();
                        format!("the agent did not call the traffic manager within {seconds} s")
                    }
                };
                self.launch = Launch::Failed {
                    message: failure,
                    at: now,
                };
                Step::Wait
            }
        }
    }

    /// Waits for a container that is already there, else asks for one, unless
    /// those before did not last.
    fn begin(&mut self, pod: &PodView, image: &str, now: Instant) -> Step {
        let there = pod.agents.iter().find(|agent| {
            let alive = agent.is_sidecar || !matches!(agent.state, AgentState::Terminated(_));
            alive && agent.image == image && !self.given_up.contains(&agent.name)
        });
        match there {
            Some(agent) => {
                self.launch = Launch::Starting {
                    container: agent.name.clone(),
                    since: now,
                    returning: true,
                };
                Step::Again
            }
            None => {
                if self.tried_at.is_some_and(|at| now >= at + STEADY) {
                    self.tries = 0;
                }
                if self.tries < MAX_TRIES {
                    return Step::Add;
                }
                self.launch = Launch::Failed {
                    message: format!("{MAX_TRIES} agents have ended one soon after the other"),
                    at: now,
                };
                Step::Wait
            }
        }
    }

    pub(crate) fn status(&self, pod: &str) -> AgentStatus {
        if self.link.is_some() {
            return AgentStatus::Ready;
        }
        match &self.launch {
            Launch::Idle | Launch::Adding => {
                AgentStatus::Progressing(format!("adding the agent to pod {pod}"))
            }
            Launch::Starting { .. } => {
                AgentStatus::Progressing(format!("waiting for the agent in pod {pod}"))
            }
            Launch::Refused { message, .. } => {
                AgentStatus::Refused(format!("pod {pod}: {message}"))
            }
            Launch::Failed { message, .. } => AgentStatus::Failed(format!("pod {pod}: {message}")),
        }
    }

    /// When time alone changes something.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let agents = self.agents_deadline().into_iter();
        agents.chain(self.readers.deadline()).min()
    }

    fn agents_deadline(&self) -> Option<Instant> {
        if self.wanted_by.is_empty() {
            return None;
        }
        if self.link.is_some() {
            return self.holders.deadline();
        }
        match &self.launch {
            Launch::Idle | Launch::Adding => None,
            Launch::Starting {
                since, returning, ..
            } => Some(
                *since
                    + if *returning {
                        RETURN_LIMIT
                    } else {
                        START_LIMIT
                    },
            ),
            Launch::Refused { at, .. } | Launch::Failed { at, .. } => {
                (self.tries < MAX_TRIES).then(|| *at + RETRY)
            }
        }
    }
}

#[cfg(test)]
mod tests;
