//! Replaces, and pods that end.

use super::*;
use crate::state::Role;
use crate::state::pods::Probes;

/// Alice replaces `web`, whose one pod has an agent.
fn replaced(change: fn(&mut PodView)) -> (Case, Vec<Effect>) {
    let mut case = Case::new(&[]);
    let mut pod = running("web-1", 0);
    pod.probes.insert("web".into(), Probes::default());
    change(&mut pod);
    case.send(Event::Pods(Change::Applied(pod)));
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.verb = Verb::Replace;
    view.spec.container = Some("web".into());
    case.send(Event::Engagements(Change::Applied(view)));
    let mut effects = case.send(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    effects.extend(case.link("web-1", 1));
    (case, effects)
}

fn stopped(effects: &[Effect]) -> Vec<&str> {
    let added = effects.iter().filter_map(|effect| {
        let Effect::AddHolder { target, .. } = effect else {
            return None;
        };
        Some(target.as_str())
    });
    added.collect()
}

#[test]
fn replaced_container_gets_a_holder_once_its_pod_has_an_agent() {
    let (mut case, effects) = replaced(|_| {});
    assert_eq!(stopped(&effects), ["web"]);
    let claims = &case.world.slots["uid-web-1"].claims().claims;
    assert_eq!(claims[0].stops.as_deref(), Some("web"));
    assert!(claims[0].fails_closed);
    case.assert_active("web-a", "False", condition::PROGRESSING);
    case.send(Event::CompanionAdded {
        role: Role::Holder,
        pod_uid: "uid-web-1".into(),
        target: "web".into(),
        container: "kvpn-holder-abcde".into(),
    });
    let effects = case.apply("web-1");
    assert_eq!(stopped(&effects), Vec::<&str>::new());
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn replace_whose_holder_is_refused_says_so() {
    let (mut case, _) = replaced(|_| {});
    case.send(Event::CompanionNotAdded {
        role: Role::Holder,
        pod_uid: "uid-web-1".into(),
        target: "web".into(),
        message: "forbidden".into(),
        is_refused: true,
    });
    case.assert_active("web-a", "False", condition::AGENT_REFUSED);
}

#[test]
fn replace_whose_container_is_not_stopped_leaves_others_active() {
    let (mut case, _) = replaced(|_| {});
    case.engage("web-b", "bob", 9090);
    // It names a container, as no intercept need.
    let mut view = engagement("web-c", "bob", 7070, 0);
    view.spec.container = Some("web".into());
    case.send(Event::Engagements(Change::Applied(view)));
    case.send(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-c"),
        uid: "uid-web-c".into(),
        resolution: selector("app", "web"),
    });
    case.apply_but("web-1", &[("web", "")]);
    case.assert_active("web-a", "False", condition::PROGRESSING);
    case.apply_but("web-1", &[("web", "it does not answer")]);
    case.assert_active("web-a", "False", condition::AGENT_FAILED);
    let told = &case.status("web-a").conditions[1].message;
    let why = "pod web-1: container web is not stopped: it does not answer";
    assert_eq!(told, why);
    case.send(Event::CompanionNotAdded {
        role: Role::Holder,
        pod_uid: "uid-web-1".into(),
        target: "web".into(),
        message: "forbidden".into(),
        is_refused: true,
    });
    case.assert_active("web-a", "False", condition::AGENT_REFUSED);
    for other in ["web-b", "web-c"] {
        case.assert_active(other, "True", condition::READY);
    }
}

#[test]
fn probes_are_answered_for_the_replaced_container_alone() {
    let answers = |change: fn(&mut PodView)| {
        let (case, _) = replaced(change);
        case.world.slots["uid-web-1"].claims().claims[0].answers_probes
    };
    assert!(!answers(|_| {}));
    fn with(ports: &[u16], declared: &[u16]) -> Probes {
        Probes {
            ports: ports.iter().copied().collect(),
            declared: declared.iter().copied().collect(),
            others: false,
        }
    }
    assert!(answers(|pod| drop(
        pod.probes.insert("web".into(), with(&[8080], &[]))
    )));
    assert!(answers(|pod| drop(
        pod.probes.insert("web".into(), with(&[], &[8080]))
    )));
    assert!(!answers(|pod| drop(
        pod.probes.insert("proxy".into(), with(&[8080], &[]))
    )));
}

#[test]
fn container_that_the_kubelet_would_restart_gets_no_agent() {
    let (case, effects) = replaced(|pod| {
        let probes = Probes {
            others: true,
            ..Probes::default()
        };
        pod.probes.insert("web".into(), probes);
    });
    assert!(added(&effects).is_empty() && stopped(&effects).is_empty());
    case.assert_active("web-a", "False", condition::NOT_SUPPORTED);
}

#[test]
fn pod_that_ends_keeps_its_claims_for_as_long_as_its_agent_is_there() {
    let mut case = Case::new(&["web-1", "web-2"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    for (i, name) in ["web-1", "web-2"].into_iter().enumerate() {
        let mut pod = running(name, i);
        pod.terminating = true;
        let effects = case.send(Event::Pods(Change::Applied(pod)));
        assert_eq!(sent_ports(&effects), [], "nothing is taken back");
    }
    assert_eq!(case.status("web-a").pods_selected, 0);
    assert_eq!(case.world.slots["uid-web-1"].claims().claims.len(), 1);
    assert!(case.world.slots["uid-web-2"].claims().claims.is_empty());
    let effects = case.send(Event::AgentUnlinked {
        pod_uid: "uid-web-1".into(),
        link: LinkId(1),
    });
    assert!(
        added(&effects).is_empty(),
        "none is added to a pod that ends"
    );
}
