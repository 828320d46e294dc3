//! The whole state from event to effect.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kvpn_proto::crd::{EngagementStatus, OnFailure, Verb, WorkloadKind, condition};
use kvpn_proto::tls::TlsIdentity;

use super::*;
use crate::state::pods::Phase;
use crate::state::testing::{Clock, agent_container, engagement, epoch, pod, selector, session};
use crate::state::{
    AgentRejected, Caller, Change, Deletion, EngagementView, Event, LinkId, Settings, StreamId,
};

mod births;
mod in_pod;
mod reads;
mod replaces;
mod sessions;
mod tls;

const IMAGE: &str = "agent:1";
const CONTAINER: &str = "kvpn-agent-abcde";

/// A world with alice's and bob's sessions, present, and pods of `web`.
struct Case {
    clock: Clock,
    second: u64,
    world: World,
}

impl Case {
    fn new(pods: &[&str]) -> Self {
        let world = World::new(Settings {
            grace: Duration::from_secs(30),
            idle: Duration::from_secs(10),
            linger: Duration::from_secs(5),
            has_births: true,
            agent_image: IMAGE.into(),
            manager: Key::new("kvpn", "traffic-manager-0"),
        });
        let mut case = Self {
            clock: Clock::start(),
            second: 0,
            world,
        };
        for (i, name) in pods.iter().enumerate() {
            case.send(Event::Pods(Change::Applied(running(name, i))));
        }
        for (i, user) in ["alice", "bob"].into_iter().enumerate() {
            let session = session(&format!("{user}-1"), user);
            case.send(Event::Sessions(Change::Applied(session)));
            case.open(user, i as u64);
        }
        case.send(Event::Synced);
        case
    }

    fn send(&mut self, event: Event) -> Vec<Effect> {
        let now = self.clock.at(self.second);
        self.world.handle(event, &now)
    }

    fn open(&mut self, user: &str, stream: u64) -> Vec<Effect> {
        self.send(Event::SessionOpened {
            uid: format!("uid-{user}-1"),
            stream: StreamId(stream),
        })
    }

    fn close(&mut self, user: &str, stream: u64) -> Vec<Effect> {
        self.send(Event::SessionClosed {
            uid: format!("uid-{user}-1"),
            stream: StreamId(stream),
        })
    }

    /// Creates an engagement and resolves its workload.
    fn engage(&mut self, name: &str, user: &str, port: u16) -> Vec<Effect> {
        let view = engagement(name, user, port, self.second as i64);
        self.send(Event::Engagements(Change::Applied(view)));
        self.send(Event::WorkloadResolved {
            engagement: Key::new("shop", name),
            uid: format!("uid-{name}"),
            resolution: selector("app", "web"),
        })
    }

    fn link(&mut self, pod: &str, link: u64) -> Vec<Effect> {
        self.send(Event::AgentLinked {
            pod_uid: format!("uid-{pod}"),
            link: LinkId(link),
            container: CONTAINER.into(),
        })
    }

    /// The agent of a pod applies what it was told last.
    fn apply(&mut self, pod: &str) -> Vec<Effect> {
        self.apply_but(pod, &[])
    }

    /// It does, but these containers are not stopped, for that reason.
    fn apply_but(&mut self, pod: &str, not_stopped: &[(&str, &str)]) -> Vec<Effect> {
        self.apply_without(pod, not_stopped, &[])
    }

    /// It does, and has nothing to end TLS with for these claims either.
    fn apply_without(
        &mut self,
        pod: &str,
        not_stopped: &[(&str, &str)],
        without_tls: &[&str],
    ) -> Vec<Effect> {
        let slot = &self.world.slots[&format!("uid-{pod}")];
        let (link, generation) = (slot.link().unwrap(), slot.claims().generation);
        self.send(Event::AgentApplied {
            pod_uid: format!("uid-{pod}"),
            link,
            generation,
            not_stopped: not_stopped
                .iter()
                .map(|(container, why)| ((*container).into(), (*why).into()))
                .collect(),
            without_tls: without_tls.iter().map(|id| (*id).into()).collect(),
        })
    }

    fn status(&self, name: &str) -> &EngagementStatus {
        &self.world.engagements[&Key::new("shop", name)].written
    }

    fn active(&self, name: &str) -> (String, String) {
        let conditions = &self.status(name).conditions;
        let active = conditions
            .iter()
            .find(|c| c.type_ == condition::ACTIVE)
            .unwrap();
        (active.status.clone(), active.reason.clone())
    }

    fn assert_active(&self, name: &str, status: &str, reason: &str) {
        assert_eq!(self.active(name), (status.into(), reason.into()));
    }
}

fn running(name: &str, i: usize) -> PodView {
    pod("shop", name, &format!("10.1.0.{}", i + 1))
}

fn sent_ports(effects: &[Effect]) -> Vec<(LinkId, Vec<u16>)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::SendClaims { link, claims } => {
                let ports = claims.claims.iter().map(|claim| claim.container_port);
                Some((*link, ports.collect()))
            }
            Effect::EndLink { .. }
            | Effect::AddAgent { .. }
            | Effect::AddHolder { .. }
            | Effect::AddReader { .. }
            | Effect::DismissReader { .. }
            | Effect::ResolveWorkload { .. }
            | Effect::WriteEngagement { .. }
            | Effect::WriteSession { .. }
            | Effect::DeleteEngagement { .. }
            | Effect::DeleteSession { .. }
            | Effect::WriteWebhooks(_)
            | Effect::RevokeSession { .. } => None,
        })
        .collect()
}

fn added(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::AddAgent { pod, .. } => Some(&*pod.name),
            Effect::SendClaims { .. }
            | Effect::AddHolder { .. }
            | Effect::AddReader { .. }
            | Effect::DismissReader { .. }
            | Effect::EndLink { .. }
            | Effect::ResolveWorkload { .. }
            | Effect::WriteEngagement { .. }
            | Effect::WriteSession { .. }
            | Effect::DeleteEngagement { .. }
            | Effect::DeleteSession { .. }
            | Effect::WriteWebhooks(_)
            | Effect::RevokeSession { .. } => None,
        })
        .collect()
}

#[test]
fn an_engagement_is_active_only_when_every_pod_has_applied_its_claims() {
    let mut case = Case::new(&["web-1", "web-2"]);
    let effects = case.engage("web-a", "alice", 8080);
    assert_eq!(added(&effects), ["web-1", "web-2"]);
    case.assert_active("web-a", "False", condition::PROGRESSING);

    let effects = case.link("web-1", 1);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![8080])]);
    case.link("web-2", 2);
    case.assert_active("web-a", "False", condition::PROGRESSING);
    case.apply("web-1");
    case.assert_active("web-a", "False", condition::PROGRESSING);
    assert_eq!(case.status("web-a").pods_covered, 1);

    let effects = case.apply("web-2");
    case.assert_active("web-a", "True", condition::READY);
    assert_eq!(case.status("web-a").pods_selected, 2);
    assert_eq!(case.status("web-a").pods_covered, 2);
    assert!(matches!(effects[..], [Effect::WriteEngagement { .. }]));
    assert!(
        case.send(Event::Tick).is_empty(),
        "nothing is written twice"
    );
}

#[test]
fn a_pod_that_joins_later_gets_an_agent_and_ends_active_meanwhile() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);

    let effects = case.send(Event::Pods(Change::Applied(running("web-2", 1))));
    assert_eq!(added(&effects), ["web-2"]);
    case.assert_active("web-a", "False", condition::PROGRESSING);
    case.link("web-2", 2);
    case.apply("web-2");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn claims_of_a_pod_are_the_union_of_its_engagements() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    let effects = case.engage("web-b", "bob", 9090);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![8080, 9090])]);
    assert!(added(&effects).is_empty(), "the agent is used again");
    case.assert_active("web-a", "True", condition::READY);
    case.assert_active("web-b", "False", condition::PROGRESSING);
    case.apply("web-1");
    case.assert_active("web-b", "True", condition::READY);
}

#[test]
fn a_deleted_engagement_takes_its_claims_with_it_at_once() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    let view = engagement("web-a", "alice", 8080, 0);
    let effects = case.send(Event::Engagements(Change::Deleted(view)));
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![])]);
}

#[test]
fn deletions_are_asked_about_while_there_is_something_to_delete() {
    let mut case = Case::new(&[]);
    case.world = World::new(case.world.settings.clone());
    let told = |effects: &[Effect]| {
        let mut told = Vec::new();
        for effect in effects {
            if let Effect::WriteWebhooks(questions) = effect {
                told.push(questions.deletions);
            }
        }
        told
    };
    assert_eq!(told(&case.send(Event::Synced)), [false]);
    let alices = session("alice-1", "alice");
    let view = engagement("web-a", "alice", 8080, 0);
    let opened = case.send(Event::Sessions(Change::Applied(alices.clone())));
    assert_eq!(told(&opened), [true]);
    let none: [bool; 0] = [];
    let engaged = case.send(Event::Engagements(Change::Applied(view.clone())));
    assert_eq!(told(&engaged), none);
    let closed = case.send(Event::Sessions(Change::Deleted(alices)));
    assert_eq!(told(&closed), none, "an engagement is left");
    let left = case.send(Event::Engagements(Change::Deleted(view)));
    assert_eq!(told(&left), [false]);
}

#[test]
fn after_a_restart_nothing_is_decided_before_all_is_listed() {
    let mut case = Case::new(&[]);
    case.world = World::new(case.world.settings.clone());
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.status = Some(EngagementStatus::default());
    let effects = case.send(Event::Engagements(Change::Listed {
        namespace: None,
        items: vec![view],
    }));
    assert!(effects.is_empty());
    case.send(Event::Sessions(Change::Listed {
        namespace: Some("kvpn".into()),
        items: vec![session("alice-1", "alice")],
    }));
    case.send(Event::Pods(Change::Listed {
        namespace: None,
        items: vec![running("web-1", 0)],
    }));
    assert_eq!(case.world.deadline(), None);
    let effects = case.send(Event::Synced);
    assert!(
        matches!(effects[0], Effect::ResolveWorkload { .. }),
        "{effects:?}"
    );
    let deadline = |case: &Case, second| {
        let at = case.clock.at(second).instant;
        assert_eq!(case.world.deadline(), Some(at), "it counts from the start");
    };
    deadline(&case, 10);
    case.second = 10;
    case.send(Event::Tick);
    deadline(&case, 30);
}

#[test]
fn a_refused_agent_is_told_in_the_api_servers_words() {
    let mut case = Case::new(&["web-1", "web-2"]);
    case.engage("web-a", "alice", 8080);
    case.send(Event::AgentRefused {
        pod_uid: "uid-web-2".into(),
        message: "violates PodSecurity \"restricted:latest\"".into(),
    });
    case.assert_active("web-a", "False", condition::AGENT_REFUSED);
    let message = &case.status("web-a").conditions[0].message;
    assert_eq!(
        message,
        "pod web-2: violates PodSecurity \"restricted:latest\""
    );
}

#[test]
fn an_agent_that_only_running_pods_are_refused_needs_a_roll_out() {
    let reason = |change: fn(&mut EngagementView), has_births: bool| {
        let mut case = Case::new(&["web-1"]);
        case.world.settings.has_births = has_births;
        let mut view = engagement("web-a", "alice", 8080, 0);
        change(&mut view);
        case.send(Event::Engagements(Change::Applied(view)));
        case.send(Event::WorkloadResolved {
            engagement: Key::new("shop", "web-a"),
            uid: "uid-web-a".into(),
            resolution: selector("app", "web"),
        });
        case.send(Event::AgentRefused {
            pod_uid: "uid-web-1".into(),
            message: "ephemeral containers are forbidden".into(),
        });
        case.active("web-a").1
    };
    assert_eq!(reason(|_| (), true), condition::ROLL_OUT_NEEDED);
    assert_eq!(reason(|_| (), false), condition::AGENT_REFUSED);
    let of_kind = |view: &mut EngagementView| view.spec.workload.kind = WorkloadKind::ReplicaSet;
    assert_eq!(reason(of_kind, true), condition::AGENT_REFUSED);
}

#[test]
fn claims_that_an_agent_cannot_apply_are_its_failure() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    let generation = case.world.slots["uid-web-1"].claims().generation;
    case.send(Event::AgentApplyFailed {
        pod_uid: "uid-web-1".into(),
        link: LinkId(1),
        generation,
        detail: "no nftables".into(),
    });
    case.assert_active("web-a", "False", condition::AGENT_FAILED);
}

#[test]
fn a_transition_keeps_its_time_until_the_status_turns() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.second = 1;
    case.link("web-1", 1);
    let since = |case: &Case| {
        let conditions = &case.status("web-a").conditions;
        [0, 1].map(|i| conditions[i].last_transition_time.0)
    };
    let (start, later) = (case.clock.at(0).wall, case.clock.at(1).wall);
    assert_eq!(since(&case), [later, start]);
    case.second = 2;
    case.apply("web-1");
    assert_eq!(since(&case), [later, case.clock.at(2).wall]);
}

#[test]
fn agents_are_known_by_address_and_container() {
    let mut case = Case::new(&[]);
    let mut web = running("web-1", 0);
    web.agents.push(agent_container(CONTAINER, IMAGE));
    case.send(Event::Pods(Change::Applied(web)));
    let (here, there): (IpAddr, IpAddr) =
        ("10.1.0.1".parse().unwrap(), "10.1.0.9".parse().unwrap());
    let key = Key::new("shop", "web-1");
    let identify =
        |case: &Case, ip, container| case.world.identify_agent(&Caller::Address(ip), container);
    assert_eq!(
        identify(&case, here, CONTAINER),
        Ok(("uid-web-1".into(), key.clone()))
    );
    assert_eq!(
        identify(&case, there, CONTAINER),
        Err(AgentRejected::NoPod(Caller::Address(there)))
    );
    assert_eq!(
        identify(&case, here, "kvpn-agent-other"),
        Err(AgentRejected::NoContainer(
            key.clone(),
            "kvpn-agent-other".into()
        ))
    );
}

#[test]
fn agents_are_expected_only_where_one_was_brought() {
    let mut case = Case::new(&["web-1", "web-2"]);
    let mut web = running("web-2", 1);
    web.agents.push(agent_container(CONTAINER, IMAGE));
    case.send(Event::Pods(Change::Applied(web)));
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(!case.world.expects_agent(ip("10.1.0.1")));
    assert!(case.world.expects_agent(ip("10.1.0.2")));
    assert!(!case.world.expects_agent(ip("10.1.0.9")), "no pod is there");
    case.engage("web-a", "alice", 8080);
    assert!(
        case.world.expects_agent(ip("10.1.0.1")),
        "one is on its way"
    );
}

#[test]
fn a_port_that_is_named_twice_is_claimed_once() {
    let mut case = Case::new(&["web-1"]);
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.ports.push(view.spec.ports[0].clone());
    case.send(Event::Engagements(Change::Applied(view)));
    case.send(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });
    let effects = case.link("web-1", 1);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![8080])]);
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn a_claim_leads_to_its_session_only_from_its_own_pod() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    let at = |ip: &str| Caller::Address(ip.parse().unwrap());
    let ip = at("10.1.0.1");
    let id = "uid-web-a/8080/tcp";
    assert_eq!(case.world.route(&ip, id), None, "no agent is connected");
    case.link("web-1", 1);
    let route = case.world.route(&ip, id).unwrap();
    assert_eq!(route.session_uid, "uid-alice-1");
    assert_eq!(route.container_port, 8080);
    assert_eq!(
        case.world.dial_stream(&route.session_uid),
        Some(StreamId(0))
    );
    assert_eq!(case.world.route(&at("10.1.0.2"), id), None);
    assert_eq!(case.world.route(&ip, "uid-web-a/9090/tcp"), None);
}

#[test]
fn the_agent_of_a_pod_that_is_gone_is_let_go() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    let effects = case.send(Event::Pods(Change::Deleted(running("web-1", 0))));
    assert!(effects.contains(&Effect::EndLink { link: LinkId(1) }));
    case.assert_active("web-a", "False", condition::NO_RUNNING_POD);
}
