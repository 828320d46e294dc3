//! Does at the API server what the state says.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::{Api, Client, Resource};
use kvpn_proto::crd::{Engagement, Session, condition};
use kvpn_proto::names::{AGENT_CONTAINER_PREFIX, HOLDER_CONTAINER_PREFIX, READER_CONTAINER_PREFIX};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::agent_container::{AgentTemplate, random_name, reader_security};
use super::complaint::complaint;
use super::selectors::resolve;
use super::writer::StatusWriter;
use crate::hub::Hub;
use crate::state::{Effect, Event, Key, Owner, Questions, Role};

/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(10);

/// How often a request is sent that fails for reasons that may pass, and the
/// first pause between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(100);

/// How often complaints of an agent are looked for, and the pause before each time. Most
/// agents have called by then; in the end the container's status says so too.
const COMPLAINTS: (u32, Duration) = (15, Duration::from_secs(1));

/// Carries out effects.
#[derive(Clone)]
pub(crate) struct Executor {
    pub(crate) hub: Arc<Hub>,
    pub(crate) client: Client,
    pub(crate) template: Arc<AgentTemplate>,
    writer: StatusWriter,
    /// What the API server is to ask.
    questions: watch::Sender<Option<Questions>>,
}

/// Why a request did not succeed.
pub(super) enum Trouble {
    /// The API server will not, whatever the number of tries.
    Refused(String),
    /// There is no such object.
    Gone(String),
    /// It may go better later.
    Passing(String),
}

impl Executor {
    pub(crate) fn new(
        hub: Arc<Hub>,
        client: Client,
        template: Arc<AgentTemplate>,
        questions: watch::Sender<Option<Questions>>,
    ) -> Self {
        Self {
            hub,
            client,
            template,
            writer: StatusWriter::default(),
            questions,
        }
    }

    /// Carries out effects as they come, each on its own.
    pub(crate) async fn run(self, mut effects: mpsc::UnboundedReceiver<Effect>) {
        while let Some(effect) = effects.recv().await {
            self.start(effect);
        }
    }

    fn start(&self, effect: Effect) {
        let this = self.clone();
        match effect {
            Effect::AddAgent { pod, uid, ip } => {
                tokio::spawn(async move { this.add_agent(pod, uid, ip).await });
            }
            Effect::AddHolder { pod, uid, target } => {
                tokio::spawn(async move { this.add_holder(pod, uid, target).await });
            }
            Effect::AddReader {
                pod,
                uid,
                target,
                owner,
            } => {
                tokio::spawn(async move { this.add_reader(pod, uid, target, owner).await });
            }
            Effect::ResolveWorkload {
                engagement,
                uid,
                workload,
            } => {
                tokio::spawn(async move {
                    let resolution = resolve(&this.client, &engagement.namespace, &workload).await;
                    this.hub.handle(Event::WorkloadResolved {
                        engagement,
                        uid,
                        resolution,
                    });
                });
            }
            Effect::WriteEngagement {
                engagement,
                uid,
                status,
            } => {
                let mut conditions = status.conditions.iter();
                if let Some(active) = conditions.find(|found| found.type_ == condition::ACTIVE) {
                    info!(
                        %engagement,
                        active = active.status,
                        reason = active.reason,
                        message = active.message,
                        covered = status.pods_covered,
                        selected = status.pods_selected,
                        "engagement"
                    );
                }
                self.write::<Engagement>(engagement, uid, json!(status));
            }
            Effect::WriteSession {
                session,
                uid,
                status,
            } => self.write::<Session>(session, uid, json!(status)),
            Effect::WriteWebhooks(questions) => {
                self.questions.send_replace(Some(questions));
            }
            Effect::DeleteEngagement { engagement, uid } => {
                info!(%engagement, "deleting the engagement: its session is gone");
                tokio::spawn(async move { this.delete::<Engagement>(engagement, uid).await });
            }
            Effect::DeleteSession { session, uid } => {
                info!(%session, "deleting the session: it was absent for too long");
                tokio::spawn(async move { this.delete::<Session>(session, uid).await });
            }
            // The hub sees to these itself.
            Effect::SendClaims { .. }
            | Effect::EndLink { .. }
            | Effect::DismissReader { .. }
            | Effect::RevokeSession { .. } => {}
        }
    }

    async fn add_agent(&self, pod: Key, pod_uid: String, ip: Option<IpAddr>) {
        let patch = |container: &str| self.template.patch(container, &pod_uid, ip);
        let added = self
            .add_container(&pod, AGENT_CONTAINER_PREFIX, patch)
            .await;
        match added {
            Ok(container) => {
                info!(%pod, container, "agent added");
                self.hub.handle(Event::AgentAdded {
                    pod_uid: pod_uid.clone(),
                    container: container.clone(),
                });
                self.listen_to_kubelet(pod, pod_uid, container).await;
            }
            Err(Trouble::Refused(message)) => {
                warn!(%pod, message, "agent refused");
                self.hub.handle(Event::AgentRefused { pod_uid, message });
            }
            Err(Trouble::Gone(message) | Trouble::Passing(message)) => {
                warn!(%pod, message, "agent not added");
                self.hub.handle(Event::AgentNotAdded { pod_uid, message });
            }
        }
    }

    /// Finds out what keeps the kubelet from starting an agent, for as long as it is
    /// waited for.
    async fn listen_to_kubelet(&self, pod: Key, pod_uid: String, container: String) {
        for _ in 0..COMPLAINTS.0 {
            tokio::time::sleep(COMPLAINTS.1).await;
            if !self.hub.awaits_agent(&pod_uid, &container) {
                return;
            }
            let complaint = complaint(&self.client, &pod, &pod_uid, &container).await;
            if let Some(message) = complaint {
                warn!(%pod, container, message, "agent not started");
                self.hub.handle(Event::AgentStuck {
                    pod_uid,
                    container,
                    message,
                });
                return;
            }
        }
    }

    async fn add_holder(&self, pod: Key, pod_uid: String, target: String) {
        let patch = |container: &str| self.template.holder_patch(container, &pod_uid, &target);
        let added = self
            .add_container(&pod, HOLDER_CONTAINER_PREFIX, patch)
            .await;
        self.tell_added(Role::Holder, &pod, pod_uid, target, added);
    }

    async fn add_reader(&self, pod: Key, pod_uid: String, target: String, owner: Option<Owner>) {
        let added = self.try_add_reader(&pod, &pod_uid, &target, owner).await;
        self.tell_added(Role::Reader, &pod, pod_uid, target, added);
    }

    async fn try_add_reader(
        &self,
        pod: &Key,
        pod_uid: &str,
        target: &str,
        owner: Option<Owner>,
    ) -> Result<String, Trouble> {
        let found = self.read_pod(pod).await?;
        let security = reader_security(target, &found, owner).map_err(Trouble::Passing)?;
        let patch = |container: &str| {
            (self.template).reader_patch(container, pod_uid, target, &found, security)
        };
        self.add_container(pod, READER_CONTAINER_PREFIX, patch)
            .await
    }

    /// The pod with all that the state has no use for, such as who its containers run as.
    async fn read_pod(&self, pod: &Key) -> Result<Pod, Trouble> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        // It may list pods, and no more.
        let request = ListParams::default().fields(&format!("metadata.name={}", pod.name));
        let found = persist(|| pods.list(&request)).await?.items.pop();
        found.ok_or_else(|| Trouble::Gone(format!("there is no pod {pod}")))
    }

    fn tell_added(
        &self,
        role: Role,
        pod: &Key,
        pod_uid: String,
        target: String,
        added: Result<String, Trouble>,
    ) {
        self.hub.handle(match added {
            Ok(container) => {
                info!(%pod, target, container, ?role, "companion added");
                Event::CompanionAdded {
                    role,
                    pod_uid,
                    target,
                    container,
                }
            }
            Err(trouble) => {
                let is_refused = matches!(trouble, Trouble::Refused(_));
                let (Trouble::Refused(message)
                | Trouble::Gone(message)
                | Trouble::Passing(message)) = trouble;
                warn!(%pod, target, message, ?role, "companion not added");
                Event::CompanionNotAdded {
                    role,
                    pod_uid,
                    target,
                    message,
                    is_refused,
                }
            }
        });
    }

    /// Adds an ephemeral container with a name that begins so; returns the name.
    async fn add_container(
        &self,
        pod: &Key,
        prefix: &str,
        patch: impl FnOnce(&str) -> Value,
    ) -> Result<String, Trouble> {
        let container = random_name(prefix)
            .map_err(|_| Trouble::Passing("no randomness for the container's name".to_owned()))?;
        let patch = Patch::Strategic(patch(&container));
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let request = PatchParams::default();
        persist(|| pods.patch_ephemeral_containers(&pod.name, &request, &patch)).await?;
        Ok(container)
    }

    fn write<K>(&self, object: Key, uid: String, status: Value)
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K: Send + Sync + 'static,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace);
        self.writer.write(api, object.name, uid, status);
    }

    async fn delete<K>(&self, object: Key, uid: String)
    where
        K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &object.namespace);
        let request = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match persist(|| api.delete(&object.name, &request)).await {
            Ok(_) | Err(Trouble::Gone(_)) => {}
            Err(Trouble::Refused(message) | Trouble::Passing(message)) => {
                warn!(%object, message, "cannot be deleted");
            }
        }
    }
}

/// Sends a request, and again while its trouble may pass.
pub(super) async fn persist<T, F>(request: impl FnMut() -> F) -> Result<T, Trouble>
where
    F: Future<Output = kube::Result<T>>,
{
    persist_from(PAUSE, request).await
}

/// As above, with that first pause.
async fn persist_from<T, F>(
    mut pause: Duration,
    mut request: impl FnMut() -> F,
) -> Result<T, Trouble>
where
    F: Future<Output = kube::Result<T>>,
{
    for _ in 1..TRIES {
        match attempt(request()).await {
            Err(Trouble::Passing(message)) => {
                debug!(message, ?pause, "a request is tried again");
                tokio::time::sleep(pause).await;
            }
            settled @ (Ok(_) | Err(Trouble::Refused(_) | Trouble::Gone(_))) => return settled,
        }
        pause *= 2;
    }
    attempt(request()).await
}

async fn attempt<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Trouble> {
    let answered = timeout(REQUEST, request)
        .await
        .map_err(|_| Trouble::Passing("the API server did not answer in time".to_owned()))?;
    match answered {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => Err(trouble(*status)),
        Err(error) => Err(Trouble::Passing(error.to_string())),
    }
}

/// What an answer other than success means.
fn trouble(status: Status) -> Trouble {
    match status.code {
        404 => Trouble::Gone(status.message),
        // Of a delete: another object has the name by now.
        409 if status.message.contains("Precondition failed: UID") => Trouble::Gone(status.message),
        408 | 409 | 429 => Trouble::Passing(status.message),
        400..=499 => Trouble::Refused(status.message),
        _ => Trouble::Passing(status.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        serde_json::from_value(json!({ "code": code, "message": message })).unwrap()
    }

    #[test]
    fn a_policy_that_refuses_is_told_from_troubles_that_pass() {
        let words = "pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\"";
        assert!(matches!(trouble(status(403, words)), Trouble::Refused(told) if told == words));
        assert!(matches!(
            trouble(status(422, "invalid")),
            Trouble::Refused(_)
        ));
        for code in [409, 429, 500, 503] {
            assert!(
                matches!(trouble(status(code, "")), Trouble::Passing(_)),
                "{code}"
            );
        }
        assert!(matches!(trouble(status(404, "")), Trouble::Gone(_)));
        let other = "Operation cannot be fulfilled: Precondition failed: UID in precondition: a, \
                     UID in object meta: b";
        assert!(matches!(trouble(status(409, other)), Trouble::Gone(_)));
    }

    #[tokio::test]
    async fn only_troubles_that_pass_are_tried_again() {
        let error = |code| kube::Error::Api(Box::new(status(code, "")));
        let mut tries = 0;
        let ended = persist_from(Duration::ZERO, || {
            tries += 1;
            let answer = if tries < 3 {
                Err(error(503))
            } else {
                Ok(tries)
            };
            async { answer }
        });
        assert!(matches!(ended.await, Ok(3)));

        let mut tries = 0;
        let ended = persist_from(Duration::ZERO, || {
            tries += 1;
            async { Err::<(), _>(error(403)) }
        });
        assert!(matches!(ended.await, Err(Trouble::Refused(_))));
        assert_eq!(tries, 1);

        let mut tries = 0;
        let ended = persist_from(Duration::ZERO, || {
            tries += 1;
            async { Err::<(), _>(error(503)) }
        });
        assert!(matches!(ended.await, Err(Trouble::Passing(_))));
        assert_eq!(tries, TRIES);
    }
}
