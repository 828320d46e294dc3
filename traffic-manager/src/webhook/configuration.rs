//! What the API server is told to ask.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations,
    ServiceReference, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use kvpn_proto::crd::{Engagement, Session};
use kvpn_proto::names::{self, AGENT_ANNOTATION, AGENT_ENABLED};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::Subject;
use crate::state::{Nursery, Questions};

/// How long the API server may wait for an answer before it creates the pod without, or
/// deletes something that nobody has heard of, in seconds.
const PATIENCE: (i32, i32) = (2, 1);

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
    pub(crate) async fn keep(self, mut expected: watch::Receiver<Option<Questions>>) {
        let mut pause = PAUSE.0;
        loop {
            let questions = expected.borrow_and_update().clone();
            if let Some(questions) = questions {
                match self.write(&questions).await {
                    Ok(()) => {
                        info!(
                            births = questions.births.len(),
                            deletions = questions.deletions,
                            "the API server is told what to ask"
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

    async fn write(&self, questions: &Questions) -> Result<(), String> {
        let api: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let patch = Patch::Merge(self.patch(questions));
        let (name, request) = (names::WEBHOOK_CONFIGURATION, PatchParams::default());
        match timeout(REQUEST, api.patch(name, &request, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the API server did not answer in time".to_owned()),
        }
    }

    fn patch(&self, questions: &Questions) -> Value {
        let births = questions.births.iter().enumerate();
        let births = births.map(|(index, nursery)| self.births(index, nursery));
        let deletions = questions.deletions.then(|| self.deletions());
        let webhooks: Vec<_> = births.chain([self.annotated()]).chain(deletions).collect();
        json!({ "webhooks": webhooks })
    }

    /// Asks about pods of a workload that are about to be created.
    fn births(&self, index: usize, nursery: &Nursery) -> MutatingWebhook {
        let name = (NAME_LABEL.to_owned(), nursery.namespace.clone());
        MutatingWebhook {
            name: format!("workload-{index}.agents.kvpn.dev"),
            object_selector: Some(nursery.selector.clone().into()),
            ..self.pods(Some([name].into()))
        }
    }

    /// Asks about annotated pods that are about to be created. Selectors know labels only;
    /// the API server judges the condition itself
    /// (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#matching-requests-matchconditions>).
    fn annotated(&self) -> MutatingWebhook {
        let all = "object.metadata.annotations";
        let expression = format!(
            "has({all}) && '{AGENT_ANNOTATION}' in {all} && \
             {all}['{AGENT_ANNOTATION}'] == '{AGENT_ENABLED}'"
        );
        MutatingWebhook {
            name: "annotated.agents.kvpn.dev".to_owned(),
            match_conditions: Some(vec![MatchCondition {
                name: "is-annotated".to_owned(),
                expression,
            }]),
            ..self.pods(None)
        }
    }

    /// Asks about pods that are about to be created, in namespaces of these labels that
    /// admit agents.
    fn pods(&self, namespaces: Option<BTreeMap<String, String>>) -> MutatingWebhook {
        let admitting = LabelSelectorRequirement {
            key: POD_SECURITY_LABEL.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(WITHOUT_AGENTS.map(str::to_owned).to_vec()),
        };
        MutatingWebhook {
            side_effects: "None".to_owned(),
            timeout_seconds: Some(PATIENCE.0),
            rules: Some(vec![RuleWithOperations {
                api_groups: Some(vec![String::new()]),
                api_versions: Some(vec!["v1".to_owned()]),
                operations: Some(vec!["CREATE".to_owned()]),
                resources: Some(vec!["pods".to_owned()]),
                scope: Some("Namespaced".to_owned()),
            }]),
            namespace_selector: Some(LabelSelector {
                match_labels: namespaces,
                match_expressions: Some(vec![admitting]),
            }),
            ..self.webhook(Subject::Birth)
        }
    }

    /// Asks about all that is about to be deleted of kvpn's own.
    fn deletions(&self) -> MutatingWebhook {
        let resources = [Engagement::plural(&()), Session::plural(&())];
        MutatingWebhook {
            name: "deletions.kvpn.dev".to_owned(),
            // Who asks is remembered.
            side_effects: "NoneOnDryRun".to_owned(),
            timeout_seconds: Some(PATIENCE.1),
            rules: Some(vec![RuleWithOperations {
                api_groups: Some(vec![Engagement::group(&()).into_owned()]),
                api_versions: Some(vec!["*".to_owned()]),
                operations: Some(vec!["DELETE".to_owned()]),
                resources: Some(resources.map(Cow::into_owned).to_vec()),
                scope: Some("Namespaced".to_owned()),
            }]),
            ..self.webhook(Subject::Deletion)
        }
    }

    /// What webhooks have in common: where to ask, and that no answer is as good as a yes.
    fn webhook(&self, subject: Subject) -> MutatingWebhook {
        MutatingWebhook {
            admission_review_versions: vec!["v1".to_owned()],
            failure_policy: Some("Ignore".to_owned()),
            client_config: WebhookClientConfig {
                ca_bundle: Some(ByteString(self.authority_pem.clone().into_bytes())),
                service: Some(ServiceReference {
                    name: names::MANAGER_SERVICE.to_owned(),
                    namespace: self.namespace.clone(),
                    path: Some(subject.path(&self.secret)),
                    port: Some(names::MANAGER_SERVICE_PORT.into()),
                }),
                url: None,
            },
            ..MutatingWebhook::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> Configuration {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new("https://127.0.0.1:1".parse().unwrap());
        Configuration {
            client: Client::try_from(config).unwrap(),
            namespace: "kvpn".into(),
            authority_pem: "PEM".into(),
            secret: "secret".into(),
        }
    }

    #[tokio::test]
    async fn webhooks_are_of_engaged_workloads_and_annotated_pods_alone() {
        let configuration = configuration();
        let nursery = Nursery {
            namespace: "shop".into(),
            selector: [("app".to_owned(), "web".to_owned())].into_iter().collect(),
            is_unproven: false,
        };
        let questions = Questions {
            births: vec![nursery],
            deletions: false,
        };
        insta::assert_json_snapshot!(configuration.patch(&questions));
        let nothing = configuration.patch(&Questions::default());
        let names = nothing["webhooks"].as_array().unwrap().iter();
        let names: Vec<_> = names.map(|webhook| &webhook["name"]).collect();
        assert_eq!(names, ["annotated.agents.kvpn.dev"]);
    }

    #[tokio::test]
    async fn deletions_are_asked_about_where_there_is_something_to_delete() {
        let questions = Questions {
            births: Vec::new(),
            deletions: true,
        };
        insta::assert_json_snapshot!(configuration().patch(&questions));
    }
}
