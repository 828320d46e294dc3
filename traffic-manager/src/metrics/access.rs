//! Who may read the metrics: as kube-rbac-proxy has it, whoever the API server
//! knows by their token and lets `get` the path.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use kvpn_proto::names;
use ring::digest::{SHA256, digest};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// How long a verdict holds.
const HOLDS: Duration = Duration::from_secs(10);

/// How many verdicts are remembered.
const MAX_VERDICTS: usize = 256;

/// How many reviews may be under way at once: anybody who reaches the port can
/// cause them.
const REVIEWS: usize = 4;

/// How long the API server may take for both reviews.
const REVIEW: Duration = Duration::from_secs(5);

/// The longest token that is reviewed, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// Asks the API server who may read the metrics.
#[derive(Debug)]
pub(crate) struct Access {
    reviewer: Reviewer,
    /// By the SHA-256 of the token.
    verdicts: Mutex<HashMap<Digest, Verdict>>,
    room: Semaphore,
}

type Digest = [u8; 32];

#[derive(Clone, Copy, Debug)]
struct Verdict {
    status: StatusCode,
    at: Instant,
}

impl Access {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            reviewer: Reviewer(client),
            verdicts: Mutex::default(),
            room: Semaphore::new(REVIEWS),
        }
    }

    /// `OK`, or why the request is refused.
    pub(super) async fn check(&self, headers: &HeaderMap) -> StatusCode {
        let Some(token) = bearer(headers) else {
            return StatusCode::UNAUTHORIZED;
        };
        let Ok(key) = Digest::try_from(digest(&SHA256, token.as_bytes()).as_ref()) else {
            return StatusCode::UNAUTHORIZED;
        };
        if let Some(status) = self.known(&key) {
            return status;
        }
        let Ok(_room) = self.room.try_acquire() else {
            return StatusCode::SERVICE_UNAVAILABLE;
        };
        match timeout(REVIEW, self.reviewer.review(token)).await {
            Ok(Ok(status)) => {
                self.remember(key, status);
                status
            }
            Ok(Err(error)) => {
                warn!(%error, "the API server does not say who reads the metrics");
                StatusCode::SERVICE_UNAVAILABLE
            }
            Err(_) => {
                warn!("the API server does not say in time who reads the metrics");
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    fn known(&self, key: &Digest) -> Option<StatusCode> {
        let verdict = self.lock().get(key).copied()?;
        (verdict.at.elapsed() < HOLDS).then_some(verdict.status)
    }

    fn remember(&self, key: Digest, status: StatusCode) {
        let mut verdicts = self.lock();
        verdicts.retain(|_, verdict| verdict.at.elapsed() < HOLDS);
        if verdicts.len() < MAX_VERDICTS {
            let at = Instant::now();
            verdicts.insert(key, Verdict { status, at });
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Verdict>> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The token of an `Authorization: Bearer` header (RFC 6750 section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    let is_token = !token.is_empty() && token.len() <= MAX_TOKEN;
    (scheme.eq_ignore_ascii_case("bearer") && is_token).then_some(token)
}

/// The API server, which knows tokens and rights.
struct Reviewer(Client);

impl Reviewer {
    async fn review(&self, token: &str) -> kube::Result<StatusCode> {
        let Some(user) = self.user(token).await? else {
            return Ok(StatusCode::UNAUTHORIZED);
        };
        let name = user.username.clone().unwrap_or_default();
        let allowed = self.may_read(user).await?;
        debug!(user = name, allowed, "metrics are asked for");
        Ok(if allowed {
            StatusCode::OK
        } else {
            StatusCode::FORBIDDEN
        })
    }

    async fn user(&self, token: &str) -> kube::Result<Option<UserInfo>> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.0.clone());
        let reviewed = api.create(&PostParams::default(), &review).await?;
        let status = reviewed.status.unwrap_or_default();
        let known = status.authenticated.unwrap_or(false);
        Ok(status.user.filter(|_| known))
    }

    async fn may_read(&self, user: UserInfo) -> kube::Result<bool> {
        let extra: Option<BTreeMap<String, Vec<String>>> = user.extra;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username,
                uid: user.uid,
                groups: user.groups,
                extra,
                non_resource_attributes: Some(NonResourceAttributes {
                    path: Some(names::METRICS_PATH.to_owned()),
                    verb: Some("get".to_owned()),
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.0.clone());
        let reviewed = api.create(&PostParams::default(), &review).await?;
        Ok(reviewed.status.is_some_and(|status| status.allowed))
    }
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reviewer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_token_counts() {
        let token = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        for other in ["Basic abc", "Bearer", "Bearer ", "abc"] {
            assert_eq!(token(other), None, "{other}");
        }
        let long = format!("Bearer {}", "a".repeat(MAX_TOKEN + 1));
        assert_eq!(token(&long), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
