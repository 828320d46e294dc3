//! What an Engagement's status means: still on its way, in force, or failed
//! and why.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kvpn_proto::crd::{EngagedPort, Engagement, Verb, condition};
use kvpn_proto::filter::{self, Filter, HttpFilter};
use kvpn_proto::flow::Protocol;
use kvpn_proto::{Failure, Reason};

use crate::session::workloads::no_running_pod;

/// What was last seen of an Engagement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observed {
    pub(super) progress: Progress,
    /// Whether the environment can be read that it asks for.
    pub(super) environment: Progress,
    pub(super) pods_selected: u32,
    pub(super) pods_covered: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Waiting {
        message: String,
        agents_ready: bool,
    },
    Active,
    Failed(Failure),
    /// The agent is refused to running pods, and may be had by new ones.
    RollOutNeeded(Failure),
    /// The resource is gone.
    Gone {
        /// Who has deleted it, as the user is told; absent when nobody knows.
        by: Option<String>,
    },
}

impl Default for Observed {
    fn default() -> Self {
        let waiting = Progress::Waiting {
            message: "waiting for the traffic manager".to_owned(),
            agents_ready: false,
        };
        Self {
            progress: waiting.clone(),
            environment: waiting,
            pods_selected: 0,
            pods_covered: 0,
        }
    }
}

impl Observed {
    pub(super) fn gone(by: Option<String>) -> Self {
        Self {
            progress: Progress::Gone { by: by.clone() },
            environment: Progress::Gone { by },
            pods_selected: 0,
            pods_covered: 0,
        }
    }
}

/// Reads the conditions.
pub(super) fn observe(engagement: &Engagement) -> Observed {
    let Some(status) = &engagement.status else {
        return Observed::default();
    };
    let find = |type_: &str| status.conditions.iter().find(|found| found.type_ == type_);
    let (active, agents) = (find(condition::ACTIVE), find(condition::AGENTS_READY));
    let agents_ready = agents.is_some_and(|agents| agents.status == "True");
    let progress = if active.is_some_and(|active| active.status == "True") {
        Progress::Active
    } else {
        let failed = [active, agents]
            .into_iter()
            .flatten()
            .filter(|condition| condition.status != "True")
            .find_map(|condition| {
                let (verb, why) = (engagement.spec.verb, &condition.message);
                let failure = failure(engagement, verb, &condition.reason, why)?;
                Some((&*condition.reason, failure))
            });
        match failed {
            Some((condition::ROLL_OUT_NEEDED, failure)) => Progress::RollOutNeeded(failure),
            Some((_, failure)) => Progress::Failed(failure),
            None => waiting(
                [agents, active]
                    .into_iter()
                    .flatten()
                    .find(|found| found.status != "True"),
                agents_ready,
            ),
        }
    };
    Observed {
        progress,
        environment: environment(engagement, find(condition::READABLE)),
        pods_selected: status.pods_selected,
        pods_covered: status.pods_covered,
    }
}

fn environment(engagement: &Engagement, ready: Option<&Condition>) -> Progress {
    match ready {
        Some(ready) if ready.status == "True" => Progress::Active,
        Some(ready) => {
            // As of one that only reads.
            let failure = failure(engagement, Verb::Ingest, &ready.reason, &ready.message);
            failure.map_or_else(|| waiting(Some(ready), true), Progress::Failed)
        }
        None => Observed::default().environment,
    }
}

fn waiting(pending: Option<&Condition>, agents_ready: bool) -> Progress {
    let message = match pending {
        Some(condition) if !condition.message.is_empty() => condition.message.clone(),
        Some(_) | None if agents_ready => "waiting for the agents to take over the port".to_owned(),
        Some(_) | None => "waiting for agents in the pods".to_owned(),
    };
    Progress::Waiting {
        message,
        agents_ready,
    }
}

/// The failure behind a condition's reason; none for one that passes.
fn failure(engagement: &Engagement, verb: Verb, reason: &str, detail: &str) -> Option<Failure> {
    let workload = &engagement.spec.workload;
    let namespace = engagement.metadata.namespace.as_deref().unwrap_or_default();
    let describe = format!(
        "see `kubectl -n {namespace} describe {}`",
        workload.to_string().to_ascii_lowercase()
    );
    let failure = match reason {
        condition::NO_SUCH_WORKLOAD => Failure::new(
            Reason::NoSuchWorkload,
            format!("there is no {workload} in namespace {namespace} any more"),
            format!("see what there is with `kvpn list -n {namespace}`"),
        ),
        condition::NO_RUNNING_POD => no_running_pod(namespace, workload),
        condition::AGENT_REFUSED => Failure::new(
            Reason::AgentRefused,
            format!("the cluster does not admit the agent into the pods of {workload}: {detail}"),
            format!(
                "ask an administrator to admit ephemeral containers with {} in namespace {namespace} \
                 (a PodSecurity level of privileged, or an exemption)",
                capabilities(verb)
            ),
        ),
        condition::ROLL_OUT_NEEDED => Failure::new(
            Reason::AgentRefused,
            format!(
                "the cluster does not admit the agent into the running pods of {workload}: {detail}"
            ),
            format!(
                "have them made anew once, with the agent from birth, by --rollout, or ask an \
                 administrator to admit ephemeral containers with NET_ADMIN in namespace {namespace}"
            ),
        ),
        condition::AGENT_FAILED if verb == Verb::Ingest => Failure::new(
            Reason::AgentNotReady,
            format!("what {workload} has cannot be read: {detail}"),
            describe,
        ),
        condition::AGENT_FAILED => Failure::new(
            Reason::AgentNotReady,
            format!("the agent does not come up in the pods of {workload}: {detail}"),
            describe,
        ),
        condition::CONFLICT => Failure::new(
            Reason::AlreadyEngaged,
            format!("{workload} is engaged already: {detail}"),
            format!("see by whom with `kvpn list -n {namespace}`, and let them leave it first"),
        ),
        condition::NO_SESSION => Failure::new(
            Reason::SessionRevoked,
            format!("the cluster does not know this session: {detail}"),
            "connect again with `kvpn quit` and `kvpn connect`",
        ),
        condition::NOT_SUPPORTED => Failure::new(
            Reason::NotSupported,
            format!("{workload} cannot be engaged: {detail}"),
            "choose another workload or port",
        ),
        _ => return None,
    };
    Some(failure)
}

/// What the containers that an engagement needs are given, for people.
fn capabilities(verb: Verb) -> &'static str {
    match verb {
        Verb::Intercept | Verb::Wiretap => "NET_ADMIN",
        Verb::Replace => "NET_ADMIN, and others with SYS_PTRACE,",
        Verb::Ingest => "what the container itself has",
    }
}

/// Tells whether engagements with these filters are in each other's way. One that
/// cannot be used takes nothing.
pub(super) fn overlap(one: Option<&HttpFilter>, other: Option<&HttpFilter>) -> bool {
    let compile = |filter: Option<&HttpFilter>| filter.map(Filter::try_from).transpose();
    match (compile(one), compile(other)) {
        (Ok(one), Ok(other)) => filter::overlap(one.as_ref(), other.as_ref()),
        (Err(_), _) | (_, Err(_)) => false,
    }
}

/// That the laptop of an engagement is not connected, and since when, if so.
pub(super) fn absence(engagement: &Engagement) -> Option<&str> {
    let status = engagement.status.as_ref()?;
    let mut conditions = status.conditions.iter();
    let absent = conditions.find(|found| {
        found.type_ == condition::ACTIVE && found.reason == condition::SESSION_ABSENT
    })?;
    Some(&absent.message)
}

fn port_of(port: &EngagedPort) -> (u16, Protocol) {
    (port.container_port, port.protocol)
}

/// Who has the port that `own` did not get, and since when.
pub(super) fn holder<'a>(everyone: &'a [Engagement], own: &Engagement) -> Option<&'a Engagement> {
    everyone
        .iter()
        .filter(|other| other.metadata.name != own.metadata.name)
        .filter(|other| other.spec.workload == own.spec.workload)
        // Copies take nothing away.
        .filter(|other| other.spec.verb != Verb::Wiretap)
        .filter(|other| overlap(other.spec.http.as_ref(), own.spec.http.as_ref()))
        .filter(|other| {
            other.spec.ports.iter().any(|taken| {
                own.spec
                    .ports
                    .iter()
                    .any(|port| port_of(port) == port_of(taken))
            })
        })
        // One whose laptop was gone for too long has nothing.
        .min_by_key(|other| (!is_holding(other), held_since(other).cloned()))
}

fn is_holding(engagement: &Engagement) -> bool {
    let status = engagement.status.as_ref();
    status.is_some_and(|status| status.held_since.is_some())
}

/// Since when an engagement has what it asks for, or when it was made.
pub(super) fn held_since(engagement: &Engagement) -> Option<&Time> {
    let status = engagement.status.as_ref();
    let held = status.and_then(|status| status.held_since.as_ref());
    held.or(engagement.metadata.creation_timestamp.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engagement(conditions: &str) -> Engagement {
        serde_yaml::from_str(&format!(
            "
            apiVersion: kvpn.dev/v1alpha1
            kind: Engagement
            metadata: {{name: web-alice-1, namespace: shop}}
            spec:
              user: alice
              session: alice-1
              verb: Intercept
              workload: {{kind: Deployment, name: web}}
              ports: [{{containerPort: 8080, protocol: TCP, local: '127.0.0.1:1'}}]
            status:
              podsSelected: 3
              podsCovered: 2
              conditions: {conditions}
            "
        ))
        .unwrap()
    }

    fn condition(type_: &str, status: &str, reason: &str, message: &str) -> String {
        format!(
            "{{type: {type_}, status: '{status}', reason: {reason}, message: '{message}', \
             lastTransitionTime: '2026-11-01T10:00:00Z'}}"
        )
    }

    fn progress(conditions: &[String]) -> Progress {
        observe(&engagement(&format!("[{}]", conditions.join(", ")))).progress
    }

    #[test]
    fn an_engagement_nobody_has_looked_at_waits() {
        let mut untouched = engagement("[]");
        untouched.status = None;
        assert_eq!(observe(&untouched), Observed::default());
    }

    #[test]
    fn active_is_active_whatever_the_agents_say() {
        let conditions = [
            condition("AgentsReady", "False", "Progressing", "1 of 3"),
            condition("Active", "True", "Ready", ""),
        ];
        assert_eq!(progress(&conditions), Progress::Active);
    }

    #[test]
    fn progress_tells_the_managers_words() {
        let conditions = [
            condition(
                "AgentsReady",
                "False",
                "Progressing",
                "2 of 3 agents are up",
            ),
            condition("Active", "False", "Progressing", "waiting"),
        ];
        assert_eq!(
            progress(&conditions),
            Progress::Waiting {
                message: "2 of 3 agents are up".into(),
                agents_ready: false
            }
        );
    }

    #[test]
    fn an_absent_session_is_waited_for() {
        let conditions = [condition(
            "Active",
            "False",
            "SessionAbsent",
            "not connected",
        )];
        assert!(matches!(progress(&conditions), Progress::Waiting { .. }));
    }

    #[test]
    fn failures_keep_the_clusters_words() {
        for (reason, expected) in [
            (condition::NO_SUCH_WORKLOAD, Reason::NoSuchWorkload),
            (condition::NO_RUNNING_POD, Reason::NoRunningPod),
            (condition::AGENT_REFUSED, Reason::AgentRefused),
            (condition::AGENT_FAILED, Reason::AgentNotReady),
            (condition::CONFLICT, Reason::AlreadyEngaged),
            (condition::NO_SESSION, Reason::SessionRevoked),
            (condition::NOT_SUPPORTED, Reason::NotSupported),
        ] {
            for type_ in ["AgentsReady", "Active"] {
                let Progress::Failed(failure) =
                    progress(&[condition(type_, "False", reason, "why")])
                else {
                    panic!("{reason} is not a failure");
                };
                assert_eq!(failure.reason, expected);
                assert!(!failure.next_step.is_empty());
            }
        }
        let refused = condition(
            "AgentsReady",
            "False",
            "AgentRefused",
            "violates PodSecurity",
        );
        let Progress::Failed(failure) = progress(&[refused]) else {
            panic!("not failed");
        };
        assert!(failure.message.contains("violates PodSecurity"));
    }

    #[test]
    fn environment_has_a_condition_of_its_own() {
        let environment = |conditions: &[String]| {
            let conditions = format!("[{}]", conditions.join(", "));
            observe(&engagement(&conditions)).environment
        };
        let active = condition("Active", "True", "Ready", "");
        let of = |status, reason| condition("Readable", status, reason, "why");
        assert_eq!(
            environment(&[active.clone(), of("True", "Ready")]),
            Progress::Active
        );
        let waits = environment(&[active.clone(), of("False", "Progressing")]);
        assert!(matches!(waits, Progress::Waiting { message, .. } if message == "why"));
        let refused = [active.clone(), of("False", "AgentRefused")];
        let Progress::Failed(failure) = environment(&refused) else {
            panic!("not failed");
        };
        assert!(failure.next_step.contains("what the container itself has"));
        assert_eq!(progress(&refused), Progress::Active);
        assert!(matches!(environment(&[active]), Progress::Waiting { .. }));
    }

    #[test]
    fn roll_out_is_offered_where_it_helps() {
        for type_ in ["AgentsReady", "Active"] {
            let conditions = [condition(type_, "False", "RollOutNeeded", "pod web-1: no")];
            let Progress::RollOutNeeded(failure) = progress(&conditions) else {
                panic!("{type_}");
            };
            assert_eq!(failure.reason, Reason::AgentRefused);
            assert!(failure.message.contains("pod web-1: no"));
            assert!(failure.next_step.contains("--rollout"));
        }
    }

    #[test]
    fn holder_that_is_absent_is_told_since_when() {
        let absent = "bob\u{2019}s laptop has not been connected since 2026-11-01T10:00:00Z";
        let gone = engagement(&format!(
            "[{}]",
            condition("Active", "False", "SessionAbsent", absent)
        ));
        assert_eq!(absence(&gone), Some(absent));
        let there = engagement(&format!("[{}]", condition("Active", "True", "Ready", "")));
        assert_eq!(absence(&there), None);
    }

    #[test]
    fn what_has_to_be_admitted_depends_on_the_verb() {
        let refused = condition("AgentsReady", "False", "AgentRefused", "no");
        let mut engagement = engagement(&format!("[{refused}]"));
        let mut next_step = |verb| {
            engagement.spec.verb = verb;
            let Progress::Failed(failure) = observe(&engagement).progress else {
                panic!("not failed");
            };
            failure.next_step
        };
        assert!(!next_step(Verb::Intercept).contains("SYS_PTRACE"));
        assert!(next_step(Verb::Replace).contains("SYS_PTRACE"));
    }

    #[test]
    fn pods_are_counted() {
        let observed = observe(&engagement("[]"));
        assert_eq!((observed.pods_selected, observed.pods_covered), (3, 2));
    }

    #[test]
    fn the_holder_of_a_port_is_another_engagement_of_it() {
        let own = engagement("[]");
        let mut other = engagement("[]");
        other.metadata.name = Some("web-bob-1".into());
        other.spec.user = "bob".into();
        let mut elsewhere = other.clone();
        elsewhere.spec.ports[0].container_port = 9;
        let everyone = [own.clone(), elsewhere, other];
        assert_eq!(holder(&everyone, &own).unwrap().spec.user, "bob");
        assert!(holder(&everyone[..2], &own).is_none());
    }

    #[test]
    fn the_holder_is_who_has_it_and_not_who_is_older() {
        let own = engagement("[]");
        let other = |name: &str, created: &str, held: Option<&str>| {
            let time = |text: &str| Time(text.parse().unwrap());
            let mut other = engagement("[]");
            other.metadata.name = Some(name.into());
            other.metadata.creation_timestamp = Some(time(created));
            other.status.as_mut().unwrap().held_since = held.map(time);
            other
        };
        let [first, second, third] =
            ["10:00", "11:00", "12:00"].map(|at| format!("2026-11-01T{at}:00Z"));
        let gone = other("gone", &first, None);
        let has = other("has", &second, Some(&third));
        let everyone = [gone, has];
        let found = holder(&everyone, &own).unwrap();
        assert_eq!(found.metadata.name.as_deref(), Some("has"));
        assert_eq!(held_since(found), Some(&Time(third.parse().unwrap())));
    }
}
