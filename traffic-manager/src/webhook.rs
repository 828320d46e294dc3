//! Has pods of engaged workloads born with an agent, by a mutating webhook
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>).
//! The API server asks about those pods alone, and creates them without an agent when it
//! gets no answer.

mod birth;
mod configuration;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use kvpn_proto::names::AGENT_CONTAINER_PREFIX;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::timeout;
use tracing::{debug, info, warn};

pub(crate) use configuration::Configuration;

use crate::controller::{AgentTemplate, random_name};
use crate::hub::Hub;

/// The longest question, in bytes; objects are shorter.
const MAX_QUESTION: usize = 4 << 20;

/// How long a question may take to come.
const QUESTION: Duration = Duration::from_secs(2);

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

    /// The end of the path, which keeps strangers from asking.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Answers a question about a pod.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = Limited::new(request.into_body(), MAX_QUESTION).collect();
        let review = match timeout(QUESTION, body).await {
            Ok(Ok(body)) => serde_json::from_slice(&body.to_bytes()).ok(),
            Ok(Err(_)) | Err(_) => None,
        };
        let question = review.and_then(|review: AdmissionReview<Pod>| review.try_into().ok());
        let Some(question) = question else {
            return plain(StatusCode::BAD_REQUEST);
        };
        let answer = self.judge(&question).into_review();
        match serde_json::to_vec(&answer) {
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

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
