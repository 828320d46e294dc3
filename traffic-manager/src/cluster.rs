//! What laptops need to know of the cluster.

mod domain;
mod facts;
mod names;
mod subnets;

use std::sync::{Mutex, PoisonError};

use ipnet::IpNet;
use kvpn_proto::v1;
use tokio::sync::watch;

pub(crate) use domain::cluster_domain;
pub(crate) use facts::{Fact, FactChange, Source};
pub(crate) use names::Names;

use facts::Facts;

/// What a laptop needs to know of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterView {
    pub(crate) pod_subnets: Vec<IpNet>,
    pub(crate) service_subnets: Vec<IpNet>,
    pub(crate) domain: String,
    pub(crate) namespaces: Vec<String>,
}

impl From<ClusterView> for v1::WatchClusterResponse {
    fn from(view: ClusterView) -> Self {
        let texts = |subnets: Vec<IpNet>| subnets.iter().map(ToString::to_string).collect();
        Self {
            pod_subnets: texts(view.pod_subnets),
            service_subnets: texts(view.service_subnets),
            cluster_domain: view.domain,
            namespaces: view.namespaces,
            // Not of the cluster, but of this process.
            ping_supported: false,
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
