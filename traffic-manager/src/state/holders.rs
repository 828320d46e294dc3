//! The containers that stop the processes of others, for replaces: how they come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::PodView;
use super::agents::AgentStatus;
use super::pods::AgentState;

/// How long one may take to be seen, and to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long after a failure the next try is at first; each time twice as long.
const RETRY: Duration = Duration::from_secs(2);

/// How often in turn one is added in vain. Containers cannot be taken out of a pod again.
const MAX_TRIES: u32 = 5;

/// How long one has to have run to be followed by another at once.
const STEADY: Duration = Duration::from_secs(10);

/// The holders of one pod, by the container that each stops.
#[derive(Debug, Default)]
pub(crate) struct Holders(BTreeMap<String, Holder>);

#[derive(Debug, Default)]
struct Holder {
    launch: Launch,
    /// How often one was added since one has lasted.
    tries: u32,
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
    Running {
        container: String,
        since: Instant,
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

impl Holders {
    pub(super) fn handle_added(&mut self, target: &str, container: String, now: Instant) {
        if let Some(holder) = self.0.get_mut(target) {
            let since = now;
            holder.launch = Launch::Starting { container, since };
        }
    }

    pub(super) fn handle_not_added(
        &mut self,
        target: &str,
        message: String,
        is_refused: bool,
        at: Instant,
    ) {
        if let Some(holder) = self.0.get_mut(target) {
            holder.launch = match is_refused {
                true => Launch::Refused { message, at },
                false => Launch::Failed { message, at },
            };
        }
    }

    /// Brings those that are needed nearer. Returns the containers for which one must be
    /// added now.
    pub(super) fn advance(
        &mut self,
        targets: &BTreeSet<String>,
        pod: &PodView,
        image: &str,
        now: Instant,
    ) -> Vec<String> {
        if !pod.is_running() {
            self.0.clear();
            return Vec::new();
        }
        self.0.retain(|target, holder| {
            holder.follow(pod, now);
            let is_coming = matches!(holder.launch, Launch::Adding | Launch::Starting { .. });
            // One that comes for nobody may soon be wanted again, and is not to be two.
            is_coming || targets.contains(target)
        });
        let is_due = |target: &&String| {
            let holder = self.0.entry((*target).clone()).or_default();
            holder.advance(target, pod, image, now)
        };
        targets.iter().filter(is_due).cloned().collect()
    }

    /// Why one is not there, if it will not come soon; for people.
    pub(super) fn trouble(&self, pod: &str, target: &str) -> Option<AgentStatus> {
        let words = |message| format!("pod {pod}: container {target} cannot be stopped: {message}");
        match &self.0.get(target)?.launch {
            Launch::Idle | Launch::Adding | Launch::Starting { .. } | Launch::Running { .. } => {
                None
            }
            Launch::Refused { message, .. } => Some(AgentStatus::Refused(words(message))),
            Launch::Failed { message, .. } => Some(AgentStatus::Failed(words(message))),
        }
    }

    /// When time alone changes something.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = self.0.values().filter_map(|holder| match &holder.launch {
            Launch::Idle | Launch::Adding | Launch::Running { .. } => None,
            Launch::Starting { since, .. } => Some(*since + START_LIMIT),
            Launch::Refused { at, .. } | Launch::Failed { at, .. } => holder.again(*at),
        });
        deadlines.min()
    }
}

impl Holder {
    /// When the next one is added after a failure, if ever.
    fn again(&self, failed: Instant) -> Option<Instant> {
        let pause = RETRY * 2u32.pow(self.tries.min(MAX_TRIES));
        (self.tries < MAX_TRIES).then(|| failed + pause)
    }

    /// Returns whether a container must be added now.
    fn advance(&mut self, target: &str, pod: &PodView, image: &str, now: Instant) -> bool {
        self.follow(pod, now);
        if self.launch != Launch::Idle {
            return false;
        }
        let mut there = pod.holders.iter().filter(|holder| {
            let is_there = !matches!(holder.state, AgentState::Terminated(_));
            is_there && holder.target == target && holder.image == image
        });
        if let Some(holder) = there.next() {
            self.launch = Launch::Starting {
                container: holder.name.clone(),
                since: now,
            };
            self.follow(pod, now);
            return false;
        }
        self.launch = Launch::Adding;
        self.tries += 1;
        true
    }

    /// Takes in what has become of it.
    fn follow(&mut self, pod: &PodView, now: Instant) {
        let state = |container: &str| {
            let mut holders = pod.holders.iter();
            let holder = holders.find(|holder| holder.name == container);
            holder.map(|holder| &holder.state)
        };
        let failed = |message: &str| Launch::Failed {
            message: message.to_owned(),
            at: now,
        };
        let next = match &self.launch {
            Launch::Idle | Launch::Adding => return,
            Launch::Refused { at, .. } | Launch::Failed { at, .. } => {
                match self.again(*at).is_some_and(|again| now >= again) {
                    true => Launch::Idle,
                    false => return,
                }
            }
            Launch::Starting { container, since } => match state(container) {
                Some(AgentState::Stuck(words) | AgentState::Terminated(words)) => failed(words),
                Some(AgentState::Running) => Launch::Running {
                    container: container.clone(),
                    since: now,
                },
                Some(AgentState::Pending) | None if now >= *since + START_LIMIT => {
                    failed("it did not start in time")
                }
                Some(AgentState::Pending) | None => return,
            },
            Launch::Running { container, since } => {
                let is_steady = now >= *since + STEADY;
                let next = match state(container) {
                    Some(AgentState::Terminated(words)) if !is_steady => failed(words),
                    Some(AgentState::Terminated(_)) | None => Launch::Idle,
                    Some(AgentState::Running | AgentState::Pending | AgentState::Stuck(_)) => {
                        return;
                    }
                };
                if is_steady {
                    self.tries = 0;
                }
                next
            }
        };
        self.launch = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::pods::HolderContainer;
    use crate::state::testing::pod;

    const IMAGE: &str = "agent:1";

    fn with_holder(state: Option<AgentState>) -> PodView {
        let mut pod = pod("shop", "web-1", "10.1.0.7");
        pod.holders.extend(state.map(|state| HolderContainer {
            name: "kvpn-holder-a".into(),
            target: "web".into(),
            image: IMAGE.into(),
            state,
        }));
        pod
    }

    struct Case {
        holders: Holders,
        start: Instant,
    }

    impl Case {
        fn new() -> Self {
            Self {
                holders: Holders::default(),
                start: Instant::now(),
            }
        }

        /// Whether one is added at that second.
        fn adds(&mut self, state: Option<AgentState>, second: u64) -> bool {
            let targets = BTreeSet::from(["web".to_owned()]);
            let now = self.start + Duration::from_secs(second);
            let pod = with_holder(state);
            !self.holders.advance(&targets, &pod, IMAGE, now).is_empty()
        }

        fn added(&mut self, container: &str, second: u64) {
            let now = self.start + Duration::from_secs(second);
            self.holders.handle_added("web", container.to_owned(), now);
        }

        fn deadline(&self) -> Option<Instant> {
            self.holders.deadline()
        }

        fn trouble(&self) -> Option<AgentStatus> {
            self.holders.trouble("web-1", "web")
        }
    }

    #[test]
    fn one_is_added_and_followed_by_another_when_it_ends() {
        let mut case = Case::new();
        assert!(case.adds(None, 0));
        assert!(!case.adds(None, 0), "it is on its way");
        case.added("kvpn-holder-a", 1);
        assert!(!case.adds(None, 1));
        assert!(case.deadline().is_some(), "it may not come up");
        assert!(!case.adds(Some(AgentState::Running), 2));
        assert_eq!(case.deadline(), None, "it would tick for ever");
        let ended = AgentState::Terminated("Error, exit code 137".into());
        assert!(case.adds(Some(ended.clone()), 30));
        case.added("kvpn-holder-b", 31);
        assert!(!case.adds(Some(ended.clone()), 31), "it is not seen yet");
        assert_eq!(case.trouble(), None);
        assert!(!case.adds(Some(ended), 52));
        assert!(matches!(case.trouble(), Some(AgentStatus::Failed(_))));
    }

    #[test]
    fn one_that_ends_soon_is_tried_again_after_longer_and_longer_pauses_and_not_for_ever() {
        let mut case = Case::new();
        let ended = AgentState::Terminated("Error, exit code 1: it may not".into());
        let mut tries = Vec::new();
        for second in 0..1_000 {
            if case.adds(Some(ended.clone()), second) {
                tries.push(second);
                case.added("kvpn-holder-a", second);
            }
        }
        // Each has failed a second after it was added.
        assert_eq!(tries, [0, 5, 14, 31, 64]);
        assert!(matches!(case.trouble(), Some(AgentStatus::Failed(_))));
        assert_eq!(case.deadline(), None);
    }

    #[test]
    fn one_that_comes_is_not_added_twice_though_nobody_wanted_it_meanwhile() {
        let mut case = Case::new();
        assert!(case.adds(None, 0));
        let pod = with_holder(None);
        case.holders
            .advance(&BTreeSet::new(), &pod, IMAGE, case.start);
        assert!(!case.adds(None, 0));
        case.added("kvpn-holder-a", 1);
        let mut ends = with_holder(None);
        ends.terminating = true;
        case.holders
            .advance(&BTreeSet::new(), &ends, IMAGE, case.start);
        assert_eq!(case.deadline(), None, "it would tick until the pod is gone");
    }

    #[test]
    fn one_that_is_there_is_used_again() {
        let mut case = Case::new();
        assert!(!case.adds(Some(AgentState::Running), 0));
        assert_eq!(case.trouble(), None);
    }

    #[test]
    fn refusal_is_told_and_tried_again_later() {
        let mut case = Case::new();
        assert!(case.adds(None, 0));
        let words = "forbidden".to_owned();
        case.holders
            .handle_not_added("web", words, true, case.start);
        assert!(!case.adds(None, 3));
        let why = "pod web-1: container web cannot be stopped: forbidden".to_owned();
        assert_eq!(case.trouble(), Some(AgentStatus::Refused(why)));
        assert!(case.adds(None, 4));
    }

    #[test]
    fn one_whose_image_cannot_be_had_has_failed() {
        let mut case = Case::new();
        assert!(case.adds(None, 0));
        case.added("kvpn-holder-a", 0);
        assert!(!case.adds(Some(AgentState::Stuck("ErrImagePull".into())), 1));
        assert!(matches!(case.trouble(), Some(AgentStatus::Failed(_))));
    }
}
