//! A reader comes, is told from others, and goes.

use super::*;
use crate::state::pods::AgentState;
use crate::state::testing::pod;

const IMAGE: &str = "agent:1";
const LINGER: Duration = Duration::from_secs(5);
const OWNER: Owner = Owner { uid: 999, gid: 7 };

struct Case {
    readers: Readers,
    pod: PodView,
    start: Instant,
}

impl Case {
    fn new() -> Self {
        Self {
            readers: Readers::default(),
            pod: pod("shop", "web-1", "10.1.0.7"),
            start: Instant::now(),
        }
    }

    /// What is due at that second; `wanted` says whether somebody waits.
    fn due(&mut self, wanted: Option<bool>, second: u64) -> Due {
        let wanted = wanted.map(|is_needed| ("web".to_owned(), is_needed));
        let now = self.start + Duration::from_secs(second);
        self.readers
            .advance(&wanted.into_iter().collect(), &self.pod, IMAGE, LINGER, now)
    }

    /// The container was added, and runs.
    fn runs(&mut self, container: &str, second: u64) {
        let now = self.start + Duration::from_secs(second);
        self.readers.handle_added("web", container.into(), now);
        self.pod.readers.push(CompanionContainer {
            name: container.into(),
            target: "web".into(),
            image: IMAGE.into(),
            state: AgentState::Running,
        });
        assert_eq!(self.due(Some(true), second), Due::default());
    }

    fn calls(&mut self, link: u64, container: &str, owner: Option<Owner>) -> Vec<LinkId> {
        let calling = Calling {
            container: container.into(),
            target: "web".into(),
            unreadable: owner.map(|_| "another's".to_owned()),
            owner,
        };
        self.readers.handle_linked(LinkId(link), calling)
    }

    fn loses(&mut self, link: u64, second: u64) {
        let now = self.start + Duration::from_secs(second);
        self.readers.handle_unlinked(LinkId(link), now);
    }

    fn status(&self) -> AgentStatus {
        self.readers.status("web-1", "web")
    }

    fn deadline(&self) -> Option<u64> {
        let deadline = self.readers.deadline()?;
        Some(deadline.duration_since(self.start).as_secs())
    }
}

fn added(owner: Option<Owner>) -> Due {
    Due {
        add: vec![("web".to_owned(), owner)],
        dismiss: Vec::new(),
    }
}

fn dismissed(link: u64) -> Due {
    Due {
        add: Vec::new(),
        dismiss: vec![LinkId(link)],
    }
}

#[test]
fn one_is_added_and_ends_a_moment_after_nobody_wants_it() {
    let mut case = Case::new();
    assert_eq!(case.due(Some(true), 0), added(None));
    assert!(case.readers.expects_any());
    case.runs("kvpn-reader-a", 1);
    assert!(matches!(case.status(), AgentStatus::Progressing(_)));
    assert_eq!(case.calls(1, "kvpn-reader-a", None), []);
    assert_eq!(case.status(), AgentStatus::Ready);
    assert_eq!(case.due(Some(true), 2), Due::default());
    assert_eq!(case.deadline(), None, "it would tick for ever");

    assert_eq!(case.due(None, 10), Due::default());
    assert_eq!(case.deadline(), Some(15));
    assert_eq!(
        case.due(Some(true), 12),
        Due::default(),
        "it is wanted again"
    );
    assert_eq!(case.due(None, 20), Due::default());
    assert_eq!(case.due(None, 25), dismissed(1));
    // It still runs, and is on its way out.
    assert_eq!(case.due(Some(true), 25), added(None));
    assert_eq!(case.calls(2, "kvpn-reader-a", None), [LinkId(2)]);
}

#[test]
fn one_stays_while_a_laptop_is_away_and_none_is_added_for_it() {
    let mut case = Case::new();
    assert_eq!(case.due(Some(false), 0), Due::default());
    assert_eq!(case.due(Some(true), 1), added(None));
    case.runs("kvpn-reader-a", 1);
    case.calls(1, "kvpn-reader-a", None);
    assert_eq!(case.due(Some(false), 100), Due::default());
    case.loses(1, 100);
    case.pod.readers[0].state = AgentState::Terminated("Error, exit code 137".into());
    assert_eq!(case.due(Some(false), 101), Due::default());
    assert_eq!(case.due(Some(true), 102), added(None));
}

#[test]
fn another_one_is_added_as_whom_the_processes_are_once() {
    let mut case = Case::new();
    case.due(Some(true), 0);
    case.runs("kvpn-reader-a", 1);
    assert_eq!(case.calls(1, "kvpn-reader-a", Some(OWNER)), [LinkId(1)]);
    assert_eq!(case.due(Some(true), 1), added(Some(OWNER)));
    assert!(matches!(case.status(), AgentStatus::Progressing(_)));
    case.runs("kvpn-reader-b", 2);
    assert_eq!(case.calls(2, "kvpn-reader-b", None), []);
    assert_eq!(case.status(), AgentStatus::Ready);

    let mut case = Case::new();
    case.due(Some(true), 0);
    case.runs("kvpn-reader-a", 1);
    case.calls(1, "kvpn-reader-a", Some(OWNER));
    case.due(Some(true), 1);
    case.runs("kvpn-reader-b", 2);
    // It is still refused.
    assert_eq!(case.calls(2, "kvpn-reader-b", Some(OWNER)), []);
    assert_eq!(case.due(Some(true), 3), Due::default());
    let AgentStatus::Failed(why) = case.status() else {
        panic!("{:?}", case.status());
    };
    assert!(
        why.contains("container web cannot be read: another's"),
        "{why}"
    );
}

#[test]
fn one_that_runs_and_does_not_call_is_told() {
    let mut case = Case::new();
    case.due(Some(true), 0);
    case.runs("kvpn-reader-a", 1);
    assert_eq!(case.deadline(), Some(6));
    assert_eq!(case.due(Some(true), 6), Due::default());
    assert!(matches!(case.status(), AgentStatus::Failed(why) if why.contains("does not call")));
    assert_eq!(case.deadline(), None, "it would tick for ever");
    case.calls(1, "kvpn-reader-a", None);
    assert_eq!(case.status(), AgentStatus::Ready);
}

#[test]
fn refusal_is_told() {
    let mut case = Case::new();
    case.due(Some(true), 0);
    let words = "violates PodSecurity".to_owned();
    case.readers
        .handle_not_added("web", words, true, case.start);
    let AgentStatus::Refused(why) = case.status() else {
        panic!("{:?}", case.status());
    };
    assert!(why.contains("cannot be read: violates"), "{why}");
}

#[test]
fn later_call_replaces_the_one_before() {
    let mut case = Case::new();
    case.due(Some(true), 0);
    case.runs("kvpn-reader-a", 1);
    case.calls(1, "kvpn-reader-a", None);
    assert_eq!(case.calls(2, "kvpn-reader-a", None), [LinkId(1)]);
    case.loses(1, 2);
    assert_eq!(case.readers.link("web"), Some(LinkId(2)));
}

#[test]
fn those_of_a_pod_that_ends_are_not_followed_by_others() {
    let mut case = Case::new();
    case.due(Some(true), 0);
    case.pod.terminating = true;
    assert_eq!(case.due(None, 1), Due::default());
    assert_eq!(case.due(None, 10), Due::default());
    assert_eq!(case.deadline(), None);
}

#[test]
fn reader_serves_who_comes_again_and_its_owner_is_kept() {
    let mut case = Case::new();
    case.due(Some(true), 0);
    case.runs("kvpn-reader-a", 1);
    case.calls(1, "kvpn-reader-a", Some(OWNER));
    assert_eq!(case.due(Some(true), 1), added(Some(OWNER)));
    case.runs("kvpn-reader-b", 2);
    case.calls(2, "kvpn-reader-b", None);
    for second in (3..30).step_by(3) {
        assert_eq!(case.due(None, second), Due::default());
        assert_eq!(case.due(Some(true), second + 2), Due::default());
        assert_eq!(case.status(), AgentStatus::Ready);
    }
    assert_eq!(case.due(None, 40), Due::default());
    assert_eq!(case.due(None, 45), dismissed(2));
    assert!(case.readers.is_empty());
    assert_eq!(case.due(Some(true), 50), added(Some(OWNER)));
}

#[test]
fn pod_that_has_had_many_gets_no_more() {
    let mut case = Case::new();
    for i in 0..MAX_READERS {
        case.pod.readers.push(CompanionContainer {
            name: format!("kvpn-reader-{i}"),
            target: "web".into(),
            image: "agent:0".into(),
            state: AgentState::Terminated("Completed, exit code 0".into()),
        });
    }
    assert_eq!(case.due(Some(true), 0), Due::default());
    let AgentStatus::Failed(why) = case.status() else {
        panic!("{:?}", case.status());
    };
    assert!(why.contains("delete the pod"), "{why}");
    assert_eq!(case.due(Some(true), 1000), Due::default());
    case.pod.readers.pop();
    let mut other = Case::new();
    other.pod = case.pod;
    assert_eq!(other.due(Some(true), 0), added(None));
}

#[test]
fn reader_may_take_as_long_to_call_again() {
    let mut case = Case::new();
    case.due(Some(true), 0);
    case.runs("kvpn-reader-a", 1);
    case.calls(1, "kvpn-reader-a", None);
    case.due(Some(true), 2);
    case.loses(1, 100);
    assert_eq!(case.due(Some(true), 100), Due::default());
    assert!(matches!(case.status(), AgentStatus::Progressing(_)));
    assert_eq!(case.deadline(), Some(105));
    case.calls(2, "kvpn-reader-a", None);
    assert_eq!(case.status(), AgentStatus::Ready);
    case.loses(2, 200);
    case.due(Some(true), 205);
    assert!(matches!(case.status(), AgentStatus::Failed(why) if why.contains("does not call")));
}
