//! Who gets what of several engagements.

use super::*;
use crate::state::testing::{Clock, engagement, pod, selector, session};
use crate::state::{Change, StreamId};

struct Case {
    clock: Clock,
    engagements: Vec<EngagementRecord>,
    sessions: BTreeMap<Key, SessionRecord>,
    pods: Pods,
}

impl Case {
    /// Two users with a session each, present, and two pods of `web`.
    fn new() -> Self {
        let clock = Clock::start();
        let mut sessions = BTreeMap::new();
        for (name, user) in [("alice-1", "alice"), ("bob-1", "bob")] {
            let mut record = SessionRecord::new(session(name, user), &clock.at(0));
            record.handle_opened(StreamId(1));
            sessions.insert(record.view.key.clone(), record);
        }
        let mut pods = Pods::default();
        for (name, ip) in [("web-1", "10.1.0.1"), ("web-2", "10.1.0.2")] {
            pods.apply(Change::Applied(pod("shop", name, ip)));
        }
        Self {
            clock,
            engagements: Vec::new(),
            sessions,
            pods,
        }
    }

    fn engage(&mut self, name: &str, user: &str, port: u16) -> &mut EngagementRecord {
        let arrived = self.engagements.len() as u64;
        let view = engagement(name, user, port, arrived as i64);
        let mut record = EngagementRecord::new(view, arrived, &self.clock.at(0));
        record.handle_resolved(selector("app", "web"), &self.clock.at(0));
        self.engagements.push(record);
        self.engagements.last_mut().unwrap()
    }

    fn decide(&self) -> BTreeMap<Key, Standing> {
        let manager = Key::new("kvpn", "traffic-manager-0");
        let engagements = self.engagements.iter();
        decide(engagements, &self.sessions, "kvpn", &self.pods, &manager)
    }

    fn standing(&self, name: &str) -> Standing {
        self.decide()[&Key::new("shop", name)].clone()
    }

    /// Has all take note of what is decided at that second.
    fn settle(&mut self, second: u64) {
        let standings = self.decide();
        for record in &mut self.engagements {
            record.settle(&standings[&record.view.key], &self.clock.at(second));
        }
    }

    fn reason(&self, name: &str) -> (&'static str, String) {
        match self.standing(name) {
            Standing::Unclaimed {
                reason, message, ..
            } => (reason, message),
            Standing::Admitted { .. } => ("", String::new()),
        }
    }
}

#[test]
fn a_lone_engagement_gets_all_running_pods() {
    let mut case = Case::new();
    let mut pending = pod("shop", "web-3", "10.1.0.3");
    pending.phase = crate::state::pods::Phase::Other;
    let mut going = pod("shop", "web-4", "10.1.0.4");
    going.terminating = true;
    let mut other = pod("shop", "db-1", "10.1.0.5");
    other.labels.insert("app".into(), "db".into());
    for pod in [pending, going, other] {
        case.pods.apply(Change::Applied(pod));
    }
    case.engage("web-a", "alice", 8080);
    assert_eq!(
        case.standing("web-a"),
        Standing::Admitted {
            passing: vec![Key::new("shop", "web-4")],
            pods: vec![Key::new("shop", "web-1"), Key::new("shop", "web-2")],
            laptop: Laptop::Present,
        }
    );
}

#[test]
fn the_younger_of_two_on_one_port_conflicts_and_hears_who_has_it() {
    let mut case = Case::new();
    case.engage("z-older", "alice", 8080);
    case.engage("a-younger", "bob", 8080);
    assert_eq!(case.reason("z-older").0, "");
    let (reason, message) = case.reason("a-younger");
    assert_eq!(reason, condition::CONFLICT);
    assert_eq!(
        message,
        "alice has had port 8080 since 2026-01-01T00:00:00Z (engagement shop/z-older)"
    );
}

#[test]
fn of_two_created_in_one_second_the_first_to_arrive_keeps_the_port() {
    let mut case = Case::new();
    let created = case.engage("z-first", "alice", 8080).view.created;
    case.engage("a-second", "bob", 8080).view.created = created;
    assert_eq!(case.reason("z-first").0, "");
    assert_eq!(case.reason("a-second").0, condition::CONFLICT);
}

#[test]
fn two_ports_of_one_workload_do_not_conflict() {
    let mut case = Case::new();
    case.engage("web-a", "alice", 8080);
    case.engage("web-b", "bob", 9090);
    assert_eq!(case.reason("web-b").0, "");
}

/// Alice's laptop goes after a second.
fn leave(case: &mut Case) {
    let alice = case.sessions.get_mut(&Key::new("kvpn", "alice-1")).unwrap();
    alice.handle_closed(StreamId(1), &case.clock.at(1));
}

#[test]
fn datagrams_and_connections_of_one_number_are_two_ports() {
    let mut case = Case::new();
    case.engage("tcp", "alice", 53);
    for (name, user) in [("udp", "bob"), ("late", "alice")] {
        let engagement = case.engage(name, user, 53);
        engagement.view.spec.ports[0].protocol = Protocol::Udp;
    }
    assert_eq!(case.reason("udp").0, "");
    let (reason, message) = case.reason("late");
    assert_eq!(reason, condition::CONFLICT);
    assert!(
        message.starts_with("bob has had port 53/udp since"),
        "{message}"
    );
}

#[test]
fn datagrams_are_not_chosen_by_a_filter() {
    let mut case = Case::new();
    let engagement = case.engage("dns", "alice", 53);
    engagement.view.spec.ports[0].protocol = Protocol::Udp;
    engagement.view.spec.http = Some(filter::HttpFilter {
        any: false,
        conditions: vec![filter::Condition::header("x-user=alice")],
    });
    let (reason, message) = case.reason("dns");
    assert_eq!(reason, condition::NOT_SUPPORTED);
    assert!(message.contains("port 53 is UDP"), "{message}");
}

#[test]
fn who_is_absent_for_a_short_time_keeps_what_it_had() {
    let mut case = Case::new();
    case.engage("web-a", "alice", 8080).held_since = Some(case.clock.at(0).wall);
    case.engage("web-b", "bob", 8080);
    leave(&mut case);
    let (reason, message) = case.reason("web-b");
    assert_eq!(reason, condition::CONFLICT);
    assert_eq!(
        message,
        "alice has had port 8080 since 2026-01-01T00:00:00Z (engagement shop/web-a), whose \
         laptop has not been connected since 2026-01-01T00:00:01Z"
    );
    let since = case.clock.at(1).wall;
    assert!(matches!(
        case.standing("web-a"),
        Standing::Admitted { laptop: Laptop::Away(at), .. } if at == since
    ));
}

#[test]
fn who_never_had_anything_keeps_nothing_while_absent() {
    let mut case = Case::new();
    case.engage("web-a", "alice", 8080);
    case.engage("web-b", "bob", 8080);
    leave(&mut case);
    assert_eq!(case.reason("web-b").0, "");
}

#[test]
fn who_is_absent_for_long_keeps_nothing_and_who_has_it_then_keeps_it() {
    let mut case = Case::new();
    let start = case.clock.at(0).wall;
    case.engage("web-a", "alice", 8080).held_since = Some(start);
    case.engage("web-b", "bob", 8080);
    leave(&mut case);
    let alice = Key::new("kvpn", "alice-1");
    let (limit, at) = (Duration::from_secs(10), case.clock.at(11));
    let session = case.sessions.get_mut(&alice).unwrap();
    assert!(session.becomes_idle(limit, &at));
    assert_eq!(case.reason("web-b").0, "");
    case.settle(12);
    assert_eq!(case.engagements[0].held_since, None);
    assert_eq!(case.engagements[1].held_since, Some(case.clock.at(12).wall));

    let session = case.sessions.get_mut(&alice).unwrap();
    session.handle_opened(StreamId(2));
    let (reason, message) = case.reason("web-a");
    assert_eq!(reason, condition::CONFLICT);
    assert!(message.starts_with("bob has had port 8080 since 2026-01-01T00:00:12Z"));
    assert_eq!(case.reason("web-b").0, "");
}

#[test]
fn who_is_absent_and_fails_closed_yields_only_to_who_wants_it() {
    let mut case = Case::new();
    let record = case.engage("web-a", "alice", 8080);
    record.view.spec.on_failure = Some(OnFailure::Unavailable);
    record.held_since = Some(record.view.created);
    leave(&mut case);
    let session = case.sessions.get_mut(&Key::new("kvpn", "alice-1")).unwrap();
    assert!(session.becomes_idle(Duration::ZERO, &case.clock.at(2)));
    assert!(matches!(case.standing("web-a"), Standing::Admitted { .. }));
    case.engage("web-b", "bob", 8080);
    assert_eq!(case.reason("web-b").0, "");
    assert_eq!(case.reason("web-a").0, condition::CONFLICT);
}

#[test]
fn who_is_absent_is_not_in_the_way_of_its_own_user() {
    let mut case = Case::new();
    case.engage("web-a", "alice", 8080).held_since = Some(case.clock.at(0).wall);
    leave(&mut case);
    let mut again = SessionRecord::new(session("alice-2", "alice"), &case.clock.at(2));
    again.handle_opened(StreamId(1));
    case.sessions.insert(again.view.key.clone(), again);
    case.engage("web-b", "alice", 8080).view.spec.session = "alice-2".into();
    assert_eq!(case.reason("web-b").0, "");
    case.settle(3);
    assert_eq!(case.engagements[0].held_since, None);
}

#[test]
fn who_has_a_port_keeps_it_before_those_that_are_older() {
    let mut case = Case::new();
    case.engage("web-a", "alice", 8080);
    case.engage("web-b", "bob", 8080).held_since = Some(case.clock.at(60).wall);
    assert_eq!(case.reason("web-b").0, "");
    assert_eq!(case.reason("web-a").0, condition::CONFLICT);
}

#[test]
fn what_an_engagement_had_is_known_after_a_restart() {
    let clock = Clock::start();
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.status = Some(EngagementStatus {
        held_since: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
            clock.at(7).wall,
        )),
        ..EngagementStatus::default()
    });
    let mut record = EngagementRecord::new(view, 0, &clock.at(100));
    assert_eq!(record.held_since, Some(clock.at(7).wall));
    // Its workload is not read yet.
    let looking = Standing::unclaimed(condition::PROGRESSING, "looking up");
    record.settle(&looking, &clock.at(100));
    assert_eq!(record.held_since, Some(clock.at(7).wall));
}

#[test]
fn an_engagement_in_conflict_blocks_no_third() {
    let mut case = Case::new();
    case.engage("web-a", "alice", 8080);
    let both = case.engage("web-b", "bob", 8080);
    let mut second = both.view.spec.ports[0].clone();
    second.container_port = 9090;
    both.view.spec.ports.push(second);
    case.engage("web-c", "alice", 9090);
    assert_eq!(case.reason("web-b").0, condition::CONFLICT);
    assert_eq!(case.reason("web-c").0, "");
}

#[test]
fn another_users_session_is_no_session() {
    let mut case = Case::new();
    case.engage("web-a", "alice", 8080).view.spec.session = "bob-1".into();
    assert_eq!(case.reason("web-a").0, condition::NO_SESSION);
    case.engage("web-b", "bob", 8080).view.spec.session = "bob-2".into();
    assert_eq!(case.reason("web-b").0, condition::NO_SESSION);
}

#[test]
fn host_network_pods_are_not_supported() {
    let mut case = Case::new();
    let mut proxy = pod("shop", "web-3", "192.0.2.1");
    proxy.host_network = true;
    case.pods.apply(Change::Applied(proxy));
    case.engage("web-a", "alice", 8080);
    let (reason, message) = case.reason("web-a");
    assert_eq!(reason, condition::NOT_SUPPORTED);
    assert!(
        message.contains("pod web-3 uses its node's network"),
        "{message}"
    );
}

#[test]
fn workloads_that_are_missing_unknown_or_empty_are_told_apart() {
    let mut case = Case::new();
    let at = case.clock.at(0);
    case.engage("a", "alice", 1).workload = None;
    case.engage("b", "alice", 2)
        .handle_resolved(Resolution::Missing, &at);
    case.engage("c", "alice", 3)
        .handle_resolved(selector("app", "none"), &at);
    let unreadable = Resolution::Unreadable("forbidden".into());
    case.engage("d", "alice", 4)
        .handle_resolved(unreadable, &at);
    let pod = case.engage("e", "alice", 5);
    pod.view.spec.workload.kind = WorkloadKind::Pod;
    let reasons = ["a", "b", "c", "d", "e"].map(|name| case.reason(name).0);
    assert_eq!(
        reasons,
        [
            condition::PROGRESSING,
            condition::NO_SUCH_WORKLOAD,
            condition::NO_RUNNING_POD,
            condition::NOT_SUPPORTED,
            condition::NO_SUCH_WORKLOAD,
        ]
    );
}

#[test]
fn a_pod_is_engaged_by_its_name() {
    let mut case = Case::new();
    let record = case.engage("web-a", "alice", 8080);
    record.view.spec.workload.kind = WorkloadKind::Pod;
    record.view.spec.workload.name = "web-2".into();
    assert_eq!(
        case.standing("web-a"),
        Standing::Admitted {
            passing: vec![],
            pods: vec![Key::new("shop", "web-2")],
            laptop: Laptop::Present,
        }
    );
}

#[test]
fn a_workload_is_read_once_and_again_only_while_it_selects_nothing() {
    let clock = Clock::start();
    let mut pods = Pods::default();
    let mut record = EngagementRecord::new(engagement("e", "alice", 1, 0), 0, &clock.at(0));
    assert!(record.should_resolve(&pods, &clock.at(0)));
    assert!(!record.should_resolve(&pods, &clock.at(0)), "under way");
    record.handle_resolved(selector("app", "web"), &clock.at(1));
    assert!(!record.should_resolve(&pods, &clock.at(2)));
    assert!(record.should_resolve(&pods, &clock.at(6)));
    record.handle_resolved(selector("app", "web"), &clock.at(6));
    pods.apply(Change::Applied(pod("shop", "web-1", "10.1.0.1")));
    assert!(!record.should_resolve(&pods, &clock.at(60)));
    assert_eq!(record.deadline(Duration::ZERO, &pods), None);
}

#[test]
fn an_orphan_expires_after_the_grace() {
    let clock = Clock::start();
    let grace = Duration::from_secs(30);
    let mut record = EngagementRecord::new(engagement("e", "alice", 1, 0), 0, &clock.at(0));
    assert!(!record.expires(true, grace, &clock.at(50)));
    assert!(!record.expires(false, grace, &clock.at(60)));
    assert!(!record.expires(false, grace, &clock.at(89)));
    assert!(record.expires(false, grace, &clock.at(90)));
    assert!(
        !record.expires(false, grace, &clock.at(91)),
        "asked for once"
    );
}
