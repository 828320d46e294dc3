//! A pod that is about to be created, and what is done to it.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::core::admission::AdmissionRequest;
use kvpn_proto::names::AGENT_CONTAINER_PREFIX;
use serde_json::{Value, json};

use crate::controller::AgentTemplate;
use crate::state::Newborn;

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
        is_trial: question.dry_run,
        namespace,
    }
}

/// Whether an agent in it does no harm and has something to do.
pub(super) fn can_have_agent(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let initial = spec.init_containers.iter().flatten();
    let mut all = spec.containers.iter().chain(initial.clone());
    let is_windows = spec.os.as_ref().is_some_and(|os| os.name == "windows");
    // Others' traffic would come to it.
    spec.host_network != Some(true)
        && !is_windows
        // With one more container it would not be of the class Guaranteed any more
        // (https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/).
        && !all.all(is_guaranteed)
        && initial.into_iter().all(|it| !it.name.starts_with(AGENT_CONTAINER_PREFIX))
}

fn is_guaranteed(container: &Container) -> bool {
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|it| it.limits.as_ref());
    let requests = resources.and_then(|it| it.requests.as_ref());
    ["cpu", "memory"].iter().all(|resource| {
        let limit = limits.and_then(|it| it.get(*resource));
        let request = requests.and_then(|it| it.get(*resource));
        limit.is_some() && (request.is_none() || request == limit)
    })
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
        serde_yaml::from_str(&format!("{{metadata: {{}}, spec: {spec}}}")).unwrap()
    }

    #[test]
    fn pods_that_an_agent_would_harm_are_born_without() {
        let limits = "resources: {limits: {cpu: '1', memory: 1Gi}}";
        assert!(can_have_agent(&pod("{containers: [{name: a}]}")));
        assert!(can_have_agent(&pod(&format!(
            "{{containers: [{{name: a, {limits}}}, {{name: b}}]}}"
        ))));
        let guaranteed = format!("{{containers: [{{name: a, {limits}}}]}}");
        assert!(!can_have_agent(&pod(&guaranteed)));
        let windows = "{os: {name: windows}, containers: [{name: a}]}";
        assert!(!can_have_agent(&pod(windows)));
        assert!(!can_have_agent(&pod(
            "{hostNetwork: true, containers: [{name: a}]}"
        )));
        let twice = "{containers: [{name: a}], initContainers: [{name: kvpn-agent-abcde}]}";
        assert!(!can_have_agent(&pod(twice)));
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
