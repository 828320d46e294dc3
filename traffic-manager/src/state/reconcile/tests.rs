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

mod in_pod;
mod reads;
mod replaces;

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
fn engagement_that_ends_tls_is_active_only_with_a_certificate_until_it_is_another_one() {
    let mut case = Case::new(&["web-1"]);
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.terminates_tls = true;
    case.send(Event::Engagements(Change::Applied(view.clone())));
    let mut effects = case.send(Event::WorkloadResolved {
        engagement: view.key.clone(),
        uid: view.uid.clone(),
        resolution: selector("app", "web"),
    });
    effects.extend(case.link("web-1", 1));
    assert!(
        sent_ports(&effects)
            .iter()
            .all(|(_, ports)| ports.is_empty())
    );
    case.assert_active("web-a", "False", condition::NO_TLS_IDENTITY);

    let identity = TlsIdentity {
        certificates: "certificates".into(),
        key: "hushed".into(),
    };
    let given = |uid: &str| Event::TlsGiven {
        engagement: view.key.clone(),
        uid: uid.into(),
        identity: identity.clone(),
    };
    assert!(case.send(given("uid-of-another")).is_empty());
    case.send(given(&view.uid));
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
    let claims = &case.world.slots["uid-web-1"].claims().claims;
    assert_eq!(claims[0].tls.as_ref(), Some(&identity));
    assert!(!format!("{:?}", case.world).contains("hushed"));

    // A namesake has none, nor one of who does not end TLS.
    case.send(Event::Engagements(Change::Deleted(view.clone())));
    let mut other = view.clone();
    other.uid = "uid-of-another".into();
    case.send(Event::Engagements(Change::Applied(other)));
    assert!(case.world.slots["uid-web-1"].claims().claims.is_empty());
}

/// An engagement of alice that ends TLS and fails closed, as a traffic manager finds it that
/// was started anew, after the one before wrote this status.
fn restarted(status: EngagementStatus) -> Case {
    let mut case = Case::new(&["web-1", "web-2"]);
    let mut view = engagement("web-a", "alice", 8080, 0);
    view.spec.terminates_tls = true;
    view.spec.on_failure = Some(OnFailure::Unavailable);
    view.status = Some(status);
    case.close("alice", 0);
    case.send(Event::Engagements(Change::Applied(view.clone())));
    case.send(Event::WorkloadResolved {
        engagement: view.key,
        uid: view.uid,
        resolution: selector("app", "web"),
    });
    case.link("web-1", 1);
    case.link("web-2", 2);
    case
}

#[test]
fn engagement_that_ends_tls_keeps_its_claims_over_a_restart_of_the_traffic_manager() {
    let held = EngagementStatus {
        held_since: Some(Time(epoch())),
        ..EngagementStatus::default()
    };
    let mut case = restarted(held);
    let claim = case.world.slots["uid-web-2"].claims().claims[0].clone();
    assert!(claim.keeps_tls && claim.fails_closed && claim.tls.is_none());
    // One agent has it from before, and another one was started meanwhile.
    case.apply("web-1");
    case.apply_without("web-2", &[], &[&claim.id]);
    case.assert_active("web-a", "False", condition::SESSION_ABSENT);
    let message = |case: &Case| case.status("web-a").conditions[1].message.clone();
    let waits = "1 pod has no certificate and key for TLS until alice's session gives them \
                 again: web-2";
    assert!(
        message(&case).ends_with(&format!(", and {waits}")),
        "{}",
        message(&case)
    );
    // Nobody takes the port meanwhile.
    case.engage("web-b", "bob", 8080);
    case.assert_active("web-b", "False", condition::CONFLICT);

    case.open("alice", 3);
    case.assert_active("web-a", "False", condition::NO_TLS_IDENTITY);
    assert_eq!(message(&case), waits);
    assert_eq!(case.status("web-a").pods_covered, 1);
    let given = case.send(Event::TlsGiven {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        identity: TlsIdentity {
            certificates: "certificates".into(),
            key: "key".into(),
        },
    });
    assert_eq!(sent_ports(&given).len(), 2);
    assert!(!case.world.slots["uid-web-2"].claims().claims[0].keeps_tls);
    case.apply("web-1");
    case.apply("web-2");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn engagement_that_has_never_had_a_key_has_no_claims_after_a_restart() {
    let case = restarted(EngagementStatus::default());
    assert!(case.world.slots["uid-web-1"].claims().claims.is_empty());
    case.assert_active("web-a", "False", condition::NO_TLS_IDENTITY);
}

#[test]
fn engagement_whose_laptop_was_gone_for_long_keeps_its_claims_over_a_restart_as_well() {
    let absent = Condition {
        type_: condition::ACTIVE.into(),
        status: "False".into(),
        reason: condition::SESSION_ABSENT.into(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(epoch()),
    };
    let mut case = restarted(EngagementStatus {
        conditions: vec![absent],
        ..EngagementStatus::default()
    });
    assert!(case.world.slots["uid-web-1"].claims().claims[0].keeps_tls);
    // Until somebody else has the port.
    case.engage("web-b", "bob", 8080);
    let claims = &case.world.slots["uid-web-1"].claims().claims;
    assert!(claims.iter().all(|claim| claim.is_of("uid-web-b")));
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
fn claims_are_withdrawn_when_the_session_leaves_and_return_with_it() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    let effects = case.close("alice", 0);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![])]);
    case.assert_active("web-a", "False", condition::SESSION_ABSENT);
    assert_eq!(case.status("web-a").pods_covered, 0);

    let effects = case.open("alice", 7);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![8080])]);
    case.assert_active("web-a", "False", condition::PROGRESSING);
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn a_port_is_kept_for_a_laptop_that_is_gone_for_a_short_time_and_no_longer() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    case.second = 5;
    let gone = case.close("alice", 0);
    assert_eq!(sent_ports(&gone), [(LinkId(1), vec![])], "the app answers");
    case.second = 6;
    case.engage("web-b", "bob", 8080);
    case.assert_active("web-b", "False", condition::CONFLICT);
    case.second = 10;
    case.send(Event::Tick);
    assert_eq!(case.world.deadline(), Some(case.clock.at(15).instant));
    case.second = 15;
    let effects = case.send(Event::Tick);
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![8080])]);
    case.apply("web-1");
    case.assert_active("web-b", "True", condition::READY);
    case.assert_active("web-a", "False", condition::SESSION_ABSENT);
    case.second = 20;
    let effects = case.open("alice", 7);
    assert!(sent_ports(&effects).is_empty(), "bob keeps it");
    case.assert_active("web-a", "False", condition::CONFLICT);
    case.assert_active("web-b", "True", condition::READY);
    let gone = engagement("web-b", "bob", 8080, 6);
    case.send(Event::Engagements(Change::Deleted(gone)));
    case.apply("web-1");
    case.assert_active("web-a", "True", condition::READY);
}

#[test]
fn a_session_that_stays_away_is_deleted_with_its_engagements() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.engage("web-b", "bob", 9090);
    case.close("alice", 0);
    case.second = 29;
    let early = case.send(Event::Tick);
    assert!(
        !early
            .iter()
            .any(|effect| matches!(effect, Effect::DeleteSession { .. }))
    );
    case.second = 30;
    let effects = case.send(Event::Tick);
    assert!(effects.contains(&Effect::DeleteEngagement {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
    }));
    assert!(effects.contains(&Effect::DeleteSession {
        session: Key::new("kvpn", "alice-1"),
        uid: "uid-alice-1".into(),
    }));
    let deletions = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::DeleteEngagement { .. }));
    assert_eq!(deletions.count(), 1, "bob's stays");
}

#[test]
fn an_engagement_without_a_session_is_deleted_after_the_grace() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "carol", 8080);
    case.assert_active("web-a", "False", condition::NO_SESSION);
    let deletes = |effects: &[Effect]| {
        let deletion = Effect::DeleteEngagement {
            engagement: Key::new("shop", "web-a"),
            uid: "uid-web-a".into(),
        };
        effects.contains(&deletion)
    };
    case.second = 29;
    assert!(!deletes(&case.send(Event::Tick)));
    assert_eq!(case.world.deadline(), Some(case.clock.at(30).instant));
    case.second = 30;
    assert!(deletes(&case.send(Event::Tick)));
    assert!(!deletes(&case.send(Event::Tick)), "it was asked for");
    case.second = 60;
    assert!(deletes(&case.send(Event::Tick)), "it did not come about");
}

#[test]
fn a_deleted_session_ends_its_connections_and_its_claims() {
    let mut case = Case::new(&["web-1"]);
    case.engage("web-a", "alice", 8080);
    case.link("web-1", 1);
    case.apply("web-1");
    let gone = session("alice-1", "alice");
    let effects = case.send(Event::Sessions(Change::Deleted(gone)));
    assert!(effects.contains(&Effect::RevokeSession {
        uid: "uid-alice-1".into(),
        deletion: None,
    }));
    assert_eq!(sent_ports(&effects), [(LinkId(1), vec![])]);
    case.assert_active("web-a", "False", condition::NO_SESSION);
}

#[test]
fn a_session_is_revoked_with_who_deleted_it() {
    let mut case = Case::new(&[]);
    let deletion = Deletion {
        uid: "uid-alice-1".into(),
        owner: "alice".into(),
        by: "bob".into(),
        is_trial: false,
    };
    let now = case.clock.at(case.second);
    case.world.note_deletion(deletion.clone(), &now);
    case.second += 1;
    let gone = session("alice-1", "alice");
    let effects = case.send(Event::Sessions(Change::Deleted(gone)));
    assert!(effects.contains(&Effect::RevokeSession {
        uid: "uid-alice-1".into(),
        deletion: Some(deletion),
    }));
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
