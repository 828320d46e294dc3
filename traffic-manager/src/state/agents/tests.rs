//! An agent comes, fails, returns and applies claims.

use super::*;
use crate::state::claims::Reach;
use crate::state::pods::AgentContainer;
use crate::state::testing::{Clock, pod};
use kvpn_proto::flow::Protocol;

const IMAGE: &str = "agent:1";

struct Case {
    clock: Clock,
    pod: PodView,
    slot: AgentSlot,
}

impl Case {
    fn wanted() -> Self {
        let mut slot = AgentSlot::default();
        slot.want(BTreeSet::from(["e1".to_owned()]));
        Self {
            clock: Clock::start(),
            pod: pod("shop", "web-1", "10.1.0.1"),
            slot,
        }
    }

    fn container(&mut self, name: &str, state: AgentState) {
        self.pod.agents.retain(|agent| agent.name != name);
        self.pod.agents.push(AgentContainer {
            is_sidecar: false,
            name: name.into(),
            image: IMAGE.into(),
            state,
        });
    }

    fn advance(&mut self, seconds: u64) -> bool {
        let now = self.clock.at(seconds).instant;
        self.slot.advance(&self.pod, IMAGE, now)
    }

    fn status(&self) -> AgentStatus {
        self.slot.status("web-1")
    }
}

fn claim(id: &str, port: u16) -> Claim {
    Claim {
        id: id.into(),
        container_port: port,
        protocol: Protocol::Tcp,
        http_probed: false,
        fails_closed: false,
        reach: Reach::Rest,
        stops: None,
        answers_probes: false,
        tls: None,
        keeps_tls: false,
        pod_ports: Vec::new(),
        app_protocol: None,
        copy: false,
    }
}

#[test]
fn one_container_is_added_and_not_a_second_while_it_starts() {
    let mut case = Case::wanted();
    assert!(case.advance(0));
    assert!(!case.advance(0), "the first try is under way");
    case.slot
        .handle_added("kvpn-agent-a".into(), case.clock.at(0).instant);
    case.container("kvpn-agent-a", AgentState::Pending);
    assert!(!case.advance(1));
    assert!(matches!(case.status(), AgentStatus::Progressing(_)));
    case.slot.handle_linked(LinkId(1), "kvpn-agent-a".into());
    assert_eq!(case.status(), AgentStatus::Ready);
    assert!(!case.advance(2));
}

#[test]
fn no_agent_is_added_where_none_is_wanted() {
    let mut case = Case::wanted();
    case.slot.want(BTreeSet::new());
    assert!(!case.advance(0));
    assert_eq!(case.slot.deadline(), None);
}

#[test]
fn a_refusal_is_told_in_its_own_words_and_tried_again_by_a_new_engagement() {
    let mut case = Case::wanted();
    assert!(case.advance(0));
    let at = case.clock.at(0).instant;
    case.slot.handle_refused("violates PodSecurity".into(), at);
    assert_eq!(
        case.status(),
        AgentStatus::Refused("pod web-1: violates PodSecurity".into())
    );
    assert!(!case.advance(1));
    case.slot.want(BTreeSet::from(["e2".to_owned()]));
    assert!(case.advance(1));
}

#[test]
fn a_refusal_is_tried_again_after_a_minute_but_not_for_ever() {
    let mut case = Case::wanted();
    for round in 0..u64::from(MAX_TRIES) {
        assert!(case.advance(round * 60), "{round}");
        let at = case.clock.at(round * 60).instant;
        case.slot.handle_refused("no".into(), at);
    }
    assert!(!case.advance(10_000));
    assert_eq!(case.slot.deadline(), None);
}

#[test]
fn an_agent_that_does_not_call_in_time_has_failed() {
    let mut case = Case::wanted();
    assert!(case.advance(0));
    case.slot
        .handle_added("kvpn-agent-a".into(), case.clock.at(0).instant);
    case.container("kvpn-agent-a", AgentState::Running);
    assert_eq!(case.slot.deadline(), Some(case.clock.at(20).instant));
    assert!(!case.advance(19));
    assert!(matches!(case.status(), AgentStatus::Progressing(_)));
    assert!(!case.advance(20));
    let AgentStatus::Failed(message) = case.status() else {
        panic!("{:?}", case.status());
    };
    assert!(message.contains("within 20 s"), "{message}");
    assert!(
        case.advance(80),
        "the silent container is not waited for again"
    );
}

#[test]
fn an_image_that_cannot_be_pulled_fails_with_the_kubelets_words() {
    let mut case = Case::wanted();
    assert!(case.advance(0));
    case.slot
        .handle_added("kvpn-agent-a".into(), case.clock.at(0).instant);
    let words = "ErrImagePull: not found".to_owned();
    case.container("kvpn-agent-a", AgentState::Stuck(words));
    assert!(!case.advance(1));
    assert_eq!(
        case.status(),
        AgentStatus::Failed("pod web-1: ErrImagePull: not found".into())
    );
    assert!(!case.advance(61), "the kubelet still tries that container");
    case.slot.handle_linked(LinkId(1), "kvpn-agent-a".into());
    assert_eq!(case.status(), AgentStatus::Ready);
}

#[test]
fn what_the_kubelet_says_of_a_container_counts_before_its_status_does() {
    let mut case = Case::wanted();
    assert!(case.advance(0));
    case.slot
        .handle_added("kvpn-agent-a".into(), case.clock.at(0).instant);
    case.container("kvpn-agent-a", AgentState::Pending);
    let words = || "Failed to pull image".to_owned();
    case.slot.handle_stuck("kvpn-agent-b".into(), words());
    assert!(!case.advance(1));
    assert!(matches!(case.status(), AgentStatus::Progressing(_)));
    case.slot.handle_stuck("kvpn-agent-a".into(), words());
    assert!(!case.advance(1));
    let failed = AgentStatus::Failed("pod web-1: Failed to pull image".into());
    assert_eq!(case.status(), failed);
    // Another engagement adds no other container, and is told the same.
    case.slot.want(BTreeSet::from(["e2".to_owned()]));
    assert!(!case.advance(2));
    assert_eq!(case.status(), failed);
    // The kubelet still tries.
    case.slot.handle_linked(LinkId(1), "kvpn-agent-a".into());
    assert_eq!(case.status(), AgentStatus::Ready);
}

#[test]
fn an_agent_that_ends_at_once_has_failed_with_its_exit_code() {
    let mut case = Case::wanted();
    assert!(case.advance(0));
    case.slot
        .handle_added("kvpn-agent-a".into(), case.clock.at(0).instant);
    let words = "Error, exit code 1".to_owned();
    case.container("kvpn-agent-a", AgentState::Terminated(words));
    assert!(!case.advance(1));
    assert_eq!(
        case.status(),
        AgentStatus::Failed("pod web-1: the agent ended: Error, exit code 1".into())
    );
}

#[test]
fn an_agent_that_was_killed_is_replaced_at_once() {
    let mut case = Case::wanted();
    case.container("kvpn-agent-a", AgentState::Running);
    case.slot.handle_linked(LinkId(1), "kvpn-agent-a".into());
    assert!(
        case.slot
            .handle_unlinked(LinkId(1), case.clock.at(5).instant)
    );
    assert!(!case.advance(5), "it may come back");
    let words = "Error, exit code 137".to_owned();
    case.container("kvpn-agent-a", AgentState::Terminated(words));
    assert!(case.advance(6));
}

#[test]
fn agents_that_end_soon_after_their_call_are_not_replaced_for_ever() {
    let mut case = Case::wanted();
    let lose = |case: &mut Case, second: u64| {
        let (link, name) = (LinkId(second), format!("kvpn-agent-{second}"));
        let at = case.clock.at(second).instant;
        case.slot.handle_added(name.clone(), at);
        case.slot.handle_linked(link, name.clone());
        case.slot.handle_unlinked(link, at);
        case.container(&name, AgentState::Terminated("OOMKilled".into()));
    };
    for second in 0..u64::from(MAX_TRIES) {
        assert!(case.advance(second), "{second}");
        lose(&mut case, second);
    }
    assert!(!case.advance(10));
    assert!(matches!(case.status(), AgentStatus::Failed(_)));
    assert_eq!(case.slot.deadline(), None);
    case.slot.want(BTreeSet::from(["e2".to_owned()]));
    assert!(case.advance(11), "another engagement is worth another try");
}

#[test]
fn an_agent_that_lasted_is_always_replaced() {
    let mut case = Case::wanted();
    for round in 0..2 * u64::from(MAX_TRIES) {
        let second = round * 600;
        assert!(case.advance(second), "{round}");
        let (link, name) = (LinkId(round), format!("kvpn-agent-{round}"));
        case.slot
            .handle_added(name.clone(), case.clock.at(second).instant);
        case.slot.handle_linked(link, name.clone());
        let end = case.clock.at(second + 500).instant;
        case.slot.handle_unlinked(link, end);
        case.container(&name, AgentState::Terminated("OOMKilled".into()));
    }
}

#[test]
fn a_running_agent_of_an_earlier_manager_is_waited_for_then_replaced() {
    let mut case = Case::wanted();
    case.container("kvpn-agent-a", AgentState::Running);
    assert!(!case.advance(0));
    assert!(!case.advance(9));
    assert!(case.advance(10));
}

#[test]
fn an_agent_of_another_image_is_not_waited_for() {
    let mut case = Case::wanted();
    case.container("kvpn-agent-a", AgentState::Running);
    case.pod.agents[0].image = "agent:0".into();
    assert!(case.advance(0));
}

#[test]
fn only_the_newest_call_of_an_agent_counts() {
    let mut slot = AgentSlot::default();
    let now = Clock::start().at(0).instant;
    assert_eq!(slot.handle_linked(LinkId(1), "a".into()), None);
    assert_eq!(slot.handle_linked(LinkId(2), "a".into()), Some(LinkId(1)));
    assert!(!slot.handle_unlinked(LinkId(1), now));
    assert_eq!(slot.link(), Some(LinkId(2)));
    assert!(slot.is_linked_elsewhere("b"));
}

#[test]
fn claims_are_in_force_only_once_their_generation_is_applied() {
    let mut slot = AgentSlot::default();
    slot.handle_linked(LinkId(1), "a".into());
    assert!(slot.set_claims(vec![claim("x", 80)]));
    let first = slot.claims().generation;
    assert!(!slot.is_in_force("x"));
    slot.handle_applied(LinkId(1), first - 1, BTreeMap::new(), BTreeSet::new());
    assert!(!slot.is_in_force("x"), "an old answer");
    slot.handle_applied(LinkId(1), first, BTreeMap::new(), BTreeSet::new());
    assert!(slot.is_in_force("x"));

    assert!(slot.set_claims(vec![claim("y", 81), claim("x", 80)]));
    assert_eq!(slot.claims().generation, first + 1);
    assert!(slot.is_in_force("x"), "it was not touched");
    assert!(!slot.is_in_force("y"));
    slot.handle_applied(LinkId(1), first, BTreeMap::new(), BTreeSet::new());
    assert!(!slot.is_in_force("y"), "a late answer");
    slot.handle_applied(LinkId(1), first + 1, BTreeMap::new(), BTreeSet::new());
    assert!(slot.is_in_force("y"));
}

#[test]
fn claim_is_in_force_once_what_it_stops_is_stopped_and_others_before() {
    let mut slot = AgentSlot::default();
    slot.handle_linked(LinkId(1), "a".into());
    let replace = Claim {
        stops: Some("app".into()),
        ..claim("replace", 80)
    };
    slot.set_claims(vec![replace.clone(), claim("intercept", 81)]);
    let generation = slot.claims().generation;
    let not_stopped = BTreeMap::from([("app".to_owned(), "it may not".to_owned())]);
    slot.handle_applied(LinkId(1), generation, not_stopped, BTreeSet::new());
    assert!(slot.is_in_force("intercept") && !slot.is_in_force("replace"));
    assert_eq!(slot.not_stopped("app"), Some("it may not"));
    slot.set_claims(vec![replace]);
    assert!(!slot.is_in_force("replace"), "nothing new is known of it");
    slot.handle_applied(LinkId(1), generation + 1, BTreeMap::new(), BTreeSet::new());
    assert!(slot.is_in_force("replace"));
    assert_eq!(slot.not_stopped("app"), None);
}

#[test]
fn the_same_claims_in_another_order_make_no_new_generation() {
    let mut slot = AgentSlot::default();
    assert!(slot.set_claims(vec![claim("x", 80), claim("y", 81)]));
    assert!(!slot.set_claims(vec![claim("y", 81), claim("x", 80)]));
}

#[test]
fn a_withdrawn_claim_that_returns_must_be_applied_anew() {
    let mut slot = AgentSlot::default();
    slot.handle_linked(LinkId(1), "a".into());
    slot.set_claims(vec![claim("x", 80)]);
    slot.handle_applied(
        LinkId(1),
        slot.claims().generation,
        BTreeMap::new(),
        BTreeSet::new(),
    );
    slot.set_claims(vec![]);
    slot.set_claims(vec![claim("x", 80)]);
    assert!(!slot.is_in_force("x"));
}

#[test]
fn nothing_is_in_force_without_the_agents_call() {
    let mut slot = AgentSlot::default();
    slot.handle_linked(LinkId(1), "a".into());
    slot.set_claims(vec![claim("x", 80)]);
    slot.handle_applied(
        LinkId(1),
        slot.claims().generation,
        BTreeMap::new(),
        BTreeSet::new(),
    );
    slot.handle_unlinked(LinkId(1), Clock::start().at(0).instant);
    slot.handle_linked(LinkId(2), "a".into());
    assert!(
        !slot.is_in_force("x"),
        "the new call has not applied it yet"
    );
}

#[test]
fn a_failure_to_apply_holds_until_the_claims_change() {
    let mut slot = AgentSlot::default();
    slot.handle_linked(LinkId(1), "a".into());
    slot.set_claims(vec![claim("x", 80)]);
    slot.handle_apply_failed(LinkId(1), slot.claims().generation, "no nftables".into());
    assert_eq!(slot.apply_failure(), Some("no nftables"));
    slot.set_claims(vec![claim("y", 80)]);
    assert_eq!(slot.apply_failure(), None);
}
