//! Reads the objects of a namespace from the API server.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ListParams};
use kvpn_proto::Failure;
use serde::de::DeserializeOwned;

use super::{Inventory, Workload};
use crate::session::cluster::Cluster;

/// Reads everything at once, each kind with a request of its own.
pub(crate) async fn fetch(cluster: &Cluster, namespace: &str) -> Result<Inventory, Failure> {
    let (deployments, stateful_sets, daemon_sets, replica_sets, pods, services) = tokio::try_join!(
        all::<Deployment>(cluster, namespace),
        all::<StatefulSet>(cluster, namespace),
        all::<DaemonSet>(cluster, namespace),
        all::<ReplicaSet>(cluster, namespace),
        all::<Pod>(cluster, namespace),
        all::<Service>(cluster, namespace),
    )?;
    let workloads = deployments
        .iter()
        .map(Workload::from)
        .chain(stateful_sets.iter().map(Workload::from))
        .chain(daemon_sets.iter().map(Workload::from))
        .chain(replica_sets.iter().map(Workload::from))
        .chain(pods.iter().map(Workload::from))
        .collect();
    Ok(Inventory {
        namespace: namespace.to_owned(),
        workloads,
        pods,
        services,
    })
}

async fn all<K>(cluster: &Cluster, namespace: &str) -> Result<Vec<K>, Failure>
where
    K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(cluster.client.clone(), namespace);
    let list = cluster.call(api.list(&ListParams::default())).await?;
    Ok(list.items)
}
