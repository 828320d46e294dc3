//! Argo's Rollout, as far as it says which pods are its own; see
//! <https://argo-rollouts.readthedocs.io/en/stable/features/specification/>.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::crd::{WorkloadKind, WorkloadRef};

/// Makes pods by way of ReplicaSets, as a Deployment does.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "argoproj.io",
    version = "v1alpha1",
    kind = "Rollout",
    namespaced,
    schema = "disabled"
)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    pub replicas: Option<i32>,
    pub selector: Option<LabelSelector>,
    /// Absent where another workload's is used.
    pub template: Option<PodTemplateSpec>,
    pub workload_ref: Option<TemplateRef>,
}

/// Names the object whose pod template a Rollout uses, and whose selector where it
/// has none itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateRef {
    #[serde(default)]
    pub api_version: String,
    pub kind: String,
    pub name: String,
}

impl TemplateRef {
    /// The workload that has a selector to use: of those that Argo knows, a Deployment
    /// or a ReplicaSet. A PodTemplate has none.
    pub fn workload(&self) -> Option<WorkloadRef> {
        let (group, _) = self.api_version.split_once('/')?;
        let kind = [WorkloadKind::Deployment, WorkloadKind::ReplicaSet]
            .into_iter()
            .find(|kind| kind.as_str() == self.kind && kind.group() == group)?;
        Some(WorkloadRef {
            kind,
            name: self.name.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(spec: &str) -> Rollout {
        serde_yaml::from_str(&format!(
            "
            apiVersion: argoproj.io/v1alpha1
            kind: Rollout
            metadata: {{name: web, namespace: shop}}
            spec: {spec}
            status: {{phase: Healthy}}
            "
        ))
        .unwrap()
    }

    #[test]
    fn what_is_not_needed_is_not_looked_at() {
        let spec = "{replicas: 2, selector: {matchLabels: {app: web}}, strategy: {canary: {}}, \
                    template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, \
                    resources: {limits: {cpu: 1}}}]}}}";
        let spec = rollout(spec).spec;
        assert_eq!(spec.replicas, Some(2));
        assert!(spec.selector.is_some() && spec.template.is_some());
    }

    #[test]
    fn a_template_may_be_another_workloads() {
        let referred = |api_version: &str, kind: &str| {
            let reference =
                format!("{{workloadRef: {{apiVersion: {api_version}, kind: {kind}, name: web}}}}");
            let reference = rollout(&reference).spec.workload_ref?;
            reference.workload().map(|found| found.to_string())
        };
        assert_eq!(
            referred("apps/v1", "Deployment").as_deref(),
            Some("Deployment/web")
        );
        assert_eq!(
            referred("apps/v1", "ReplicaSet").as_deref(),
            Some("ReplicaSet/web")
        );
        assert_eq!(referred("v1", "PodTemplate"), None);
        assert_eq!(referred("apps.example/v1", "Deployment"), None);
    }
}
