//! Ports of the pods' localhost that sessions reach.

use k8s_openapi::jiff::SignedDuration;

use super::*;
use crate::state::in_pod::{NoPodRoute, PodRoute};
use crate::state::testing::epoch;

/// Alice engages web, whose pods are covered, with a port of their localhost.
fn engaged(pods: &[&str]) -> Case {
    let mut case = Case::new(pods);
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.to_pod = vec![9901];
    case.send(Event::Engagements(Change::Applied(view)));
    case.send(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    for (i, pod) in pods.iter().enumerate() {
        case.link(pod, i as u64);
        case.apply(pod);
    }
    case
}

fn to(pod: &str, link: u64) -> Result<PodRoute, NoPodRoute> {
    Ok(PodRoute {
        link: LinkId(link),
        pod: Key::new("shop", pod),
        claim_id: "uid-web-a/8080/tcp".into(),
    })
}

/// Where alice's connections go, unless the agents of some links take no dials.
fn route(case: &Case, deaf: &[u64]) -> Result<PodRoute, NoPodRoute> {
    let takes_dials = |link: LinkId| !deaf.contains(&link.0);
    let world = &case.world;
    world.pod_route("alice-1", "uid-web-a", 9901, takes_dials)
}

#[test]
fn sessions_reach_listed_ports_of_their_own_engagements_alone() {
    let case = engaged(&["web-1"]);
    let claims = &case.world.slots["uid-web-1"].claims().claims;
    assert_eq!(claims[0].pod_ports, [9901]);
    let route = |session, uid, port| case.world.pod_route(session, uid, port, |_| true);
    assert_eq!(route("alice-1", "uid-web-a", 9901), to("web-1", 0));
    let other = route("alice-1", "uid-web-a", 8080);
    assert_eq!(other, Err(NoPodRoute::NotListed(8080)));
    let not_alices = route("bob-1", "uid-web-a", 9901);
    assert_eq!(not_alices, Err(NoPodRoute::NoEngagement));
    let gone = route("alice-1", "uid-web-b", 9901);
    assert_eq!(gone, Err(NoPodRoute::NoEngagement));
}

#[test]
fn the_oldest_pod_is_reached_while_it_is_covered() {
    let mut case = engaged(&["web-2", "web-3"]);
    assert_eq!(route(&case, &[]), to("web-2", 0));
    // One that comes later does not take over, whatever its name.
    let mut later = running("web-1", 7);
    later.created = epoch() + SignedDuration::from_secs(60);
    case.send(Event::Pods(Change::Applied(later)));
    case.link("web-1", 7);
    case.apply("web-1");
    assert_eq!(route(&case, &[]), to("web-2", 0));
    case.send(Event::Pods(Change::Deleted(running("web-2", 0))));
    assert_eq!(route(&case, &[]), to("web-3", 1));
    case.send(Event::Pods(Change::Deleted(running("web-3", 1))));
    assert_eq!(route(&case, &[]), to("web-1", 7));
}

#[test]
fn an_agent_that_takes_no_dials_is_passed_over_for_one_that_does() {
    let case = engaged(&["web-1", "web-2"]);
    assert_eq!(route(&case, &[0]), to("web-2", 1));
    // Nothing of that is remembered.
    assert_eq!(route(&case, &[]), to("web-1", 0));
    let nobody = route(&case, &[0, 1]);
    assert!(matches!(nobody, Err(NoPodRoute::NoPod(_))), "{nobody:?}");
}

#[test]
fn no_pod_is_reached_whose_agent_is_not_there() {
    let mut case = engaged(&["web-1"]);
    case.send(Event::AgentUnlinked {
        pod_uid: "uid-web-1".into(),
        link: LinkId(0),
    });
    let route = route(&case, &[]);
    assert!(matches!(route, Err(NoPodRoute::NoPod(_))), "{route:?}");
}
