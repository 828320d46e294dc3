//! Conditions of an engagement.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kvpn_proto::crd::{EngagementStatus, Verb, condition};

use super::agents::{AgentSlot, AgentStatus};
use super::engagements::{EngagementRecord, Laptop, Standing, count, no_running_pod};
use super::pods::Pods;
use super::reading::readiness;
use super::{Claim, Key};

/// How many pods are told by their names.
const MAX_TOLD: usize = 3;

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Says {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Says {
    pub(super) fn yes(message: impl Into<String>) -> Self {
        Self {
            holds: true,
            reason: condition::READY,
            message: message.into(),
        }
    }

    pub(super) fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            holds: false,
            reason,
            message: message.into(),
        }
    }
}

/// The status that an engagement should have.
pub(crate) fn engagement_status(
    record: &EngagementRecord,
    standing: &Standing,
    pods: &Pods,
    slots: &BTreeMap<String, AgentSlot>,
    has_births: bool,
    now: Timestamp,
) -> EngagementStatus {
    let is_ingest = record.view.spec.verb == Verb::Ingest;
    let (agents_ready, active, selected, covered) = match standing {
        Standing::Unclaimed {
            reason,
            message,
            selected,
        } => {
            let says = Says::no(reason, message);
            (says.clone(), says, *selected, 0)
        }
        Standing::Admitted { pods: keys, .. } if keys.is_empty() => {
            let says = Says::no(condition::NO_RUNNING_POD, no_running_pod(record));
            (says.clone(), says, 0, 0)
        }
        Standing::Admitted {
            pods: keys, laptop, ..
        } => {
            let (agents, covered) = match record.view.spec.verb {
                Verb::Ingest => read_by(record, pods, slots),
                Verb::Intercept | Verb::Wiretap | Verb::Replace => {
                    survey(record, keys, pods, slots, has_births)
                }
            };
            let present = laptop.is_present();
            let covered = if present { covered } else { Vec::new() };
            let waiting = waiting_for_tls(record, keys, pods, slots);
            let active = if let Laptop::Away(since) | Laptop::Idle(since) = laptop {
                let user = &record.view.spec.user;
                let mut message = format!("{user}'s laptop has not been connected since {since}");
                if let Some(waiting) = waiting {
                    message = format!("{message}, and {waiting}");
                }
                Says::no(condition::SESSION_ABSENT, message)
            } else if let Some(waiting) = waiting.filter(|_| agents.holds) {
                Says::no(condition::NO_TLS_IDENTITY, waiting)
            } else if !agents.holds || covered.len() == keys.len() || is_ingest {
                agents.clone()
            } else {
                failure_to_apply(record, keys, pods, slots).unwrap_or_else(|| {
                    let message = format!("{} of {} pods covered", covered.len(), keys.len());
                    Says::no(condition::PROGRESSING, message)
                })
            };
            let active = if active.holds && !is_ingest {
                Says::yes(format!(
                    "new connections go to {}'s laptop",
                    record.view.spec.user
                ))
            } else {
                active
            };
            (agents, active, count(keys), count(&covered))
        }
    };
    let condition = |kind: &str, says: Says| {
        let status = if says.holds { "True" } else { "False" };
        let before = record
            .written
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: says.reason.to_owned(),
            message: says.message,
            observed_generation: record.view.observed,
            last_transition_time: before
                .map_or(Time(now), |before| before.last_transition_time.clone()),
        }
    };
    let readable = record.view.spec.reads();
    let readable = readable.then(|| match standing {
        Standing::Unclaimed { .. } => active.clone(),
        Standing::Admitted { .. } => readiness(record, pods, slots),
    });
    let mut conditions = vec![
        condition(condition::AGENTS_READY, agents_ready),
        condition(condition::ACTIVE, active),
    ];
    conditions.extend(readable.map(|says| condition(condition::READABLE, says)));
    EngagementStatus {
        conditions,
        pods_selected: selected,
        pods_covered: covered,
        held_since: record.held_since.map(Time),
    }
}

/// Whether what an ingest reads is there, and the pod that it is read of if so.
fn read_by(
    record: &EngagementRecord,
    pods: &Pods,
    slots: &BTreeMap<String, AgentSlot>,
) -> (Says, Vec<Key>) {
    let says = readiness(record, pods, slots);
    let read = record.reads.iter().filter(|_| says.holds);
    (says.clone(), read.cloned().collect())
}

/// Whether all agents are there, and which pods have the claims in force. Of
/// several troubles the gravest is told.
fn survey(
    record: &EngagementRecord,
    keys: &[Key],
    pods: &Pods,
    slots: &BTreeMap<String, AgentSlot>,
    has_births: bool,
) -> (Says, Vec<Key>) {
    let mut covered = Vec::new();
    let mut trouble: Option<(u8, Says)> = None;
    for key in keys {
        let slot = pods.get(key).and_then(|pod| slots.get(&pod.uid));
        let status = slot.map_or_else(
            || AgentStatus::Progressing(format!("pod {} has no agent yet", key.name)),
            |slot| agent_status(record, slot, &key.name),
        );
        let (gravity, says) = match status {
            AgentStatus::Ready => {
                if slot.is_some_and(|slot| is_covered(record, slot)) {
                    covered.push(key.clone());
                }
                continue;
            }
            AgentStatus::Progressing(message) => (0, Says::no(condition::PROGRESSING, message)),
            AgentStatus::Failed(message) => (1, Says::no(condition::AGENT_FAILED, message)),
            AgentStatus::Refused(message) => {
                let helps = has_births && roll_out_helps(record, &message);
                let reason = match helps {
                    true => condition::ROLL_OUT_NEEDED,
                    false => condition::AGENT_REFUSED,
                };
                (2, Says::no(reason, message))
            }
        };
        if trouble.as_ref().is_none_or(|(worst, _)| gravity > *worst) {
            trouble = Some((gravity, says));
        }
    }
    let all_ready = || {
        Says::yes(format!(
            "{} of {} pods have an agent",
            keys.len(),
            keys.len()
        ))
    };
    (trouble.map_or_else(all_ready, |(_, says)| says), covered)
}

/// Whether pods that are made anew may have the agent that the API server, in these words,
/// refuses to running ones.
fn roll_out_helps(record: &EngagementRecord, words: &str) -> bool {
    let spec = &record.view.spec;
    // It judges both alike, and its words are of its own code
    // (<https://kubernetes.io/docs/concepts/security/pod-security-admission/>).
    let by_pod_security = words.contains("violates PodSecurity");
    // What stops an app can only be added to a pod that runs.
    spec.workload.kind.has_roll_out() && spec.verb != Verb::Replace && !by_pod_security
}

/// How far a pod's agent is, and what stops its app where that is to be.
fn agent_status(record: &EngagementRecord, slot: &AgentSlot, pod: &str) -> AgentStatus {
    let status = slot.status(pod);
    let trouble = |container| slot.holders.trouble(pod, container, "stopped");
    let trouble = stops(record).and_then(trouble);
    trouble
        .filter(|_| status == AgentStatus::Ready)
        .unwrap_or(status)
}

/// The container that an engagement stops.
fn stops(record: &EngagementRecord) -> Option<&str> {
    let spec = &record.view.spec;
    let container = spec.container.as_deref();
    container.filter(|_| spec.verb == Verb::Replace)
}

fn is_covered(record: &EngagementRecord, slot: &AgentSlot) -> bool {
    let view = &record.view;
    view.spec
        .ports
        .iter()
        .all(|port| slot.is_in_force(&Claim::id_of(&view.uid, port.container_port, port.protocol)))
}

/// The pods whose agents have nothing to end TLS with, as the session has not given it since
/// this process was started.
fn waiting_for_tls(
    record: &EngagementRecord,
    keys: &[Key],
    pods: &Pods,
    slots: &BTreeMap<String, AgentSlot>,
) -> Option<String> {
    let view = &record.view;
    let lacks = |slot: &AgentSlot| {
        let mut ports = view.spec.ports.iter();
        ports.any(|port| {
            let id = Claim::id_of(&view.uid, port.container_port, port.protocol);
            slot.lacks_tls(&id)
        })
    };
    let waiting = keys.iter().filter(|key| {
        let slot = pods.get(key).and_then(|pod| slots.get(&pod.uid));
        slot.is_some_and(lacks)
    });
    let names: Vec<&str> = waiting.map(|key| key.name.as_str()).collect();
    let (told, others) = names.split_at(names.len().min(MAX_TOLD));
    let told = told.join(", ");
    let more = match others.len() {
        0 => String::new(),
        others => format!(" and {others} more"),
    };
    let verb = match names.len() {
        0 => return None,
        1 => "pod has",
        _ => "pods have",
    };
    Some(format!(
        "{count} {verb} no certificate and key for TLS until {user}'s session gives them again: \
         {told}{more}",
        count = names.len(),
        user = view.spec.user
    ))
}

fn failure_to_apply(
    record: &EngagementRecord,
    keys: &[Key],
    pods: &Pods,
    slots: &BTreeMap<String, AgentSlot>,
) -> Option<Says> {
    keys.iter().find_map(|key| {
        let slot = pods.get(key).and_then(|pod| slots.get(&pod.uid))?;
        let name = &key.name;
        let message = match (slot.apply_failure(), stops(record)) {
            (Some(why), _) => format!("pod {name}: {why}"),
            (None, Some(container)) => {
                let why = slot.not_stopped(container).filter(|why| !why.is_empty())?;
                format!("pod {name}: container {container} is not stopped: {why}")
            }
            (None, None) => return None,
        };
        Some(Says::no(condition::AGENT_FAILED, message))
    })
}
