//! Pods that are born with an agent, which runs before their app.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use kube::core::{Selector, SelectorExt};

use super::{Change, PodView};

/// How long a pod may take to be seen once it was let through with an agent. The API
/// server asks further policies of it, and may refuse it for its agent's sake.
const SEEN: Duration = Duration::from_secs(2);

/// How long an owner's pods are born without an agent after one of them was not seen.
const WITHOUT: Duration = Duration::from_secs(60);

/// How long it is known that a pod was not seen. Controllers wait up to a thousand seconds
/// before they try again.
const FORGOTTEN: Duration = Duration::from_secs(1_200);

/// How long the watch may take to show a pod that was let through.
const RECENT: Duration = Duration::from_secs(5);

/// Where pods are born that are to have an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nursery {
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    /// Also where no agent has run.
    pub(crate) is_unproven: bool,
}

/// A pod that is about to be created.
#[derive(Clone, Debug)]
pub(crate) struct Newborn {
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// UID of the controller that creates it, else its own name.
    pub(crate) owner: String,
    /// The names of the Secrets that its images are pulled with.
    pub(crate) pull_secrets: BTreeSet<String>,
    /// It is to have one also while nobody engages it.
    pub(crate) is_annotated: bool,
    /// Nothing comes of it.
    pub(crate) is_trial: bool,
}

/// What is known of births.
#[derive(Debug, Default)]
pub(crate) struct Births {
    /// As the API server was last told; none before it is told for the first time.
    expected: Option<Vec<Nursery>>,
    /// Agents of pods that were let through and not seen yet, by owner.
    unseen: HashMap<String, BTreeMap<String, Instant>>,
    /// Until when pods of an owner are born without.
    without: HashMap<String, Instant>,
    /// When the latest was let through.
    latest: Option<Instant>,
    /// Namespaces where an agent runs, or has, with the Secrets that its image was pulled
    /// with: it can be had there, and it works. Where it does not, a pod with one would
    /// never start.
    proven: BTreeMap<String, BTreeSet<BTreeSet<String>>>,
}

impl Births {
    /// Takes note of where births are expected; returns whether that is new.
    pub(super) fn expect(&mut self, nurseries: &[Nursery]) -> bool {
        let is_new = self.expected.as_deref() != Some(nurseries);
        if is_new {
            self.expected = Some(nurseries.to_vec());
        }
        is_new
    }

    /// An agent runs in a pod.
    pub(super) fn prove(&mut self, pod: &PodView) {
        let proven = self.proven.get(&pod.key.namespace);
        if !proven.is_some_and(|proven| proven.contains(&pod.pull_secrets)) {
            let proven = self.proven.entry(pod.key.namespace.clone()).or_default();
            proven.insert(pod.pull_secrets.clone());
        }
    }

    /// Whether an agent has run in a namespace.
    pub(super) fn is_proven(&self, namespace: &str) -> bool {
        self.proven.contains_key(namespace)
    }

    /// Whether one has run there with no Secrets that the pod has not.
    fn is_proven_for(&self, newborn: &Newborn) -> bool {
        let proven = self.proven.get(&newborn.namespace).into_iter().flatten();
        proven
            .into_iter()
            .any(|secrets| secrets.is_subset(&newborn.pull_secrets))
    }

    /// Whether a pod gets an agent of this name. An owner whose pod was let through with
    /// one and did not come about gets its next ones without.
    pub(super) fn deliver(&mut self, newborn: &Newborn, agent: &str, now: Instant) -> bool {
        let nurseries = self.expected.as_deref().unwrap_or_default();
        let is_expected = nurseries.iter().any(|nursery| {
            nursery.namespace == newborn.namespace
                && nursery.selector.matches(&newborn.labels)
                && (nursery.is_unproven || self.is_proven_for(newborn))
        });
        if !is_expected && !newborn.is_annotated {
            return false;
        }
        self.without.retain(|_, until| now < *until);
        self.unseen.retain(|_, agents| {
            agents.retain(|_, since| now < *since + FORGOTTEN);
            !agents.is_empty()
        });
        if self.without.contains_key(&newborn.owner) {
            return false;
        }
        let unseen = self.unseen.get(&newborn.owner);
        if unseen.is_some_and(|agents| agents.values().any(|since| now >= *since + SEEN)) {
            self.unseen.remove(&newborn.owner);
            let until = now + WITHOUT;
            self.without.insert(newborn.owner.clone(), until);
            return false;
        }
        if !newborn.is_trial {
            let agents = self.unseen.entry(newborn.owner.clone()).or_default();
            agents.insert(agent.to_owned(), now);
            self.latest = Some(now);
        }
        true
    }

    /// Whether a pod was let through with an agent of late.
    pub(super) fn are_recent(&self, now: Instant) -> bool {
        self.latest.is_some_and(|at| now < at + RECENT)
    }

    /// Takes note of pods that were seen.
    pub(super) fn handle_pods(&mut self, change: &Change<PodView>) {
        if self.unseen.is_empty() {
            return;
        }
        let pods = match change {
            Change::Listed { items, .. } => items.as_slice(),
            Change::Applied(pod) | Change::Deleted(pod) => std::slice::from_ref(pod),
        };
        let agents = pods.iter().flat_map(|pod| &pod.agents);
        for agent in agents.filter(|agent| agent.is_sidecar) {
            self.unseen.retain(|_, unseen| {
                if let Some(seen) = unseen.remove(&agent.name) {
                    // Those before it have failed for other reasons.
                    unseen.retain(|_, since| *since > seen);
                }
                !unseen.is_empty()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::{agent_container, pod};

    fn newborn() -> Newborn {
        Newborn {
            namespace: "shop".into(),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            owner: "replica-set".into(),
            pull_secrets: BTreeSet::new(),
            is_annotated: false,
            is_trial: false,
        }
    }

    fn expecting() -> Births {
        let mut births = Births::default();
        let nursery = Nursery {
            namespace: "shop".into(),
            selector: [("app".to_owned(), "web".to_owned())].into_iter().collect(),
            is_unproven: false,
        };
        assert!(births.expect(std::slice::from_ref(&nursery)));
        assert!(!births.expect(&[nursery]), "nothing new");
        births.prove(&pod("shop", "web-0", "10.1.0.6"));
        births
    }

    #[test]
    fn pods_get_an_agent_whose_image_they_can_pull() {
        let mut births = expecting();
        let secrets = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let with = |names: &[&str]| Newborn {
            pull_secrets: secrets(names),
            ..newborn()
        };
        let now = Instant::now();
        assert!(births.deliver(&with(&["more"]), "a", now));
        births.proven.clear();
        assert!(!births.deliver(&newborn(), "b", now));
        let mut private = pod("shop", "web-1", "10.1.0.7");
        private.pull_secrets = secrets(&["registry"]);
        births.prove(&private);
        assert!(!births.deliver(&newborn(), "c", now));
        assert!(births.deliver(&with(&["registry", "more"]), "d", now));
    }

    #[test]
    fn pods_of_engaged_workloads_get_an_agent_and_no_others() {
        let mut births = expecting();
        let now = Instant::now();
        assert!(births.deliver(&newborn(), "a", now));
        let elsewhere = Newborn {
            namespace: "other".into(),
            ..newborn()
        };
        assert!(!births.deliver(&elsewhere, "b", now));
        let other = Newborn {
            labels: BTreeMap::new(),
            ..newborn()
        };
        assert!(!births.deliver(&other, "c", now));
        births.expect(&[]);
        assert!(!births.deliver(&newborn(), "d", now));
    }

    #[test]
    fn pods_get_an_agent_that_has_not_run_there_when_somebody_asks_for_it() {
        let mut births = expecting();
        births.proven.clear();
        let now = Instant::now();
        assert!(!births.deliver(&newborn(), "a", now));
        let mut nurseries = births.expected.clone().unwrap();
        nurseries[0].is_unproven = true;
        births.expect(&nurseries);
        assert!(births.deliver(&newborn(), "b", now), "by who rolls it out");
        births.expect(&[]);
        assert!(!births.deliver(&newborn(), "c", now));
        let annotated = Newborn {
            is_annotated: true,
            owner: "another".into(),
            ..newborn()
        };
        assert!(births.deliver(&annotated, "d", now), "by its annotation");
        let later = now + 2 * SEEN;
        assert!(!births.deliver(&annotated, "e", later), "it was refused");
    }

    #[test]
    fn an_owner_whose_pod_does_not_come_about_gets_the_next_ones_without() {
        let mut births = expecting();
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(births.deliver(&newborn(), "a", at(0)));
        assert!(births.deliver(&newborn(), "b", at(10)), "several at once");
        assert!(!births.deliver(&newborn(), "c", at(2_100)));
        assert!(!births.deliver(&newborn(), "d", at(5_000)));
        let other = Newborn {
            owner: "another".into(),
            ..newborn()
        };
        assert!(births.deliver(&other, "e", at(5_000)));
        assert!(births.deliver(&newborn(), "f", at(63_000)));
    }

    #[test]
    fn a_pod_that_was_seen_or_was_a_trial_is_not_missed() {
        let mut births = expecting();
        let start = Instant::now();
        assert!(births.deliver(&newborn(), "kvpn-agent-a", start));
        let trial = Newborn {
            is_trial: true,
            ..newborn()
        };
        assert!(births.deliver(&trial, "kvpn-agent-b", start));
        let mut seen = pod("shop", "web-1", "10.1.0.7");
        let mut agent = agent_container("kvpn-agent-a", "agent:1");
        agent.is_sidecar = true;
        seen.agents = vec![agent];
        births.handle_pods(&Change::Applied(seen));
        assert!(births.deliver(&newborn(), "kvpn-agent-c", start + 2 * SEEN));
    }

    #[test]
    fn an_owner_that_seldom_tries_gets_every_other_one_without() {
        let mut births = expecting();
        let start = Instant::now();
        let tries = [0, 82, 246, 574, 1_574];
        let with_agent = tries.map(|seconds| {
            let now = start + Duration::from_secs(seconds);
            births.deliver(&newborn(), &format!("agent-{seconds}"), now)
        });
        assert_eq!(with_agent, [true, false, true, false, true]);
    }

    #[test]
    fn what_was_not_seen_long_ago_is_no_reason() {
        let mut births = expecting();
        let start = Instant::now();
        assert!(births.deliver(&newborn(), "a", start));
        assert!(births.deliver(&newborn(), "b", start + 2 * FORGOTTEN));
    }
}
