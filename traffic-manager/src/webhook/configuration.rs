//! What the API server is told to ask.

use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference,
    WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use kvpn_proto::names;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::state::Nursery;

/// How long the API server may wait for an answer before it creates the pod without, in
/// seconds.
const PATIENCE: i32 = 2;

/// How long the API server may take for one request, and the first and longest pause after
/// a failure.
const REQUEST: Duration = Duration::from_secs(10);
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Label of a namespace with its name
/// (<https://kubernetes.io/docs/reference/labels-annotations-taints/>).
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Label of a namespace that says what its pods may do. Those that are named here do not
/// admit an agent, and so would not admit a pod with one.
const POD_SECURITY_LABEL: &str = "pod-security.kubernetes.io/enforce";
const WITHOUT_AGENTS: [&str; 2] = ["baseline", "restricted"];

/// Writes the webhooks.
pub(crate) struct Configuration {
    pub(crate) client: Client,
    /// The traffic manager's.
    pub(crate) namespace: String,
    pub(crate) authority_pem: String,
    pub(crate) secret: String,
}

impl Configuration {
    /// Writes what is expected whenever that changes, for ever.
    pub(crate) async fn keep(self, mut expected: watch::Receiver<Option<Vec<Nursery>>>) {
        let mut pause = PAUSE.0;
        loop {
            let nurseries = expected.borrow_and_update().clone();
            if let Some(nurseries) = nurseries {
                match self.write(&nurseries).await {
                    Ok(()) => {
                        info!(
                            webhooks = nurseries.len(),
                            "the API server is told of births"
                        );
                        pause = PAUSE.0;
                    }
                    Err(why) => {
                        warn!(why, "the webhooks cannot be written");
                        sleep(pause).await;
                        pause = (pause * 2).min(PAUSE.1);
                        continue;
                    }
                }
            }
            if expected.changed().await.is_err() {
                return;
            }
        }
    }

    async fn write(&self, nurseries: &[Nursery]) -> Result<(), String> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let patch = Patch::Merge(self.patch(nurseries));
        let (name, request) = (names::WEBHOOK_CONFIGURATION, PatchParams::default());
        match timeout(REQUEST, api.patch(name, &request, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    fn patch(&self, nurseries: &[Nursery]) -> Value {
        let webhooks = nurseries.iter().enumerate();
        let webhooks: Vec<_> = webhooks
            .map(|(index, it)| self.webhook(index, it))
            .collect();
        json!({ "webhooks": webhooks })
    }

    fn webhook(&self, index: usize, nursery: &Nursery) -> MutatingWebhook {
        let admitting = LabelSelectorRequirement {
            key: POD_SECURITY_LABEL.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(WITHOUT_AGENTS.map(str::to_owned).to_vec()),
        };
        let name = (NAME_LABEL.to_owned(), nursery.namespace.clone());
        MutatingWebhook {
            name: format!("workload-{index}.agents.kvpn.dev"),
            admission_review_versions: vec!["v1".to_owned()],
            side_effects: "None".to_owned(),
            failure_policy: Some("Ignore".to_owned()),
            timeout_seconds: Some(PATIENCE),
            client_config: WebhookClientConfig {
                ca_bundle: Some(ByteString(self.authority_pem.clone().into_bytes())),
                service: Some(ServiceReference {
                    name: names::MANAGER_SERVICE.to_owned(),
                    namespace: self.namespace.clone(),
                    path: Some(format!("{}{}", names::ADMISSION_PATH, self.secret)),
                    port: Some(names::MANAGER_SERVICE_PORT.into()),
                }),
                url: None,
            },
            rules: Some(vec![RuleWithOperations {
                api_groups: Some(vec![String::new()]),
                api_versions: Some(vec!["v1".to_owned()]),
                operations: Some(vec!["CREATE".to_owned()]),
                resources: Some(vec!["pods".to_owned()]),
                scope: Some("Namespaced".to_owned()),
            }]),
            namespace_selector: Some(LabelSelector {
                match_labels: Some([name].into()),
                match_expressions: Some(vec![admitting]),
            }),
            object_selector: Some(nursery.selector.clone().into()),
            ..MutatingWebhook::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn webhooks_are_of_engaged_workloads_alone() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new("https://127.0.0.1:1".parse().unwrap());
        let configuration = Configuration {
            client: Client::try_from(config).unwrap(),
            namespace: "kvpn".into(),
            authority_pem: "PEM".into(),
            secret: "secret".into(),
        };
        let nursery = Nursery {
            namespace: "shop".into(),
            selector: [("app".to_owned(), "web".to_owned())].into_iter().collect(),
        };
        insta::assert_json_snapshot!(configuration.patch(&[nursery]));
        assert_eq!(configuration.patch(&[]), json!({"webhooks": []}));
    }
}
