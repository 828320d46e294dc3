//! Reads at the API server which pods are a workload's.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use kube::{Api, Client, Resource};
use kvpn_proto::crd::{WorkloadKind, WorkloadRef};
use kvpn_proto::rollout::Rollout;
use serde::de::DeserializeOwned;

use super::execute::{Trouble, persist};
use crate::state::Resolution;

/// Reads the selector of a workload.
pub(super) async fn resolve(
    client: &Client,
    namespace: &str,
    workload: &WorkloadRef,
) -> Resolution {
    let reader = Reader { client, namespace };
    reader
        .selector(workload)
        .await
        .map_or_else(|failed| failed, resolution)
}

/// Reads objects of a namespace.
struct Reader<'a> {
    client: &'a Client,
    namespace: &'a str,
}

impl Reader<'_> {
    async fn selector(&self, workload: &WorkloadRef) -> Result<Option<LabelSelector>, Resolution> {
        let name = &workload.name;
        Ok(match workload.kind {
            WorkloadKind::Deployment => {
                let found: Deployment = self.get(name).await?;
                found.spec.map(|spec| spec.selector)
            }
            WorkloadKind::StatefulSet => {
                let found: StatefulSet = self.get(name).await?;
                found.spec.map(|spec| spec.selector)
            }
            WorkloadKind::DaemonSet => {
                let found: DaemonSet = self.get(name).await?;
                found.spec.map(|spec| spec.selector)
            }
            WorkloadKind::ReplicaSet => {
                let found: ReplicaSet = self.get(name).await?;
                found.spec.map(|spec| spec.selector)
            }
            WorkloadKind::Job => {
                let found: Job = self.get(name).await?;
                found.spec.and_then(|spec| spec.selector)
            }
            WorkloadKind::Rollout => {
                let found: Rollout = self.get(name).await?;
                let reference = found.spec.workload_ref.and_then(|it| it.workload());
                match (found.spec.selector, reference) {
                    (None, Some(workload)) => self.selector_for_rollout(&workload).await?,
                    (selector, _) => selector,
                }
            }
            WorkloadKind::Pod => {
                let words = "pods are known by their names".to_owned();
                return Err(Resolution::Unreadable(words));
            }
        })
    }

    /// The selector of the workload that a Rollout refers to, which is no Rollout.
    async fn selector_for_rollout(
        &self,
        workload: &WorkloadRef,
    ) -> Result<Option<LabelSelector>, Resolution> {
        let selector = Box::pin(self.selector(workload)).await;
        selector.map_err(|failed| match failed {
            Resolution::Missing => {
                Resolution::Unreadable(format!("it refers to {workload}, which does not exist"))
            }
            Resolution::Selector(_) | Resolution::Unreadable(_) => failed,
        })
    }

    async fn get<K>(&self, name: &str) -> Result<K, Resolution>
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        persist(|| api.get(name))
            .await
            .map_err(|trouble| match trouble {
                Trouble::Gone(_) => Resolution::Missing,
                Trouble::Refused(words) | Trouble::Passing(words) => Resolution::Unreadable(words),
            })
    }
}

fn resolution(selector: Option<LabelSelector>) -> Resolution {
    match selector.map(Selector::try_from) {
        Some(Ok(selector)) if !selector.selects_all() => Resolution::Selector(selector),
        Some(Ok(_)) | None => Resolution::Unreadable("it selects no pods".to_owned()),
        Some(Err(error)) => Resolution::Unreadable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{Request, Response};
    use serde_json::{Value, json};

    use super::*;

    const APPS: &str = "/apis/apps/v1/namespaces/shop";
    const ROLLOUT: &str = "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/web";

    /// An API server that has these objects.
    fn api_server(objects: &[(String, Value)]) -> Client {
        let objects: HashMap<_, _> = objects.iter().cloned().collect();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (status, body) = match objects.get(request.uri().path()) {
                Some(object) => (200, object.to_string()),
                // As of a kind that the API server does not know.
                None => (404, "404 page not found".to_owned()),
            };
            let body = http_body_util::Full::new(Bytes::from(body));
            let response = Response::builder().status(status).body(body).unwrap();
            async move { Ok::<_, Infallible>(response) }
        });
        Client::new(service, "kvpn")
    }

    async fn read(kind: WorkloadKind, objects: &[(String, Value)]) -> Resolution {
        let workload = WorkloadRef {
            kind,
            name: "web".into(),
        };
        resolve(&api_server(objects), "shop", &workload).await
    }

    fn object(spec: Value) -> Value {
        json!({ "metadata": { "name": "web" }, "spec": spec })
    }

    fn selecting(value: &str) -> Value {
        json!({ "matchLabels": { "app": value } })
    }

    fn selector(value: &str) -> Resolution {
        crate::state::testing::selector("app", value)
    }

    #[tokio::test]
    async fn every_kind_has_its_selector() {
        let template = json!({ "spec": { "containers": [] } });
        for (kind, path) in [
            (WorkloadKind::Deployment, format!("{APPS}/deployments/web")),
            (
                WorkloadKind::StatefulSet,
                format!("{APPS}/statefulsets/web"),
            ),
            (WorkloadKind::DaemonSet, format!("{APPS}/daemonsets/web")),
            (WorkloadKind::ReplicaSet, format!("{APPS}/replicasets/web")),
            (
                WorkloadKind::Job,
                "/apis/batch/v1/namespaces/shop/jobs/web".to_owned(),
            ),
            (WorkloadKind::Rollout, ROLLOUT.to_owned()),
        ] {
            let found = object(json!({ "selector": selecting("web"), "template": template }));
            assert_eq!(read(kind, &[(path, found)]).await, selector("web"));
            assert_eq!(read(kind, &[]).await, Resolution::Missing);
        }
    }

    #[tokio::test]
    async fn a_rollout_without_a_selector_has_that_of_the_workload_that_it_refers_to() {
        let refer = |kind: &str, spec: Value| {
            let reference = json!({ "apiVersion": "apps/v1", "kind": kind, "name": "old" });
            let mut rollout = object(spec);
            rollout["spec"]["workloadRef"] = reference;
            (ROLLOUT.to_owned(), rollout)
        };
        let old = object(json!({ "selector": selecting("old"), "template": {} }));
        for (kind, path) in [("Deployment", "deployments"), ("ReplicaSet", "replicasets")] {
            let old = (format!("{APPS}/{path}/old"), old.clone());
            let objects = [refer(kind, json!({})), old.clone()];
            assert_eq!(
                read(WorkloadKind::Rollout, &objects).await,
                selector("old"),
                "{kind}"
            );
            let objects = [refer(kind, json!({ "selector": selecting("web") })), old];
            assert_eq!(
                read(WorkloadKind::Rollout, &objects).await,
                selector("web"),
                "{kind}"
            );
        }
        for (kind, words) in [
            (
                "Deployment",
                "it refers to Deployment/old, which does not exist",
            ),
            ("PodTemplate", "it selects no pods"),
        ] {
            assert_eq!(
                read(WorkloadKind::Rollout, &[refer(kind, json!({}))]).await,
                Resolution::Unreadable(words.into())
            );
        }
    }
}
