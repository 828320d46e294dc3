//! A pod that is about to be created, and what is done to it.

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::core::admission::AdmissionRequest;
use kvpn_proto::names::{AGENT_ANNOTATION, AGENT_CONTAINER_PREFIX, AGENT_ENABLED};
use serde_json::{Value, json};

use crate::controller::{AgentTemplate, Allowance};
use crate::state::{Newborn, pull_secrets};

/// What a decision needs of it.
pub(super) fn newborn(question: &AdmissionRequest<Pod>, pod: &Pod) -> Newborn {
    let metadata = &pod.metadata;
    let namespace = question.namespace.clone().unwrap_or_default();
    let mut owners = metadata.owner_references.iter().flatten();
    let controller = owners.find(|owner| owner.controller == Some(true));
    let owner = controller.map_or_else(
        || {
            let name = metadata.name.as_ref().or(metadata.generate_name.as_ref());
            format!("{namespace}/{}", name.cloned().unwrap_or_default())
        },
        |owner| owner.uid.clone(),
    );
    Newborn {
        labels: metadata.labels.clone().unwrap_or_default(),
        owner,
        pull_secrets: pod.spec.as_ref().map(pull_secrets).unwrap_or_default(),
        is_annotated: is_annotated(pod),
        is_trial: question.dry_run,
        namespace,
    }
}

/// Whether it is to have an agent whoever engages it. The API server judges it likewise,
/// before it asks.
fn is_annotated(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(AGENT_ANNOTATION));
    value.is_some_and(|value| value == AGENT_ENABLED)
}

/// Kinds of controllers that create a pod again when it was refused.
const PERSISTENT: [&str; 4] = ["ReplicaSet", "StatefulSet", "DaemonSet", "Job"];

/// Label of nodes with their operating system.
const OS_LABEL: &str = "kubernetes.io/os";

/// Whether an agent in it does no harm and has something to do.
pub(super) fn can_have_agent(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let mut owners = pod.metadata.owner_references.iter().flatten();
    let is_persistent = owners
        .any(|owner| owner.controller == Some(true) && PERSISTENT.contains(&owner.kind.as_str()));
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    let node_os = spec
        .node_selector
        .as_ref()
        .and_then(|labels| labels.get(OS_LABEL));
    let is_windows = [os, node_os.map(String::as_str)].contains(&Some("windows"));
    let mut initial = spec.init_containers.iter().flatten();
    is_persistent
        && !is_windows
        // Others' traffic would come to it.
        && spec.host_network != Some(true)
        && !has_private_token(spec)
        && initial.all(|it| !it.name.starts_with(AGENT_CONTAINER_PREFIX))
}

/// Whether it has a token that only the user of all its containers may read, which the
/// agent, being root, would change
/// (<https://kubernetes.io/docs/concepts/storage/projected-volumes/#securitycontext-interactions>).
fn has_private_token(spec: &PodSpec) -> bool {
    let context = spec.security_context.as_ref();
    let has_group = context.is_some_and(|context| context.fs_group.is_some());
    let projected = spec
        .volumes
        .iter()
        .flatten()
        .filter_map(|it| it.projected.as_ref());
    let mut private = projected.filter(|volume| {
        let mode = volume.default_mode.unwrap_or(0o644);
        let mut sources = volume.sources.iter().flatten();
        mode & 0o004 == 0 && sources.any(|source| source.service_account_token.is_some())
    });
    !has_group && private.next().is_some()
}

/// What an agent may have of it, by what its containers have.
pub(super) fn allowance(pod: &Pod) -> Allowance {
    let spec = pod.spec.as_ref();
    let initial = spec.and_then(|spec| spec.init_containers.as_deref());
    let containers = spec.map(|spec| spec.containers.as_slice());
    let all = [containers, initial].into_iter().flatten().flatten();
    let mut allowance = Allowance::Guaranteed;
    for resources in all.map(|container| container.resources.as_ref()) {
        let limits = resources.and_then(|it| it.limits.as_ref());
        let requests = resources.and_then(|it| it.requests.as_ref());
        for name in ["cpu", "memory"] {
            let Some(limit) = limits.and_then(|limits| limits.get(name)) else {
                return Allowance::Open;
            };
            let request = requests.and_then(|requests| requests.get(name));
            if request.is_some_and(|request| request != limit) {
                allowance = Allowance::Limited;
            }
        }
    }
    allowance
}

/// The JSON patch (RFC 6902) that adds the agent, before all other containers.
pub(super) fn patch(pod: &Pod, agent: Value) -> Value {
    let spec = pod.spec.as_ref();
    let volume = AgentTemplate::token_volume();
    let has_initial = spec.is_some_and(|spec| spec.init_containers.is_some());
    let has_volumes = spec.is_some_and(|spec| spec.volumes.is_some());
    let add = |path: &str, value: Value| json!({"op": "add", "path": path, "value": value});
    json!([
        match has_initial {
            true => add("/spec/initContainers/0", agent),
            false => add("/spec/initContainers", json!([agent])),
        },
        match has_volumes {
            true => add("/spec/volumes/-", volume),
            false => add("/spec/volumes", json!([volume])),
        },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod {
        pod_of("ReplicaSet", spec)
    }

    fn pod_of(kind: &str, spec: &str) -> Pod {
        let owner =
            format!("{{apiVersion: apps/v1, kind: {kind}, name: a, uid: u, controller: true}}");
        let metadata = format!("{{ownerReferences: [{owner}]}}");
        serde_yaml::from_str(&format!("{{metadata: {metadata}, spec: {spec}}}")).unwrap()
    }

    #[test]
    fn pods_that_an_agent_would_harm_are_born_without() {
        let plain = "{containers: [{name: a}]}";
        assert!(can_have_agent(&pod(plain)));
        // Nobody would create it again.
        assert!(!can_have_agent(&pod_of("Workflow", plain)));
        for spec in [
            "{hostNetwork: true, containers: [{name: a}]}",
            "{os: {name: windows}, containers: [{name: a}]}",
            "{nodeSelector: {kubernetes.io/os: windows}, containers: [{name: a}]}",
            "{containers: [{name: a}], initContainers: [{name: kvpn-agent-abcde}]}",
        ] {
            assert!(!can_have_agent(&pod(spec)), "{spec}");
        }
    }

    #[test]
    fn only_the_word_of_the_annotation_asks_for_an_agent() {
        let annotated = |annotations: &str| {
            let pod = format!("{{metadata: {{annotations: {annotations}}}}}");
            is_annotated(&serde_yaml::from_str(&pod).unwrap())
        };
        assert!(annotated("{kvpn.dev/agent: enabled}"));
        for others in ["{}", "{kvpn.dev/agent: disabled}", "{agent: enabled}"] {
            assert!(!annotated(others), "{others}");
        }
    }

    #[test]
    fn tokens_that_others_may_not_read_stay_as_they_are() {
        let with = |mode: u32, context: &str| {
            let token = "serviceAccountToken: {path: t, audience: vault}";
            pod(&format!(
                "{{containers: [{{name: a}}], securityContext: {context}, volumes: [
                   {{name: v, projected: {{defaultMode: {mode}, sources: [{{{token}}}]}}}}]}}"
            ))
        };
        assert!(can_have_agent(&with(0o644, "{}")));
        assert!(!can_have_agent(&with(0o400, "{}")));
        assert!(can_have_agent(&with(0o440, "{fsGroup: 1000}")));
    }

    #[test]
    fn agents_have_limits_where_all_have() {
        let of = |resources: &str| {
            let guaranteed = "{limits: {cpu: '1', memory: 1Gi}}";
            allowance(&pod(&format!(
                "{{containers: [{{name: a, resources: {guaranteed}}},
                                {{name: b, resources: {resources}}}]}}"
            )))
        };
        assert_eq!(of("{}"), Allowance::Open);
        assert_eq!(of("{limits: {cpu: '1'}}"), Allowance::Open);
        let same = "{limits: {cpu: '1', memory: 1Gi}, requests: {cpu: '1', memory: 1Gi}}";
        assert_eq!(of(same), Allowance::Guaranteed);
        let less = "{limits: {cpu: '1', memory: 1Gi}, requests: {cpu: 100m, memory: 1Gi}}";
        assert_eq!(of(less), Allowance::Limited);
    }

    #[test]
    fn patch_fits_what_is_there() {
        let paths = |spec: &str| {
            let patch = patch(&pod(spec), json!({"name": "agent"}));
            let paths = patch
                .as_array()
                .unwrap()
                .iter()
                .map(|it| it["path"].clone());
            paths.collect::<Vec<_>>()
        };
        assert_eq!(
            paths("{containers: []}"),
            ["/spec/initContainers", "/spec/volumes"]
        );
        let more = "{containers: [], initContainers: [{name: a}], volumes: [{name: b}]}";
        assert_eq!(paths(more), ["/spec/initContainers/0", "/spec/volumes/-"]);
    }
}
