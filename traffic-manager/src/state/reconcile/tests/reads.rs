//! Engagements that read what a container has.

use super::*;
use crate::state::pods::{AgentState, Probes};
use crate::state::readers::Calling;
use crate::state::testing::companion;
use crate::state::{NoReader, Role};

const READER: &str = "kvpn-reader-abcde";

fn engaged(verb: Verb, change: fn(&mut PodView)) -> (Case, Vec<Effect>) {
    let mut case = Case::new(&[]);
    for (i, name) in ["web-1", "web-2"].into_iter().enumerate() {
        let mut pod = running(name, i);
        pod.probes.insert("web".into(), Probes::default());
        change(&mut pod);
        case.send(Event::Pods(Change::Applied(pod)));
    }
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.verb = verb;
    view.spec.container = Some("web".into());
    view.spec.environment = true;
    if verb == Verb::Ingest {
        view.spec.ports.clear();
    }
    case.send(Event::Engagements(Change::Applied(view)));
    let effects = case.send(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    (case, effects)
}

/// The pods that readers are added to.
fn read(effects: &[Effect]) -> Vec<&str> {
    let added = effects.iter().filter_map(|effect| {
        let Effect::AddReader { pod, .. } = effect else {
            return None;
        };
        Some(pod.name.as_str())
    });
    added.collect()
}

fn agents(effects: &[Effect]) -> usize {
    let is_agent = |effect: &&Effect| matches!(effect, Effect::AddAgent { .. });
    effects.iter().filter(is_agent).count()
}

fn calls(case: &mut Case) {
    case.send(Event::CompanionAdded {
        role: Role::Reader,
        pod_uid: "uid-web-1".into(),
        target: "web".into(),
        container: READER.into(),
    });
    let calling = Calling {
        container: READER.into(),
        target: "web".into(),
        unreadable: None,
        owner: None,
    };
    case.send(Event::ReaderLinked {
        pod: Key::new("shop", "web-1"),
        pod_uid: "uid-web-1".into(),
        link: LinkId(7),
        calling,
    });
}

fn environment(case: &Case) -> (String, String) {
    let record = &case.world.engagements[&Key::new("shop", "web-a")];
    let mut conditions = record.written.conditions.iter();
    let ready = conditions.find(|it| it.type_ == condition::READABLE);
    let ready = ready.unwrap();
    (ready.status.clone(), ready.reason.clone())
}

#[test]
fn ingest_has_one_reader_in_one_pod_and_no_agent() {
    let (mut case, effects) = engaged(Verb::Ingest, |_| {});
    assert_eq!((read(&effects), agents(&effects)), (vec!["web-1"], 0));
    case.assert_active("web-a", "False", condition::PROGRESSING);
    let route = |case: &Case| case.world.read_route("alice-1", "uid-web-a");
    assert!(matches!(route(&case), Err(NoReader::NotThere(_))));
    calls(&mut case);
    case.assert_active("web-a", "True", condition::READY);
    let route = route(&case).unwrap();
    assert_eq!((route.link, route.pod.name.as_str()), (LinkId(7), "web-1"));
    let others = case.world.read_route("bob-1", "uid-web-a");
    assert_eq!(others, Err(NoReader::NoEngagement));
}

#[test]
fn ingest_with_ports_gets_nothing() {
    let mut case = Case::new(&[]);
    let mut pod = running("web-1", 0);
    pod.probes.insert("web".into(), Probes::default());
    case.send(Event::Pods(Change::Applied(pod)));
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.verb = Verb::Ingest;
    view.spec.container = Some("web".into());
    view.spec.environment = true;
    case.send(Event::Engagements(Change::Applied(view)));
    let mut effects = case.send(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    case.assert_active("web-a", "False", condition::NOT_SUPPORTED);
    effects.extend(case.link("web-1", 1));
    assert_eq!((read(&effects), agents(&effects)), (Vec::<&str>::new(), 0));
    let sent = sent_ports(&effects);
    assert!(sent.iter().all(|(_, ports)| ports.is_empty()), "{sent:?}");
}

#[test]
fn manager_is_not_read() {
    let mut case = Case::new(&[]);
    let mut pod = pod("kvpn", "traffic-manager-0", "10.1.0.99");
    pod.probes.insert("manager".into(), Probes::default());
    case.send(Event::Pods(Change::Applied(pod)));
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.key.namespace = "kvpn".into();
    view.spec.verb = Verb::Ingest;
    view.spec.ports.clear();
    view.spec.container = Some("manager".into());
    view.spec.environment = true;
    case.send(Event::Engagements(Change::Applied(view)));
    let effects = case.send(Event::WorkloadResolved {
        engagement: Key::new("kvpn", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    assert_eq!(read(&effects), Vec::<&str>::new());
    let record = &case.world.engagements[&Key::new("kvpn", "web-a")];
    let mut conditions = record.written.conditions.iter();
    let active = conditions.find(|it| it.type_ == condition::ACTIVE).unwrap();
    assert_eq!(active.reason, condition::NOT_SUPPORTED);
}

#[test]
fn intercept_is_active_whether_or_not_the_environment_can_be_read() {
    let (mut case, effects) = engaged(Verb::Intercept, |_| {});
    assert_eq!((read(&effects), agents(&effects)), (vec!["web-1"], 2));
    for (pod, link) in [("web-1", 1), ("web-2", 2)] {
        case.link(pod, link);
        case.apply(pod);
    }
    case.assert_active("web-a", "True", condition::READY);
    assert_eq!(environment(&case).1, condition::PROGRESSING);
    case.send(Event::CompanionNotAdded {
        role: Role::Reader,
        pod_uid: "uid-web-1".into(),
        target: "web".into(),
        message: "forbidden".into(),
        is_refused: true,
    });
    case.assert_active("web-a", "True", condition::READY);
    assert_eq!(environment(&case).1, condition::AGENT_REFUSED);
    calls(&mut case);
    assert_eq!(environment(&case).0, "True");
}

#[test]
fn engagement_without_the_wish_has_no_reader_and_no_such_condition() {
    let mut case = Case::new(&["web-1"]);
    let effects = case.engage("web-a", "alice", 8080);
    assert_eq!(read(&effects), Vec::<&str>::new());
    let record = &case.world.engagements[&Key::new("shop", "web-a")];
    assert_eq!(record.written.conditions.len(), 2);
    let route = case.world.read_route("alice-1", "uid-web-a");
    assert_eq!(route, Err(NoReader::NotAsked));
}

#[test]
fn what_cannot_be_read_is_told_with_the_reason() {
    let (case, effects) = engaged(Verb::Ingest, |pod| pod.shares_processes = true);
    assert_eq!(read(&effects), Vec::<&str>::new());
    case.assert_active("web-a", "False", condition::NOT_SUPPORTED);
    let (case, _) = engaged(Verb::Ingest, |pod| pod.probes.clear());
    case.assert_active("web-a", "False", condition::NOT_SUPPORTED);
    let (case, _) = engaged(Verb::Intercept, |pod| pod.probes.clear());
    assert_eq!(environment(&case).1, condition::NOT_SUPPORTED);
}

#[test]
fn reader_is_dismissed_a_moment_after_its_engagement_has_ended() {
    let (mut case, _) = engaged(Verb::Ingest, |_| {});
    calls(&mut case);
    let record = &case.world.engagements[&Key::new("shop", "web-a")];
    let view = record.view.clone();
    case.send(Event::Engagements(Change::Deleted(view)));
    case.second += 5;
    let effects = case.send(Event::Tick);
    let dismiss = Effect::DismissReader { link: LinkId(7) };
    assert!(effects.contains(&dismiss), "{effects:?}");
    assert!(case.world.read.is_empty(), "it would be looked at for ever");
}

#[test]
fn reader_that_calls_for_nobody_is_dismissed() {
    let mut case = Case::new(&["web-1"]);
    calls(&mut case);
    case.second += 5;
    let effects = case.send(Event::Tick);
    let dismiss = Effect::DismissReader { link: LinkId(7) };
    assert!(effects.contains(&dismiss), "{effects:?}");
}

#[test]
fn reader_is_known_while_it_runs_and_displaced_by_no_other() {
    let (mut case, _) = engaged(Verb::Ingest, |pod| {
        let readers = ["kvpn-reader-b", "kvpn-reader-c", READER];
        pod.readers = readers.map(|name| companion(name, "web", IMAGE)).into();
        pod.readers[0].state = AgentState::Terminated("Completed, exit code 0".into());
    });
    let caller = Caller::Address("10.1.0.1".parse().unwrap());
    let known = |case: &Case, name: &str| case.world.identify_reader(&caller, name);
    let ended = known(&case, "kvpn-reader-b");
    assert!(matches!(ended, Err(AgentRejected::NoContainer(..))));
    assert!(known(&case, "kvpn-reader-c").is_ok());
    calls(&mut case);
    let second = known(&case, "kvpn-reader-c");
    let taken = AgentRejected::Read(Key::new("shop", "web-1"), "web".into());
    assert_eq!(second, Err(taken));
    assert!(known(&case, READER).is_ok(), "it may call again");

    let mut pod = running("web-1", 0);
    pod.probes.insert("web".into(), Probes::default());
    pod.readers = ["kvpn-reader-c", READER]
        .map(|name| companion(name, "web", IMAGE))
        .into();
    pod.readers[1].state = AgentState::Terminated("Error, exit code 137".into());
    case.send(Event::Pods(Change::Applied(pod)));
    assert!(known(&case, "kvpn-reader-c").is_ok());
}

#[test]
fn another_pod_is_read_once_the_first_is_gone() {
    let (mut case, _) = engaged(Verb::Ingest, |_| {});
    calls(&mut case);
    let mut first = running("web-1", 0);
    first.terminating = true;
    let effects = case.send(Event::Pods(Change::Applied(first)));
    assert_eq!(read(&effects), ["web-2"]);
    case.assert_active("web-a", "False", condition::PROGRESSING);
}
