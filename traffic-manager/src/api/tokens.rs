//! Tokens by which agents show whose pod they are in, before its address is known
//! (<https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens>).

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use kvpn_proto::names::AGENT_TOKEN_AUDIENCE;
use kvpn_proto::{Failure, Reason};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::state::{Caller, Key};

/// How long the API server may take for a review.
const REVIEW: Duration = Duration::from_secs(5);

/// How many reviews may be under way at once.
const REVIEWS: usize = 16;

/// The longest token that is reviewed, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// How the API server names what a token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// How the user of a service account begins.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Has the API server review tokens.
pub(crate) struct Tokens {
    client: Client,
    room: Semaphore,
}

impl Tokens {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            room: Semaphore::new(REVIEWS),
        }
    }

    /// The pod that a token is bound to.
    pub(super) async fn pod_of(&self, token: &str) -> Result<Caller, Failure> {
        if token.len() > MAX_TOKEN {
            return Err(forbidden("the token is too long"));
        }
        let reviewed = timeout(REVIEW, self.review(token)).await;
        let status = reviewed
            .map_err(|_| unreviewed("it did not answer in time"))?
            .map_err(|error| unreviewed(&error.to_string()))?;
        read(status).ok_or_else(|| forbidden("the token is not one of a pod, for kvpn"))
    }

    async fn review(&self, token: &str) -> kube::Result<TokenReviewStatus> {
        // Nobody closes it.
        let _room = self.room.acquire().await;
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![AGENT_TOKEN_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = api.create(&PostParams::default(), &review).await?;
        Ok(reviewed.status.unwrap_or_default())
    }
}

fn read(status: TokenReviewStatus) -> Option<Caller> {
    let audiences = status.audiences.unwrap_or_default();
    let is_ours = audiences.iter().any(|it| it == AGENT_TOKEN_AUDIENCE);
    let user = status
        .user
        .filter(|_| status.authenticated == Some(true) && is_ours)?;
    let account = user.username.as_deref()?.strip_prefix(SERVICE_ACCOUNT)?;
    let (namespace, _) = account.split_once(':')?;
    let extra = user.extra.unwrap_or_default();
    let only = |name: &str| match extra.get(name).map(Vec::as_slice) {
        Some([value]) => Some(value.clone()),
        Some(_) | None => None,
    };
    Some(Caller::Pod {
        key: Key::new(namespace, only(POD_NAME)?),
        uid: only(POD_UID)?,
    })
}

fn forbidden(why: &str) -> Failure {
    let next_step = "only agents that the traffic manager had added to their pod may call it";
    Failure::new(Reason::Forbidden, why, next_step)
}

fn unreviewed(why: &str) -> Failure {
    Failure::new(
        Reason::ApiServerUnreachable,
        format!("the API server does not review the token: {why}"),
        "check the API server and the traffic manager's log",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviewed(authenticated: bool, audience: &str, user: &str) -> Option<Caller> {
        let status = format!(
            "
            authenticated: {authenticated}
            audiences: [{audience}]
            user:
              username: {user}
              extra:
                {POD_NAME}: [web-1]
                {POD_UID}: [u-1]
            "
        );
        read(serde_yaml::from_str(&status).unwrap())
    }

    #[test]
    fn only_tokens_of_pods_for_kvpn_count() {
        let account = "system:serviceaccount:shop:default";
        let pod = Caller::Pod {
            key: Key::new("shop", "web-1"),
            uid: "u-1".into(),
        };
        assert_eq!(reviewed(true, AGENT_TOKEN_AUDIENCE, account), Some(pod));
        assert_eq!(reviewed(false, AGENT_TOKEN_AUDIENCE, account), None);
        assert_eq!(
            reviewed(true, "https://kubernetes.default.svc", account),
            None
        );
        assert_eq!(reviewed(true, AGENT_TOKEN_AUDIENCE, "shop:default"), None);
    }
}
