//! Has a workload's pods made anew once, with the user's own permissions, so that they are
//! born with the agent that running ones are refused.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::Status;
use kvpn_proto::crd::{WorkloadKind, WorkloadRef};
use kvpn_proto::names::{AGENT_CONTAINER_PREFIX, ROLL_OUT_ANNOTATION};
use kvpn_proto::rollout::Rollout;
use kvpn_proto::{Failure, Reason};
use serde_json::{Value, json};

use crate::session::cluster::Cluster;
use crate::session::workloads;

/// How long the API server may take to ask the traffic manager about pods that are born,
/// after the engagement was made, and the pause between two looks.
const BIRTHS_DEADLINE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);

/// How long that is waited for where it cannot be looked at.
const BLIND_PAUSE: Duration = Duration::from_secs(1);

/// Rolls a workload out, if its pods would have the agent then. It is announced before.
pub(super) async fn roll_out(
    cluster: &Cluster,
    namespace: &str,
    workload: &WorkloadRef,
    announce: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let Some(resource) = resource(workload.kind) else {
        let why = format!("a {} is never rolled out", workload.kind.as_str());
        return Err(hopeless(workload, &why));
    };
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    let may_not = |failure| without_permission(failure, namespace, &resource);
    let got = cluster.call(api.get(&workload.name)).await;
    let object = got.map_err(may_not)?;
    if let Some(why) = obstacle(&object.data) {
        return Err(hopeless(workload, why));
    }
    let patch = Patch::Merge(patch(workload.kind, Timestamp::now()));
    let patch = async |dry_run| {
        let request = PatchParams {
            dry_run,
            field_manager: Some("kvpn".to_owned()),
            ..PatchParams::default()
        };
        let patched = cluster.call(api.patch(&workload.name, &request, &patch));
        patched.await.map(drop).map_err(may_not)
    };
    // Who may not do it learns that first.
    patch(true).await?;
    let template = object.data["spec"]["template"].clone();
    // A Rollout may have none of its own, and a template of a later Kubernetes may not be
    // understood.
    match serde_json::from_value(template) {
        Ok(template) => await_births(cluster, namespace, workload, template).await?,
        Err(_) => tokio::time::sleep(BLIND_PAUSE).await,
    }
    announce.await?;
    patch(false).await
}

/// The resource of a kind that can be rolled out.
fn resource(kind: WorkloadKind) -> Option<ApiResource> {
    match kind {
        WorkloadKind::Deployment => Some(ApiResource::erase::<Deployment>(&())),
        WorkloadKind::StatefulSet => Some(ApiResource::erase::<StatefulSet>(&())),
        WorkloadKind::DaemonSet => Some(ApiResource::erase::<DaemonSet>(&())),
        WorkloadKind::Rollout => Some(ApiResource::erase::<Rollout>(&())),
        WorkloadKind::ReplicaSet | WorkloadKind::Job | WorkloadKind::Pod => None,
    }
}

/// What keeps a change of the template from its pods, or would leave nobody to answer should
/// the new ones not come up.
fn obstacle(object: &Value) -> Option<&'static str> {
    let spec = &object["spec"];
    if spec["paused"] == true {
        return Some("it is paused");
    }
    let (strategy, update) = (&spec["strategy"], &spec["updateStrategy"]);
    if strategy["type"] == "Recreate" {
        return Some("all its pods would end before the first new one is there (Recreate)");
    }
    let partition = update["rollingUpdate"]["partition"].as_i64();
    if partition.is_some_and(|it| it > 0) {
        return Some("its update strategy leaves some pods as they are (partition)");
    }
    (update["type"] == "OnDelete")
        .then_some("its pods are made anew only when somebody deletes them (OnDelete)")
}

/// As `kubectl rollout restart` does it; a Rollout has a field of its own for that
/// (<https://argo-rollouts.readthedocs.io/en/stable/features/restart/>).
fn patch(kind: WorkloadKind, now: Timestamp) -> Value {
    let now = Time(now);
    match kind {
        WorkloadKind::Rollout => json!({"spec": {"restartAt": now}}),
        WorkloadKind::Deployment
        | WorkloadKind::StatefulSet
        | WorkloadKind::DaemonSet
        | WorkloadKind::ReplicaSet
        | WorkloadKind::Job
        | WorkloadKind::Pod => {
            let metadata = json!({"annotations": {ROLL_OUT_ANNOTATION: now}});
            json!({"spec": {"template": {"metadata": metadata}}})
        }
    }
}

/// Waits until a pod of the workload would be born with the agent, as the API server says
/// of one that it creates for show. Fails when it would not, or not at all because of it.
async fn await_births(
    cluster: &Cluster,
    namespace: &str,
    workload: &WorkloadRef,
    template: PodTemplateSpec,
) -> Result<(), Failure> {
    let inventory = workloads::fetch(cluster, namespace).await?;
    let owner = inventory.pods_of(workload).find_map(controller);
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let born = trial(workload, &template, owner);
    let deadline = Instant::now() + BIRTHS_DEADLINE;
    loop {
        match create_for_show(cluster, &pods, &born).await? {
            Ok(pod) if has_agent(&pod) => return Ok(()),
            Ok(_) if Instant::now() >= deadline => {
                return Err(hopeless(
                    workload,
                    "its pods would be born without the agent",
                ));
            }
            Ok(_) => tokio::time::sleep(PAUSE).await,
            Err(status) if may_not_create(&status) => break,
            Err(status) => {
                // Without a controller it gets no agent. If it is refused all the same, as
                // where it lacks what its controller adds, nothing is known.
                let without = trial(workload, &template, None);
                match create_for_show(cluster, &pods, &without).await? {
                    Ok(_) => {
                        let why = format!("pods are refused with the agent: {}", status.message);
                        return Err(hopeless(workload, &why));
                    }
                    Err(_) => break,
                }
            }
        }
    }
    tokio::time::sleep(BLIND_PAUSE).await;
    Ok(())
}

/// Who creates a pod again.
fn controller(pod: &Pod) -> Option<OwnerReference> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true)).cloned()
}

/// A pod of the workload.
fn trial(workload: &WorkloadRef, template: &PodTemplateSpec, owner: Option<OwnerReference>) -> Pod {
    let metadata = template.metadata.clone().unwrap_or_default();
    let owner = owner.map(|owner| OwnerReference {
        // Would need a permission of its own.
        block_owner_deletion: None,
        ..owner
    });
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", workload.name)),
            labels: metadata.labels,
            annotations: metadata.annotations,
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// What the API server makes of a pod, or its refusal; nothing comes of it.
async fn create_for_show(
    cluster: &Cluster,
    pods: &Api<Pod>,
    pod: &Pod,
) -> Result<Result<Pod, Status>, Failure> {
    let request = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let created = async {
        match pods.create(&request, pod).await {
            Err(kube::Error::Api(status)) if [400, 403, 422].contains(&status.code) => {
                Ok(Err(*status))
            }
            created => created.map(Ok),
        }
    };
    cluster.call(created).await
}

fn has_agent(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let mut initial = spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    initial.any(|it| it.name.starts_with(AGENT_CONTAINER_PREFIX))
}

/// Whether a pod was not created for the user's lack of permissions, by RBAC or, of one that
/// names a controller, by the plugin OwnerReferencesPermissionEnforcement.
fn may_not_create(status: &Status) -> bool {
    let words = [
        "cannot create resource \"pods\"",
        "cannot set an ownerRef on a resource you can't delete",
    ];
    words.iter().any(|words| status.message.contains(words))
}

fn hopeless(workload: &WorkloadRef, why: &str) -> Failure {
    Failure::new(
        Reason::AgentRefused,
        format!(
            "{workload} cannot be rolled out for the agent, which its running pods are refused: {why}"
        ),
        "ask an administrator to admit ephemeral containers with NET_ADMIN there",
    )
}

/// What a user lacks who may engage a workload, and not change it.
fn without_permission(failure: Failure, namespace: &str, resource: &ApiResource) -> Failure {
    if failure.reason != Reason::Forbidden {
        return failure;
    }
    let next_step = format!(
        "ask an administrator for the verbs get and patch on {}.{} in namespace {namespace}, by which \
         `kubectl rollout restart` works too, or to admit ephemeral containers with NET_ADMIN there",
        resource.plural, resource.group
    );
    Failure {
        next_step,
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paused_workloads_and_those_of_the_patient_are_not_rolled_out() {
        let of = |spec: Value| obstacle(&json!({"spec": spec}));
        assert_eq!(of(json!({"paused": true})), Some("it is paused"));
        let on_delete = json!({"updateStrategy": {"type": "OnDelete"}});
        assert!(of(on_delete).unwrap().contains("OnDelete"));
        let recreate = json!({"strategy": {"type": "Recreate"}});
        assert!(of(recreate).unwrap().contains("Recreate"));
        let partition =
            |number| json!({"updateStrategy": {"rollingUpdate": {"partition": number}}});
        assert!(of(partition(2)).unwrap().contains("partition"));
        assert_eq!(of(partition(0)), None);
        let rolling = json!({"paused": false, "updateStrategy": {"type": "RollingUpdate"}});
        assert_eq!(of(rolling), None);
    }

    #[test]
    fn every_kind_that_has_a_roll_out_has_a_resource() {
        for kind in WorkloadKind::ALL {
            let resource = resource(kind);
            assert_eq!(resource.is_some(), kind.has_roll_out(), "{kind:?}");
            if let Some(resource) = resource {
                assert_eq!(
                    (resource.kind.as_str(), resource.group.as_str()),
                    (kind.as_str(), kind.group())
                );
            }
        }
    }

    #[test]
    fn template_gets_an_annotation_and_a_rollout_is_restarted() {
        let now: Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
        let annotations = json!({"kvpn.dev/restartedAt": "2026-01-01T00:00:00Z"});
        assert_eq!(
            patch(WorkloadKind::DaemonSet, now),
            json!({"spec": {"template": {"metadata": {"annotations": annotations}}}})
        );
        assert_eq!(
            patch(WorkloadKind::Rollout, now),
            json!({"spec": {"restartAt": "2026-01-01T00:00:00Z"}})
        );
    }

    #[test]
    fn trial_is_a_pod_of_the_template() {
        let web = WorkloadRef {
            kind: WorkloadKind::Deployment,
            name: "web".into(),
        };
        let template: PodTemplateSpec = serde_yaml::from_str(
            "{metadata: {labels: {app: web}, annotations: {a: b}}, spec: {containers: [{name: a}]}}",
        )
        .unwrap();
        let owner = OwnerReference {
            block_owner_deletion: Some(true),
            controller: Some(true),
            uid: "u".into(),
            ..OwnerReference::default()
        };
        let pod = trial(&web, &template, Some(owner));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
        assert_eq!(pod.metadata.labels.as_ref().unwrap()["app"], "web");
        assert_eq!(pod.metadata.annotations.as_ref().unwrap()["a"], "b");
        let owner = controller(&pod).unwrap();
        assert_eq!((&*owner.uid, owner.block_owner_deletion), ("u", None));
        assert!(!has_agent(&pod));
        assert_eq!(controller(&trial(&web, &template, None)), None);
    }

    #[test]
    fn a_refusal_by_rbac_says_nothing_of_the_agent() {
        let status = |message: &str| Status::failure(message, "Forbidden").with_code(403);
        let rbac = "pods is forbidden: User \"alice\" cannot create resource \"pods\" in API \
                    group \"\" in the namespace \"shop\"";
        assert!(may_not_create(&status(rbac)));
        let owners = "pods \"web-x\" is forbidden: cannot set an ownerRef on a resource you can't \
                      delete: , <nil>";
        assert!(may_not_create(&status(owners)));
        let policy = "pods \"web-x\" is forbidden: violates PodSecurity \"restricted:latest\"";
        assert!(!may_not_create(&status(policy)));
    }
}
