//! Ports of the pods' localhost that sessions reach.

use super::*;
use crate::state::in_pod::{NoPodRoute, PodRoute};

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
    })
}

#[test]
fn sessions_reach_listed_ports_of_their_own_engagements_alone() {
    let mut case = engaged(&["web-1"]);
    let claims = &case.world.slots["uid-web-1"].claims().claims;
    assert_eq!(claims[0].pod_ports, [9901]);
    let mut route = |session, uid, port| case.world.pod_route(session, uid, port);
    assert_eq!(route("alice-1", "uid-web-a", 9901), to("web-1", 0));
    let other = route("alice-1", "uid-web-a", 8080);
    assert_eq!(other, Err(NoPodRoute::NotListed(8080)));
    let not_alices = route("bob-1", "uid-web-a", 9901);
    assert_eq!(not_alices, Err(NoPodRoute::NoEngagement));
    let gone = route("alice-1", "uid-web-b", 9901);
    assert_eq!(gone, Err(NoPodRoute::NoEngagement));
}

#[test]
fn the_same_pod_is_reached_while_it_is_covered() {
    let mut case = engaged(&["web-2", "web-3"]);
    let route = |case: &mut Case| case.world.pod_route("alice-1", "uid-web-a", 9901);
    assert_eq!(route(&mut case), to("web-2", 0));
    // One that comes later does not take over, whatever its name.
    case.send(Event::Pods(Change::Applied(running("web-1", 7))));
    case.link("web-1", 7);
    case.apply("web-1");
    assert_eq!(route(&mut case), to("web-2", 0));
    case.send(Event::Pods(Change::Deleted(running("web-2", 0))));
    assert_eq!(route(&mut case), to("web-1", 7));
}

#[test]
fn no_pod_is_reached_whose_agent_is_not_there() {
    let mut case = engaged(&["web-1"]);
    case.send(Event::AgentUnlinked {
        pod_uid: "uid-web-1".into(),
        link: LinkId(0),
    });
    let route = case.world.pod_route("alice-1", "uid-web-a", 9901);
    assert!(matches!(route, Err(NoPodRoute::NoPod(_))), "{route:?}");
}
