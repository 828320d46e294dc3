//! A holder comes, fails and is followed by others.

use super::*;

const IMAGE: &str = "agent:1";

fn there(state: Option<AgentState>) -> Vec<CompanionContainer> {
    let companion = state.map(|state| CompanionContainer {
        name: "kvpn-holder-a".into(),
        target: "web".into(),
        image: IMAGE.into(),
        state,
    });
    companion.into_iter().collect()
}

struct Case {
    companions: Companions,
    start: Instant,
}

impl Case {
    fn new() -> Self {
        Self {
            companions: Companions::default(),
            start: Instant::now(),
        }
    }

    /// Whether one is added at that second.
    fn adds(&mut self, state: Option<AgentState>, second: u64) -> bool {
        let targets = BTreeSet::from(["web".to_owned()]);
        let now = self.start + Duration::from_secs(second);
        let due = (self.companions).advance(&targets, &there(state), IMAGE, now);
        !due.is_empty()
    }

    /// Nobody wants the container stopped at that second.
    fn is_unwanted(&mut self, state: Option<AgentState>, second: u64) {
        let now = self.start + Duration::from_secs(second);
        let due = (self.companions).advance(&BTreeSet::new(), &there(state), IMAGE, now);
        assert!(due.is_empty());
    }

    fn added(&mut self, container: &str, second: u64) {
        let now = self.start + Duration::from_secs(second);
        self.companions
            .handle_added("web", container.to_owned(), now);
    }

    fn deadline(&self) -> Option<Instant> {
        self.companions.deadline()
    }

    fn trouble(&self) -> Option<AgentStatus> {
        self.companions.trouble("web-1", "web", "stopped")
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
    case.companions
        .advance(&BTreeSet::new(), &[], IMAGE, case.start);
    assert!(!case.adds(None, 0));
    case.added("kvpn-holder-a", 1);
    // The pod ends.
    case.companions.clear();
    assert_eq!(case.deadline(), None, "it would tick until the pod is gone");
}

#[test]
fn failures_are_not_forgotten_while_the_laptop_is_away_but_later() {
    let mut case = Case::new();
    let ended = AgentState::Terminated("Error, exit code 1: it may not".into());
    let mut tries = 0;
    for second in 0..LASTING.as_secs() {
        // The laptop comes and goes.
        if second % 2 == 0 {
            case.is_unwanted(Some(ended.clone()), second);
            assert_eq!(case.deadline(), None, "it would tick for nobody");
        } else if case.adds(Some(ended.clone()), second) {
            tries += 1;
            case.added("kvpn-holder-a", second);
            assert!(!case.adds(Some(ended.clone()), second));
        }
    }
    assert_eq!(tries, MAX_TRIES);
    case.is_unwanted(Some(ended.clone()), LASTING.as_secs());
    assert!(case.adds(Some(ended), 1_001));
}

#[test]
fn one_that_is_there_is_used_again() {
    let mut case = Case::new();
    assert!(!case.adds(Some(AgentState::Running), 0));
    assert_eq!(case.trouble(), None);
}

#[test]
fn one_that_was_there_and_leaves_as_it_is_needed_is_followed_by_another_at_once() {
    let mut case = Case::new();
    assert!(!case.adds(Some(AgentState::Running), 0));
    let ended = AgentState::Terminated("Completed, exit code 0".into());
    assert!(case.adds(Some(ended), 1));
}

#[test]
fn those_that_end_again_and_again_are_not_followed_for_ever() {
    let ended = || Some(AgentState::Terminated("Error, exit code 1".into()));
    let mut case = Case::new();
    let mut tries = 0;
    for round in 0..20 {
        // Each runs for a while.
        if case.adds(ended(), round * 40) {
            tries += 1;
            case.added("kvpn-holder-a", round * 40);
            assert!(!case.adds(Some(AgentState::Running), round * 40 + 1));
        }
    }
    assert_eq!(tries, MAX_TRIES);
    assert!(matches!(case.trouble(), Some(AgentStatus::Failed(_))));
    assert_eq!(case.deadline(), None);

    let mut case = Case::new();
    for start in (0..20_000).step_by(1_000) {
        assert!(case.adds(ended(), start), "those before have lasted");
        case.added("kvpn-holder-a", start);
        assert!(!case.adds(Some(AgentState::Running), start + 1));
    }
}

#[test]
fn refusal_is_told_and_tried_again_later() {
    let mut case = Case::new();
    assert!(case.adds(None, 0));
    let words = "forbidden".to_owned();
    case.companions
        .handle_not_added("web", words, true, case.start);
    assert!(!case.adds(None, 3));
    let why = "pod web-1: container web cannot be stopped: forbidden".to_owned();
    assert_eq!(case.trouble(), Some(AgentStatus::Refused(why)));
    assert!(case.adds(None, 4));
}

#[test]
fn one_that_does_not_start_has_failed_until_it_does() {
    for state in [
        AgentState::Stuck("ErrImagePull".into()),
        AgentState::Pending,
    ] {
        let mut case = Case::new();
        assert!(case.adds(None, 0));
        case.added("kvpn-holder-a", 0);
        for second in 0..100 {
            assert!(!case.adds(Some(state.clone()), second), "it may still come");
        }
        assert!(matches!(case.trouble(), Some(AgentStatus::Failed(_))));
        assert_eq!(case.deadline(), None, "it would tick for ever");
        assert!(!case.adds(Some(AgentState::Running), 100));
        assert_eq!(case.trouble(), None);
    }
}

#[test]
fn one_that_was_given_up_and_comes_up_is_used() {
    let mut case = Case::new();
    assert!(case.adds(None, 0));
    case.added("kvpn-holder-a", 0);
    // No watch shows it.
    assert!(!case.adds(None, 20));
    assert!(matches!(case.trouble(), Some(AgentStatus::Failed(_))));
    assert!(!case.adds(Some(AgentState::Running), 21));
    assert_eq!(case.trouble(), None);
}
