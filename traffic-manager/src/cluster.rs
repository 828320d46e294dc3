//! What laptops need to know of the cluster.

mod domain;
mod facts;
mod names;
mod subnets;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use kvpn_proto::v1;
use tokio::sync::watch;

pub(crate) use domain::cluster_domain;
pub(crate) use facts::{Fact, FactChange, Source};
pub(crate) use names::Names;

use crate::state::Key;
use facts::Facts;

/// What a laptop needs to know of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterView {
    pub(crate) pod_subnets: Vec<IpNet>,
    pub(crate) service_subnets: Vec<IpNet>,
    pub(crate) domain: String,
    pub(crate) namespaces: Vec<String>,
    /// Services without an address of their own.
    pub(crate) headless: BTreeSet<Key>,
}

impl ClusterView {
    /// What a session of this namespace is told.
    pub(crate) fn message(self, namespace: &str, ping_supported: bool) -> v1::WatchClusterResponse {
        let texts = |subnets: Vec<IpNet>| subnets.iter().map(ToString::to_string).collect();
        let headless = self.headless.into_iter();
        let headless = headless
            .filter(|service| service.namespace == namespace)
            .map(|Key { namespace, name }| v1::ServiceName { namespace, name });
        v1::WatchClusterResponse {
            pod_subnets: texts(self.pod_subnets),
            service_subnets: texts(self.service_subnets),
            cluster_domain: self.domain,
            namespaces: self.namespaces,
            ping_supported,
            headless_services: headless.collect(),
        }
    }
}

/// Gathers facts and publishes the view when it changes.
#[derive(Debug)]
pub(crate) struct Cluster {
    facts: Mutex<Facts>,
    /// `None` until every source has spoken.
    view: watch::Sender<Option<ClusterView>>,
}

impl Cluster {
    pub(crate) fn new(domain: String) -> Self {
        Self {
            facts: Mutex::new(Facts::new(domain)),
            view: watch::Sender::new(None),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<ClusterView>> {
        self.view.subscribe()
    }

    /// Takes in what a source says.
    pub(crate) fn handle(&self, change: FactChange) {
        self.update(|facts| facts.apply(change));
    }

    /// Goes on without a source that cannot be read.
    pub(crate) fn give_up(&self, source: Source) {
        self.update(|facts| facts.settle(source));
    }

    fn update(&self, change: impl FnOnce(&mut Facts) -> bool) {
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if !change(&mut facts) {
            return;
        }
        let Some(view) = facts.view() else {
            return;
        };
        // Under the lock, so that views come out in order.
        self.view.send_if_modified(|current| {
            let differs = current.as_ref() != Some(&view);
            if differs {
                tracing::info!(
                    pod_subnets = ?view.pod_subnets,
                    service_subnets = ?view.service_subnets,
                    domain = view.domain,
                    namespaces = view.namespaces.len(),
                    "the cluster's subnets and namespaces"
                );
                *current = Some(view);
            }
            differs
        });
    }
}
