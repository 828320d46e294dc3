//! The containers that are put beside others, to stop or to read these: how they come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::agents::AgentStatus;
use super::pods::{AgentState, CompanionContainer};

/// How long one may take to be seen, and to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long after a failure the next try is at first; each time twice as long.
const RETRY: Duration = Duration::from_secs(2);

/// How often in turn one is added in vain. Containers cannot be taken out of a pod again.
const MAX_TRIES: u32 = 5;

/// How long one has to have run to be followed by another at once.
const STEADY: Duration = Duration::from_secs(10);

/// How long one has to have run for those before it to be forgotten.
const LASTING: Duration = Duration::from_secs(300);

/// Those of one kind in one pod, by the container that each is for.
#[derive(Debug, Default)]
pub(crate) struct Companions(BTreeMap<String, Companion>);

#[derive(Debug, Default)]
struct Companion {
    launch: Launch,
    /// How often one was added since one has lasted, and when last.
    tries: u32,
    tried_at: Option<Instant>,
    /// Whether somebody needs it.
    is_wanted: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Launch {
    #[default]
    Idle,
    /// The API server is asked to add it.
    Adding,
    Starting {
        container: String,
        since: Instant,
    },
    /// It does not start, and the kubelet goes on trying.
    Stuck {
        container: String,
        message: String,
    },
    Running {
        container: String,
        since: Instant,
        /// It was there before it was needed, and may be about to leave.
        is_found: bool,
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

impl Companions {
    pub(super) fn handle_added(&mut self, target: &str, container: String, now: Instant) {
        if let Some(companion) = self.0.get_mut(target) {
            let since = now;
            companion.launch = Launch::Starting { container, since };
        }
    }

    pub(super) fn handle_not_added(
        &mut self,
        target: &str,
        message: String,
        is_refused: bool,
        at: Instant,
    ) {
        if let Some(companion) = self.0.get_mut(target) {
            companion.launch = match is_refused {
                true => Launch::Refused { message, at },
                false => Launch::Failed { message, at },
            };
        }
    }

    /// Brings those that are needed nearer, in a running pod that has these. Returns the
    /// containers for which one must be added now.
    pub(super) fn advance(
        &mut self,
        targets: &BTreeSet<String>,
        there: &[CompanionContainer],
        image: &str,
        now: Instant,
    ) -> Vec<String> {
        self.0.retain(|target, companion| {
            companion.follow(target, there, image, now);
            let is_wanted = targets.contains(target);
            let was_wanted = std::mem::replace(&mut companion.is_wanted, is_wanted);
            let is_coming = matches!(companion.launch, Launch::Adding | Launch::Starting { .. });
            // One that comes for nobody may soon be wanted again, and is not to be two. Nor is
            // what has failed to be tried anew each time that a laptop comes back.
            (was_wanted && is_wanted) || is_coming || companion.has_tried(now)
        });
        let is_due = |target: &&String| {
            let companion = self.0.entry((*target).clone()).or_default();
            companion.is_wanted = true;
            companion.advance(target, there, image, now)
        };
        targets.iter().filter(is_due).cloned().collect()
    }

    /// Forgets all: the pod does not run.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The one that is there, or comes, is not the right one.
    pub(super) fn discard(&mut self, target: &str) {
        if let Some(companion) = self.0.get_mut(target) {
            companion.launch = Launch::Idle;
        }
    }

    /// Whether that container was added here, though no watch may have shown it yet; gives
    /// the one that it is for.
    pub(super) fn target_of_added(&self, name: &str) -> Option<&str> {
        let mut all = self.0.iter();
        let is_it = |launch: &Launch| matches!(launch, Launch::Starting { container, .. } if container == name);
        let found = all.find(|(_, companion)| is_it(&companion.launch))?;
        Some(found.0)
    }

    /// Whether one is on its way.
    pub(super) fn expects_any(&self) -> bool {
        let mut launches = self.0.values().map(|companion| &companion.launch);
        launches.any(|launch| matches!(launch, Launch::Adding | Launch::Starting { .. }))
    }

    /// Since when the one for a container runs, if it does.
    pub(super) fn running_since(&self, target: &str) -> Option<Instant> {
        match self.0.get(target)?.launch {
            Launch::Running { since, .. } => Some(since),
            Launch::Idle
            | Launch::Adding
            | Launch::Starting { .. }
            | Launch::Stuck { .. }
            | Launch::Refused { .. }
            | Launch::Failed { .. } => None,
        }
    }

    /// Why one is not there, if it will not come soon; for people, to whom `what` says what
    /// cannot be done.
    pub(super) fn trouble(&self, pod: &str, target: &str, what: &str) -> Option<AgentStatus> {
        let words = |message| format!("pod {pod}: container {target} cannot be {what}: {message}");
        match &self.0.get(target)?.launch {
            Launch::Idle | Launch::Adding | Launch::Starting { .. } | Launch::Running { .. } => {
                None
            }
            Launch::Refused { message, .. } => Some(AgentStatus::Refused(words(message))),
            Launch::Stuck { message, .. } | Launch::Failed { message, .. } => {
                Some(AgentStatus::Failed(words(message)))
            }
        }
    }

    /// When time alone changes something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = self
            .0
            .values()
            .filter_map(|companion| match &companion.launch {
                Launch::Idle | Launch::Adding | Launch::Stuck { .. } | Launch::Running { .. } => {
                    None
                }
                Launch::Starting { since, .. } => Some(*since + START_LIMIT),
                Launch::Refused { .. } | Launch::Failed { .. } if !companion.is_wanted => None,
                Launch::Refused { at, .. } | Launch::Failed { at, .. } => companion.again(*at),
            });
        deadlines.min()
    }
}

impl Companion {
    /// When the next one is added after a failure, if ever.
    fn again(&self, failed: Instant) -> Option<Instant> {
        let pause = RETRY * 2u32.pow(self.tries.min(MAX_TRIES));
        (self.tries < MAX_TRIES).then(|| failed + pause)
    }

    /// Whether some were added in vain lately.
    fn has_tried(&self, now: Instant) -> bool {
        let is_running = matches!(self.launch, Launch::Running { .. });
        !is_running && self.tried_at.is_some_and(|at| now < at + LASTING)
    }

    /// Returns whether a container must be added now.
    fn advance(
        &mut self,
        target: &str,
        there: &[CompanionContainer],
        image: &str,
        now: Instant,
    ) -> bool {
        self.follow(target, there, image, now);
        if self.launch != Launch::Idle {
            return false;
        }
        if let Some(companion) = present(target, there, image).next() {
            self.launch = Launch::Starting {
                container: companion.name.clone(),
                since: now,
            };
            self.follow(target, there, image, now);
            return false;
        }
        if self.tries >= MAX_TRIES {
            self.launch = Launch::Failed {
                message: format!("{MAX_TRIES} containers for that have ended soon"),
                at: now,
            };
            return false;
        }
        self.launch = Launch::Adding;
        self.tries += 1;
        self.tried_at = Some(now);
        true
    }

    /// Takes in what has become of it.
    fn follow(&mut self, target: &str, there: &[CompanionContainer], image: &str, now: Instant) {
        let state = |container: &str| {
            let mut companions = there.iter();
            let companion = companions.find(|companion| companion.name == container);
            companion.map(|companion| &companion.state)
        };
        let failed = |message: &str| Launch::Failed {
            message: message.to_owned(),
            at: now,
        };
        let stuck = |container: &str, message: &str| Launch::Stuck {
            container: container.to_owned(),
            message: message.to_owned(),
        };
        let running = |container: &str, is_found| Launch::Running {
            container: container.to_owned(),
            since: now,
            is_found,
        };
        let next = match &self.launch {
            Launch::Adding => return,
            Launch::Idle | Launch::Refused { .. } | Launch::Failed { .. } => {
                let mut present = present(target, there, image);
                // It may be one that was given up.
                match present.find(|companion| companion.state == AgentState::Running) {
                    Some(companion) => running(&companion.name, true),
                    None if self.is_due(now) => Launch::Idle,
                    None => return,
                }
            }
            Launch::Starting { container, since } => match state(container) {
                Some(AgentState::Stuck(words)) => stuck(container, words),
                Some(AgentState::Terminated(words)) => failed(words),
                Some(AgentState::Running) => running(container, false),
                Some(AgentState::Pending) if now >= *since + START_LIMIT => {
                    stuck(container, "it did not start in time")
                }
                None if now >= *since + START_LIMIT => failed("it did not start in time"),
                Some(AgentState::Pending) | None => return,
            },
            Launch::Stuck { container, .. } => match state(container) {
                Some(AgentState::Stuck(words)) => stuck(container, words),
                Some(AgentState::Terminated(words)) => failed(words),
                Some(AgentState::Running) => running(container, false),
                Some(AgentState::Pending) => return,
                None => Launch::Idle,
            },
            Launch::Running {
                container,
                since,
                is_found,
            } => {
                let ran = now.saturating_duration_since(*since);
                let next = match state(container) {
                    Some(AgentState::Terminated(words)) if ran < STEADY && !is_found => {
                        failed(words)
                    }
                    Some(AgentState::Terminated(_)) | None => Launch::Idle,
                    Some(AgentState::Running | AgentState::Pending | AgentState::Stuck(_)) => {
                        return;
                    }
                };
                if ran >= LASTING {
                    self.tries = 0;
                }
                next
            }
        };
        self.launch = next;
    }

    /// Whether a failure is long enough ago.
    fn is_due(&self, now: Instant) -> bool {
        match &self.launch {
            Launch::Refused { at, .. } | Launch::Failed { at, .. } => {
                self.again(*at).is_some_and(|again| now >= again)
            }
            Launch::Idle
            | Launch::Adding
            | Launch::Starting { .. }
            | Launch::Stuck { .. }
            | Launch::Running { .. } => false,
        }
    }
}

/// Those that are for a container, and run or are about to.
fn present<'a>(
    target: &'a str,
    there: &'a [CompanionContainer],
    image: &'a str,
) -> impl Iterator<Item = &'a CompanionContainer> {
    there.iter().filter(move |companion| {
        !companion.has_ended() && companion.target == target && companion.image == image
    })
}

#[cfg(test)]
mod tests;
