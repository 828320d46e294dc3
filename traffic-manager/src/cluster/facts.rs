//! Facts about the cluster, from several watches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::ClusterView;
use super::subnets::cover;
use crate::state::{Change, Identified, Key};

/// What one object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fact<V> {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) value: V,
}

impl<V> Identified for Fact<V> {
    fn key(&self) -> &Key {
        &self.key
    }

    fn uid(&self) -> &str {
        &self.uid
    }
}

/// Where facts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// Pod subnets of nodes.
    Nodes,
    /// ServiceCIDR objects, or the Services' addresses where there are none.
    Services,
    Pods,
    Namespaces,
}

impl Source {
    const ALL: [Self; 4] = [Self::Nodes, Self::Services, Self::Pods, Self::Namespaces];
}

/// An event of a watch that facts come from.
#[derive(Clone, Debug)]
pub(crate) enum FactChange {
    NodeSubnets(Change<Fact<Vec<IpNet>>>),
    ServiceSubnets(Change<Fact<Vec<IpNet>>>),
    ServiceIps(Change<Fact<Vec<IpAddr>>>),
    PodIps(Change<Fact<Vec<IpAddr>>>),
    Namespaces(Change<Fact<()>>),
    /// Whether a Service has no address of its own.
    Headless(Change<Fact<bool>>),
}

/// All facts.
#[derive(Debug)]
pub(crate) struct Facts {
    domain: String,
    node_subnets: BTreeMap<Key, Fact<Vec<IpNet>>>,
    service_subnets: BTreeMap<Key, Fact<Vec<IpNet>>>,
    service_ips: BTreeMap<Key, Fact<Vec<IpAddr>>>,
    pod_ips: BTreeMap<Key, Fact<Vec<IpAddr>>>,
    namespaces: BTreeMap<Key, Fact<()>>,
    headless: BTreeMap<Key, Fact<bool>>,
    awaited: BTreeSet<Source>,
}

impl Facts {
    pub(crate) fn new(domain: String) -> Self {
        Self {
            domain,
            node_subnets: BTreeMap::new(),
            service_subnets: BTreeMap::new(),
            service_ips: BTreeMap::new(),
            pod_ips: BTreeMap::new(),
            namespaces: BTreeMap::new(),
            headless: BTreeMap::new(),
            awaited: Source::ALL.into(),
        }
    }

    /// Follows a watch. Returns whether the view may have changed.
    pub(crate) fn apply(&mut self, change: FactChange) -> bool {
        match change {
            FactChange::NodeSubnets(change) => {
                let settled = self.settle_on_list(Source::Nodes, &change);
                follow(&mut self.node_subnets, change) | settled
            }
            FactChange::ServiceSubnets(change) => {
                let settled = self.settle_on_list(Source::Services, &change);
                follow(&mut self.service_subnets, change) | settled
            }
            FactChange::ServiceIps(change) => {
                let settled = self.settle_on_list(Source::Services, &change);
                follow(&mut self.service_ips, change) | settled
            }
            FactChange::PodIps(change) => {
                let settled = self.settle_on_list(Source::Pods, &change);
                follow(&mut self.pod_ips, change) | settled
            }
            FactChange::Namespaces(change) => {
                let settled = self.settle_on_list(Source::Namespaces, &change);
                follow(&mut self.namespaces, change) | settled
            }
            FactChange::Headless(change) => follow(&mut self.headless, change),
        }
    }

    /// Waits for a source no longer. Returns whether it was waited for.
    pub(crate) fn settle(&mut self, source: Source) -> bool {
        self.awaited.remove(&source)
    }

    fn settle_on_list<V>(&mut self, source: Source, change: &Change<Fact<V>>) -> bool {
        matches!(change, Change::Listed { .. }) && self.settle(source)
    }

    /// What follows from the facts, once every source has spoken.
    pub(crate) fn view(&self) -> Option<ClusterView> {
        if !self.awaited.is_empty() {
            return None;
        }
        let node_subnets: Vec<IpNet> = values(&self.node_subnets).copied().collect();
        // Few subnets are left of many nodes, which all pods are held against.
        let mut pod_subnets = IpNet::aggregate(&node_subnets);
        // Networks that do not hand out the nodes' subnets are known by their
        // pods alone.
        let outside = values(&self.pod_ips)
            .filter(|ip| !pod_subnets.iter().any(|subnet| subnet.contains(*ip)))
            .copied();
        let outside = cover(outside);
        pod_subnets.extend(outside);
        let mut service_subnets: Vec<IpNet> = values(&self.service_subnets).copied().collect();
        if service_subnets.is_empty() {
            service_subnets = cover(values(&self.service_ips).copied());
        }
        Some(ClusterView {
            pod_subnets: IpNet::aggregate(&pod_subnets),
            service_subnets: IpNet::aggregate(&service_subnets),
            domain: self.domain.clone(),
            namespaces: self.namespaces.keys().map(|key| key.name.clone()).collect(),
            headless: self
                .headless
                .iter()
                .filter(|(_, fact)| fact.value)
                .map(|(key, _)| key.clone())
                .collect(),
        })
    }
}

fn values<T>(table: &BTreeMap<Key, Fact<Vec<T>>>) -> impl Iterator<Item = &T> {
    table.values().flat_map(|fact| &fact.value)
}

fn follow<V: PartialEq>(table: &mut BTreeMap<Key, Fact<V>>, change: Change<Fact<V>>) -> bool {
    let (gone, present) = change.resolve(table);
    let mut changed = !gone.is_empty();
    for key in gone {
        table.remove(&key);
    }
    for fact in present {
        if table.get(&fact.key) != Some(&fact) {
            table.insert(fact.key.clone(), fact);
            changed = true;
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact<V>(name: &str, value: V) -> Fact<V> {
        Fact {
            key: Key::new("", name),
            uid: format!("uid-{name}"),
            value,
        }
    }

    fn listed<T>(items: Vec<T>) -> Change<T> {
        Change::Listed {
            namespace: None,
            items,
        }
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Facts of a cluster with the given nodes, all other sources empty.
    fn facts(nodes: Vec<Fact<Vec<IpNet>>>) -> Facts {
        let mut facts = Facts::new("cluster.local".into());
        facts.apply(FactChange::NodeSubnets(listed(nodes)));
        facts.apply(FactChange::PodIps(listed(vec![])));
        facts.apply(FactChange::ServiceIps(listed(vec![])));
        facts.apply(FactChange::Namespaces(listed(vec![fact("shop", ())])));
        facts
    }

    #[test]
    fn there_is_no_view_before_every_source_has_spoken() {
        let mut facts = Facts::new("cluster.local".into());
        for source in [Source::Nodes, Source::Pods, Source::Services] {
            assert!(facts.settle(source));
            assert_eq!(facts.view(), None);
        }
        facts.apply(FactChange::Namespaces(listed(vec![fact("shop", ())])));
        assert_eq!(facts.view().unwrap().namespaces, ["shop"]);
    }

    #[test]
    fn pod_subnets_are_the_nodes_and_what_covers_pods_outside_them() {
        let nodes = vec![
            fact("a", nets(&["10.244.0.0/24", "fd00:244::/64"])),
            fact("b", nets(&["10.244.1.0/24", "fd00:244:0:1::/64"])),
        ];
        let mut facts = facts(nodes);
        let expected = nets(&["10.244.0.0/23", "fd00:244::/63"]);
        assert_eq!(facts.view().unwrap().pod_subnets, expected);

        let inside = fact("web", ips(&["10.244.1.7"]));
        facts.apply(FactChange::PodIps(Change::Applied(inside)));
        assert_eq!(facts.view().unwrap().pod_subnets, expected);

        let outside = fact("odd", ips(&["172.20.5.7"]));
        facts.apply(FactChange::PodIps(Change::Applied(outside)));
        let expected = nets(&["10.244.0.0/23", "172.20.5.0/24", "fd00:244::/63"]);
        assert_eq!(facts.view().unwrap().pod_subnets, expected);
    }

    #[test]
    fn service_subnets_are_covered_only_where_the_cluster_does_not_name_them() {
        let mut facts = facts(vec![]);
        let service = fact("web", ips(&["10.96.0.1"]));
        facts.apply(FactChange::ServiceIps(Change::Applied(service)));
        assert_eq!(
            facts.view().unwrap().service_subnets,
            nets(&["10.96.0.0/24"])
        );
        let named = fact("kubernetes", nets(&["10.96.0.0/16", "fd00:96::/108"]));
        facts.apply(FactChange::ServiceSubnets(Change::Applied(named)));
        assert_eq!(
            facts.view().unwrap().service_subnets,
            nets(&["10.96.0.0/16", "fd00:96::/108"])
        );
    }

    #[test]
    fn only_what_changes_the_facts_counts_as_a_change() {
        let mut facts = facts(vec![]);
        let change = || FactChange::PodIps(Change::Applied(fact("web", ips(&["10.1.0.1"]))));
        assert!(facts.apply(change()));
        assert!(!facts.apply(change()));
        let gone = fact("web", ips(&[]));
        assert!(facts.apply(FactChange::PodIps(Change::Deleted(gone.clone()))));
        assert!(!facts.apply(FactChange::PodIps(Change::Deleted(gone))));
    }
}
