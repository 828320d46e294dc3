//! Brings one namespace to what its engagements ask for.

use std::collections::{BTreeMap, BTreeSet};

use kvpn_proto::crd::Verb;
use kvpn_proto::flow::Protocol;

use super::engagements::{EngagementRecord, Standing, decide};
use super::readers::Due;
use super::status::engagement_status;
use super::{Claim, Effect, Key, Now, Nursery, PodView, Questions, Resolution, World};

/// What engagements want of a pod.
#[derive(Default)]
struct Demand {
    claims: Vec<Claim>,
    wanted_by: BTreeSet<String>,
    /// The containers that are to be read: whether somebody waits for it.
    reads: BTreeMap<String, bool>,
}

impl World {
    /// Works out claims, agents and conditions of a namespace, and what is to
    /// be done where they differ from what is.
    pub(super) fn reconcile(&mut self, namespace: &str, now: &Now, effects: &mut Vec<Effect>) {
        self.keep_engagements(namespace, now, effects);
        let standings = decide(
            self.in_namespace(namespace),
            &self.sessions,
            &self.settings.manager.namespace,
            &self.pods,
            &self.settings.manager,
        );
        for (key, standing) in &standings {
            if let Some(record) = self.engagements.get_mut(key) {
                record.settle(standing, now);
                record.choose_read(standing);
            }
        }
        let demands = self.demands(&standings);
        self.serve(namespace, demands, now, effects);
        self.write(standings, now, effects);
    }

    /// Says what the API server is to ask, when that has changed: which pods are to be born
    /// with an agent, and whether there is something to delete.
    pub(super) fn expect_questions(&mut self, effects: &mut Vec<Effect>) {
        let questions = Questions {
            births: self.expected_births(),
            deletions: !self.sessions.is_empty() || !self.engagements.is_empty(),
        };
        let other_births = self.births.expect(&questions.births);
        let other_deletions = self.deletions.expect(questions.deletions);
        if other_births || other_deletions {
            effects.push(Effect::WriteWebhooks(questions));
        }
    }

    /// The pods of every workload that somebody engages whose session there is, where an
    /// agent has run already, or the workload is to be rolled out for one.
    fn expected_births(&self) -> Vec<Nursery> {
        let home = &self.settings.manager.namespace;
        let engaged = self.engagements.values().filter(|record| {
            let spec = &record.view.spec;
            let session = self.sessions.get(&Key::new(home, &spec.session));
            session.is_some_and(|session| session.view.user == spec.user)
        });
        let engaged = engaged.filter(|it| it.view.misfit().is_none());
        let engaged = engaged.filter(|it| it.view.spec.verb != Verb::Ingest);
        let engaged = engaged
            .filter(|it| it.view.spec.roll_out || self.births.is_proven(&it.view.key.namespace));
        let nurseries = engaged.filter_map(|record| match &record.workload {
            Some(Resolution::Selector(selector)) => Some(Nursery {
                namespace: record.view.key.namespace.clone(),
                selector: selector.clone(),
                is_unproven: record.view.spec.roll_out,
            }),
            Some(Resolution::Missing | Resolution::Unreadable(_)) | None => None,
        });
        let mut nurseries: Vec<_> = nurseries.collect();
        // Of those that are the same, what allows more stays.
        nurseries.sort_by_cached_key(|it| {
            let selector = it.selector.to_string();
            (it.namespace.clone(), selector, !it.is_unproven)
        });
        nurseries
            .dedup_by(|one, kept| one.namespace == kept.namespace && one.selector == kept.selector);
        nurseries
    }

    fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a EngagementRecord> {
        self.engagements
            .range(Key::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, record)| record)
    }

    /// Reads workloads that are due, deletes orphans that are overdue.
    fn keep_engagements(&mut self, namespace: &str, now: &Now, effects: &mut Vec<Effect>) {
        let grace = self.settings.grace;
        let sessions = &self.sessions;
        let home = &self.settings.manager.namespace;
        let records = self
            .engagements
            .range_mut(Key::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace);
        for (key, record) in records {
            let session = Key::new(home, &record.view.spec.session);
            if record.expires(sessions.contains_key(&session), grace, now) {
                effects.push(Effect::DeleteEngagement {
                    engagement: key.clone(),
                    uid: record.view.uid.clone(),
                });
            } else if record.should_resolve(&self.pods, now) {
                effects.push(Effect::ResolveWorkload {
                    engagement: key.clone(),
                    uid: record.view.uid.clone(),
                    workload: record.view.spec.workload.clone(),
                });
            }
        }
    }

    fn demands(&self, standings: &BTreeMap<Key, Standing>) -> BTreeMap<Key, Demand> {
        let mut demands: BTreeMap<Key, Demand> = BTreeMap::new();
        for (key, standing) in standings {
            let (
                Standing::Admitted {
                    pods,
                    passing,
                    laptop,
                },
                Some(record),
            ) = (standing, self.engagements.get(key))
            else {
                continue;
            };
            if let Some((pod, container)) = record.read(&self.pods) {
                let reads = &mut demands.entry(pod.key.clone()).or_default().reads;
                *reads.entry(container.to_owned()).or_default() |= laptop.is_present();
            }
            let is_ingest = record.view.spec.verb == Verb::Ingest;
            if is_ingest || !laptop.is_present() && !record.fails_closed() {
                continue;
            }
            let all = pods.iter().chain(passing);
            for pod in all.filter_map(|pod| self.pods.get(pod)) {
                let slot = self.slots.get(&pod.uid);
                if pod.is_leaving() && slot.is_none_or(|slot| slot.link().is_none()) {
                    continue;
                }
                let demand = demands.entry(pod.key.clone()).or_default();
                demand.claims.extend(claims(record, pod));
                demand.wanted_by.insert(record.view.uid.clone());
            }
        }
        demands
    }

    /// Sends claims and asks for agents.
    fn serve(
        &mut self,
        namespace: &str,
        mut demands: BTreeMap<Key, Demand>,
        now: &Now,
        effects: &mut Vec<Effect>,
    ) {
        let mut is_read = false;
        for pod in self.pods.in_namespace(namespace) {
            let demand = demands.remove(&pod.key);
            let slot = match demand {
                Some(_) => self.slots.entry(pod.uid.clone()).or_default(),
                None => match self.slots.get_mut(&pod.uid) {
                    Some(slot) => slot,
                    None => continue,
                },
            };
            let demand = demand.unwrap_or_default();
            if slot.set_claims(demand.claims)
                && let Some(link) = slot.link()
            {
                effects.push(Effect::SendClaims {
                    link,
                    claims: slot.claims().clone(),
                });
            }
            if slot.link().is_some() {
                self.births.prove(pod);
            }
            let image = &self.settings.agent_image;
            let due = match slot.link() {
                Some(_) if pod.is_running() => {
                    let stops = slot.claims().claims.iter();
                    let targets = stops.filter_map(|claim| claim.stops.clone()).collect();
                    slot.holders
                        .advance(&targets, &pod.holders, image, now.instant)
                }
                Some(_) => {
                    slot.holders.clear();
                    Vec::new()
                }
                None => Vec::new(),
            };
            effects.extend(due.into_iter().map(|target| Effect::AddHolder {
                pod: pod.key.clone(),
                uid: pod.uid.clone(),
                target,
            }));
            let linger = self.settings.linger;
            let Due { add, dismiss } =
                (slot.readers).advance(&demand.reads, pod, image, linger, now.instant);
            effects.extend(
                dismiss
                    .into_iter()
                    .map(|link| Effect::DismissReader { link }),
            );
            effects.extend(add.into_iter().map(|(target, owner)| Effect::AddReader {
                pod: pod.key.clone(),
                uid: pod.uid.clone(),
                target,
                owner,
            }));
            is_read |= !slot.readers.is_empty();
            slot.want(demand.wanted_by);
            if slot.advance(pod, image, now.instant) {
                effects.push(Effect::AddAgent {
                    pod: pod.key.clone(),
                    uid: pod.uid.clone(),
                    ip: pod.ips.first().copied(),
                });
            }
        }
        match is_read {
            true => drop(self.read.insert(namespace.to_owned())),
            false => drop(self.read.remove(namespace)),
        }
    }

    /// Writes the statuses that changed.
    fn write(&mut self, standings: BTreeMap<Key, Standing>, now: &Now, effects: &mut Vec<Effect>) {
        for (key, standing) in standings {
            let Some(record) = self.engagements.get_mut(&key) else {
                continue;
            };
            let status = engagement_status(
                record,
                &standing,
                &self.pods,
                &self.slots,
                self.settings.has_births,
                now.wall,
            );
            if status != record.written {
                record.written = status.clone();
                effects.push(Effect::WriteEngagement {
                    engagement: key,
                    uid: record.view.uid.clone(),
                    status,
                });
            }
        }
    }
}

fn claims(record: &EngagementRecord, pod: &PodView) -> Vec<Claim> {
    let spec = &record.view.spec;
    let (copy, is_replace) = match spec.verb {
        Verb::Ingest => return Vec::new(),
        Verb::Intercept => (false, false),
        Verb::Wiretap => (true, false),
        Verb::Replace => (false, true),
    };
    let stops = spec.container.as_ref().filter(|_| is_replace).cloned();
    let probes = stops
        .as_ref()
        .and_then(|container| pod.probes.get(container));
    let ports = spec.ports.iter();
    ports
        .map(|port| Claim {
            id: Claim::id_of(&record.view.uid, port.container_port, port.protocol),
            container_port: port.container_port,
            protocol: port.protocol,
            http_probed: port.protocol == Protocol::Tcp
                && pod.http_probed.contains(&port.container_port),
            reach: record.view.spec.http.clone().into(),
            copy,
            // An app that is stopped does not answer.
            fails_closed: record.fails_closed() || stops.is_some(),
            stops: stops.clone(),
            answers_probes: probes.is_some_and(|probes| probes.is_own(port.container_port)),
            tls: record.tls().cloned(),
            keeps_tls: record.view.spec.terminates_tls && record.tls().is_none(),
            pod_ports: spec.to_pod.clone(),
            app_protocol: port.app_protocol,
        })
        .collect()
}

#[cfg(test)]
mod tests;
