//! Pods that are born with an agent.

use super::*;

/// A pod that does not run yet, and has an agent that does.
fn newborn(name: &str, index: usize) -> PodView {
    let mut pod = running(name, index);
    pod.phase = Phase::Other;
    // Its address is not told yet.
    pod.ips.clear();
    let mut agent = agent_container(CONTAINER, IMAGE);
    agent.is_sidecar = true;
    pod.agents.push(agent);
    pod
}

#[test]
fn a_pod_that_is_born_with_an_agent_has_its_claims_before_it_runs() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
    let effects = case.send(Event::Pods(Change::Applied(newborn("web-2", 1))));
    let adds = effects
        .iter()
        .any(|it| matches!(it, Effect::AddAgent { .. }));
    assert!(!adds, "{effects:?}");
    let caller = Caller::Pod {
        key: Key::new("shop", "web-2"),
        uid: "uid-web-2".into(),
    };
    let identified = case.world.identify_agent(&caller, CONTAINER);
    assert_eq!(
        identified,
        Ok(("uid-web-2".into(), Key::new("shop", "web-2")))
    );
    let effects = case.link("web-2", 2);
    assert_eq!(sent_ports(&effects), [(LinkId(2), vec![8080])]);
    case.apply("web-2");
    // Not among those that are selected before it runs, and covered at once then.
    case.assert_active("web-a", "True", condition::READY);
    let mut runs = newborn("web-2", 1);
    runs.phase = Phase::Running;
    case.send(Event::Pods(Change::Applied(runs)));
    case.assert_active("web-a", "True", condition::READY);
    assert_eq!(case.status("web-a").pods_covered, 2);
}

#[test]
fn agent_that_leaves_a_starting_pod_is_waited_for_and_replaced_once_that_runs() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.send(Event::Pods(Change::Applied(newborn("web-2", 1))));
    case.link("web-2", 2);
    case.send(Event::AgentUnlinked {
        pod_uid: "uid-web-2".into(),
        link: LinkId(2),
    });
    case.second += 11;
    let effects = case.send(Event::Tick);
    assert!(!added(&effects).contains(&"web-2"), "{effects:?}");
    let now = case.clock.at(case.second).instant;
    let deadline = case.world.deadline();
    assert!(deadline.is_none_or(|at| at > now), "it would tick for ever");
    let mut runs = newborn("web-2", 1);
    runs.phase = Phase::Running;
    let effects = case.send(Event::Pods(Change::Applied(runs)));
    assert!(
        !added(&effects).contains(&"web-2"),
        "the kubelet starts it again"
    );
    case.second += 11;
    let effects = case.send(Event::Tick);
    assert!(added(&effects).contains(&"web-2"), "{effects:?}");
}

#[test]
fn births_are_expected_while_a_workload_is_engaged_and_once_an_agent_has_run() {
    let mut case = Case::new(&["web-1"]);
    let told = |effects: &[Effect]| {
        let mut counts = Vec::new();
        for effect in effects {
            if let Effect::WriteWebhooks(questions) = effect {
                counts.push(questions.births.len());
            }
        }
        counts
    };
    let engage = |case: &mut Case, name: &str, user: &str| {
        let view = engagement(name, user, 8080, 0);
        case.send(Event::Engagements(Change::Applied(view)));
        case.send(Event::WorkloadResolved {
            engagement: Key::new("shop", name),
            uid: format!("uid-{name}"),
            resolution: selector("app", "web"),
        })
    };
    let none: [usize; 0] = [];
    assert_eq!(told(&engage(&mut case, "web-a", "alice")), none);
    assert_eq!(told(&case.link("web-1", 1)), [1]);
    assert_eq!(told(&engage(&mut case, "web-b", "bob")), none, "the same");
    let gone = |name: &str| Event::Engagements(Change::Deleted(engagement(name, "", 8080, 0)));
    assert_eq!(told(&case.send(gone("web-a"))), none);
    assert_eq!(told(&case.send(gone("web-b"))), [0]);
    // No pod of it need run.
    let pod = running("web-1", 0);
    case.send(Event::Pods(Change::Deleted(pod)));
    assert_eq!(told(&engage(&mut case, "web-c", "alice")), [1]);
}

#[test]
fn births_are_expected_where_no_agent_has_run_for_who_rolls_out() {
    let mut case = Case::new(&["web-1"]);
    let told = |effects: &[Effect]| {
        let mut told = Vec::new();
        for effect in effects {
            if let Effect::WriteWebhooks(questions) = effect {
                told.extend(questions.births.iter().map(|it| it.is_unproven));
            }
        }
        told
    };
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.roll_out = true;
    case.send(Event::Engagements(Change::Applied(view)));
    let effects = case.send(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    assert_eq!(told(&effects), [true]);
    case.link("web-1", 1);
    case.engage("web-b", "bob", 9090);
    let gone = engagement("web-a", "alice", 8080, 0);
    let effects = case.send(Event::Engagements(Change::Deleted(gone)));
    assert_eq!(told(&effects), [false], "bob's are proven");
}
