//! Has pods of engaged workloads born with an agent, and hears who deletes Engagements and
//! Sessions, by mutating webhooks
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>).
//! The API server asks about these alone, and goes on without an agent, or in silence, when
//! it gets no answer.

mod birth;
mod configuration;
mod deletion;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use kvpn_proto::names::{self, AGENT_CONTAINER_PREFIX};
use ring::rand::{SecureRandom, SystemRandom};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::{debug, info, warn};

pub(crate) use configuration::Configuration;

use crate::controller::{AgentTemplate, random_name};
use crate::hub::Hub;

/// The longest question, in bytes; objects are shorter.
const MAX_QUESTION: usize = 4 << 20;

/// How long a question may take to come.
const QUESTION: Duration = Duration::from_secs(2);

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// A pod that is about to be created.
    Birth,
    /// An Engagement or a Session that is about to be deleted.
    Deletion,
}

impl Subject {
    const ALL: [Self; 2] = [Self::Birth, Self::Deletion];

    /// Where it is asked. The secret keeps strangers from asking.
    fn path(self, secret: &str) -> String {
        let end = match self {
            Self::Birth => "",
            Self::Deletion => "/deletion",
        };
        format!("{}{secret}{end}", names::ADMISSION_PATH)
    }

    /// What is asked at a path.
    fn at(path: &str, secret: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.path(secret) == path)
    }
}

/// Answers the API server's questions.
pub(crate) struct Webhook {
    hub: Arc<Hub>,
    template: Arc<AgentTemplate>,
    /// Known to the API server, and to who may read what it is told.
    secret: String,
}

impl Webhook {
    /// Fails when the system has no randomness.
    pub(crate) fn new(
        hub: Arc<Hub>,
        template: Arc<AgentTemplate>,
    ) -> Result<Self, ring::error::Unspecified> {
        let mut random = [0; 16];
        SystemRandom::new().fill(&mut random)?;
        Ok(Self {
            hub,
            template,
            secret: random.iter().map(|octet| format!("{octet:02x}")).collect(),
        })
    }

    /// The part of the paths that keeps strangers from asking.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Whether something is asked at a path.
    pub(crate) fn has_path(&self, path: &str) -> bool {
        Subject::at(path, &self.secret).is_some()
    }

    /// Answers a question.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some(subject) = Subject::at(request.uri().path(), &self.secret) else {
            return plain(StatusCode::NOT_FOUND);
        };
        let body = Limited::new(request.into_body(), MAX_QUESTION).collect();
        let Ok(Ok(body)) = timeout(QUESTION, body).await else {
            return plain(StatusCode::BAD_REQUEST);
        };
        let body = body.to_bytes();
        let answer = match subject {
            Subject::Birth => read(&body).map(|question| self.judge(&question)),
            Subject::Deletion => read(&body).map(|question| self.hear(&question)),
        };
        match answer {
            Some(answer) => written(answer),
            None => plain(StatusCode::BAD_REQUEST),
        }
    }

    /// Lets every deletion through, and remembers who asked for it.
    fn hear(&self, question: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        if let Some(deletion) = deletion::deletion(question) {
            self.hub.note_deletion(deletion);
        }
        AdmissionResponse::from(question)
    }

    /// Lets every pod through, and adds an agent to those that are to have one.
    fn judge(&self, question: &AdmissionRequest<Pod>) -> AdmissionResponse {
        let response = AdmissionResponse::from(question);
        let (Some(pod), Ok(agent)) = (&question.object, random_name(AGENT_CONTAINER_PREFIX)) else {
            return response;
        };
        let newborn = birth::newborn(question, pod);
        if !birth::can_have_agent(pod) {
            debug!(
                owner = newborn.owner,
                "a pod that cannot be born with an agent"
            );
            return response;
        }
        if !self.hub.delivers(&newborn, &agent) {
            return response;
        }
        let patch = birth::patch(pod, self.template.sidecar(&agent, birth::allowance(pod)));
        let Ok(patch) = serde_json::from_value(patch) else {
            warn!("the patch that adds an agent is malformed");
            return response;
        };
        match response.with_patch(patch) {
            Ok(response) => {
                let namespace = &newborn.namespace;
                info!(
                    namespace,
                    owner = newborn.owner,
                    agent,
                    "a pod is born with an agent"
                );
                response
            }
            Err(error) => {
                warn!(%error, "the patch that adds an agent cannot be written");
                AdmissionResponse::from(question)
            }
        }
    }
}

fn read<T: Resource + DeserializeOwned>(body: &[u8]) -> Option<AdmissionRequest<T>> {
    let review: AdmissionReview<T> = serde_json::from_slice(body).ok()?;
    review.try_into().ok()
}

fn written(answer: AdmissionResponse) -> Response<Full<Bytes>> {
    match serde_json::to_vec(&answer.into_review()) {
        Ok(body) => {
            let mut response = Response::new(Full::new(body.into()));
            let json = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => {
            warn!(%error, "an answer to the API server cannot be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_has_a_path_with_the_secret() {
        assert_eq!(Subject::at("/admit/a", "a"), Some(Subject::Birth));
        let deletion = Subject::at("/admit/a/deletion", "a");
        assert_eq!(deletion, Some(Subject::Deletion));
        for other in ["/admit/", "/admit/b", "/admit/b/deletion", "/admit/a/"] {
            assert_eq!(Subject::at(other, "a"), None, "{other}");
        }
    }
}
