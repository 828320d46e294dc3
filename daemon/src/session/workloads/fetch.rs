//! Reads the objects of a namespace from the API server.

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kvpn_proto::rollout::Rollout;
use kvpn_proto::{Failure, Reason};
use serde::de::DeserializeOwned;
use tracing::debug;

use super::{Inventory, Workload};
use crate::session::cluster::Cluster;

/// Reads everything at once, each kind with a request of its own.
pub(crate) async fn fetch(cluster: &Cluster, namespace: &str) -> Result<Inventory, Failure> {
    let of_apps = async {
        tokio::try_join!(
            all::<Deployment>(cluster, namespace),
            all::<StatefulSet>(cluster, namespace),
            all::<DaemonSet>(cluster, namespace),
            all::<ReplicaSet>(cluster, namespace),
        )
    };
    let (of_apps, jobs, rollouts, pods, services) = tokio::try_join!(
        of_apps,
        all::<Job>(cluster, namespace),
        rollouts(cluster, namespace),
        all::<Pod>(cluster, namespace),
        all::<Service>(cluster, namespace),
    )?;
    let (deployments, stateful_sets, daemon_sets, replica_sets) = of_apps;
    let (rollouts, rollouts_hidden) = match rollouts {
        Ok(rollouts) => (rollouts, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    let replica_sets: Vec<_> = replica_sets.iter().map(Workload::from).collect();
    let rollouts = rollouts
        .iter()
        .map(|rollout| Workload::of_rollout(rollout, &replica_sets));
    let workloads = deployments
        .iter()
        .map(Workload::from)
        .chain(stateful_sets.iter().map(Workload::from))
        .chain(daemon_sets.iter().map(Workload::from))
        .chain(rollouts)
        .chain(jobs.iter().map(Workload::from))
        .chain(pods.iter().map(Workload::from))
        .collect::<Vec<_>>();
    Ok(Inventory {
        namespace: namespace.to_owned(),
        workloads: [workloads, replica_sets].concat(),
        pods,
        services,
        rollouts_hidden,
    })
}

/// Reads the Rollouts: none where Argo is not installed. The inner failure is that of a
/// user who may not read them, which keeps nobody from the rest.
async fn rollouts(
    cluster: &Cluster,
    namespace: &str,
) -> Result<Result<Vec<Rollout>, Failure>, Failure> {
    let resource = ApiResource::erase::<Rollout>(&());
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    let list = async {
        match api.list(&ListParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
            listed => listed.map(|list| list.items),
        }
    };
    match cluster.call(list).await {
        Ok(objects) => Ok(Ok(objects.into_iter().filter_map(rollout).collect())),
        Err(failure) if failure.reason == Reason::Forbidden => Ok(Err(failure)),
        Err(failure) => Err(failure),
    }
}

/// A custom resource can be of a form that its own controller does not understand.
fn rollout(object: DynamicObject) -> Option<Rollout> {
    let name = object.metadata.name.clone();
    let parsed = object.try_parse();
    parsed
        .inspect_err(|error| debug!(name, %error, "A Rollout cannot be read"))
        .ok()
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
