//! Who the user is to the API server, the session's key, and its Session
//! resource.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kvpn_proto::crd::{ClientInfo, Session, SessionSpec};
use kvpn_proto::{Failure, Reason, identity, version};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};

use super::cluster::Cluster;

/// What a generated name may hold before the API server's five random letters.
const BASE_LENGTH: usize = 40;

/// The key that proves this session to the traffic manager. Never leaves this
/// process.
pub(crate) struct SessionKey(Ed25519KeyPair);

impl SessionKey {
    pub(crate) fn generate() -> Result<Self, Failure> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| Failure::internal("the system has no randomness for a key"))?;
        Ed25519KeyPair::from_pkcs8(document.as_ref())
            .map(Self)
            .map_err(Failure::internal)
    }

    /// As `spec.publicKey` has it.
    fn public(&self) -> String {
        identity::encode_public_key(self.0.public_key().as_ref())
    }

    /// Signs the traffic manager's nonce.
    pub(crate) fn sign(&self, session_uid: &str, nonce: &[u8]) -> Vec<u8> {
        let message = identity::signed_message(session_uid, nonce);
        self.0.sign(&message).as_ref().to_vec()
    }
}

/// Asks the API server for the user's name.
pub(crate) async fn user_name(cluster: &Cluster) -> Result<String, Failure> {
    let api: Api<SelfSubjectReview> = Api::all(cluster.client.clone());
    let review = SelfSubjectReview::default();
    let answer = cluster
        .call(api.create(&PostParams::default(), &review))
        .await?;
    answer
        .status
        .and_then(|status| status.user_info)
        .and_then(|user| user.username)
        .ok_or_else(|| {
            Failure::new(
                Reason::Unauthenticated,
                "the API server does not tell who you are",
                "check with `kubectl auth whoami`",
            )
        })
}

/// The Session resource of this process.
#[derive(Clone)]
pub(crate) struct OwnSession {
    pub(crate) name: String,
    pub(crate) uid: String,
    api: Api<Session>,
    cluster: Cluster,
}

impl OwnSession {
    pub(crate) async fn create(
        cluster: &Cluster,
        namespace: &str,
        user: &str,
        key: &SessionKey,
    ) -> Result<Self, Failure> {
        let hostname = nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let spec = SessionSpec {
            user: user.to_owned(),
            public_key: key.public(),
            client: ClientInfo {
                hostname: hostname.clone(),
                version: version::VERSION.to_owned(),
            },
        };
        let session = Session {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", label(&format!("{user}-{hostname}")))),
                ..ObjectMeta::default()
            },
            spec,
            status: None,
        };
        let api: Api<Session> = Api::namespaced(cluster.client.clone(), namespace);
        let created = match cluster
            .call(api.create(&PostParams::default(), &session))
            .await
        {
            Ok(created) => created,
            // Also a missing namespace means that the chart is not there.
            Err(failure) if failure.reason == Reason::NoSuchWorkload => {
                return Err(cluster.not_installed());
            }
            Err(failure) => return Err(cluster.blame_missing_chart(failure).await),
        };
        let (Some(name), Some(uid)) = (created.metadata.name, created.metadata.uid) else {
            return Err(Failure::internal(
                "the API server made a Session without a name",
            ));
        };
        Ok(Self {
            name,
            uid,
            api,
            cluster: cluster.clone(),
        })
    }

    pub(crate) async fn delete(&self) -> Result<(), Failure> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        self.cluster
            .call(deleted(&self.api, &self.name, &params))
            .await?;
        Ok(())
    }
}

/// Deletes an object; one that is gone already (or replaced by a namesake)
/// counts as deleted. `Some` is an object that lives on until its finalizers
/// are done.
pub(crate) async fn deleted<K>(
    api: &Api<K>,
    name: &str,
    params: &DeleteParams,
) -> kube::Result<Option<K>>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    match api.delete(name, params).await {
        Ok(outcome) => Ok(outcome.left()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Turns any text into the start of a resource name (RFC 1123 label).
pub(crate) fn label(text: &str) -> String {
    let mut label = String::new();
    for letter in text.chars().map(|letter| letter.to_ascii_lowercase()) {
        if letter.is_ascii_lowercase() || letter.is_ascii_digit() {
            label.push(letter);
        } else if !label.is_empty() && !label.ends_with('-') {
            label.push('-');
        }
    }
    label.truncate(BASE_LENGTH);
    let label = label.trim_end_matches('-');
    if label.is_empty() { "user" } else { label }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ED25519, UnparsedPublicKey};

    #[test]
    fn names_of_users_become_labels() {
        assert_eq!(label("alice-Lap.Top"), "alice-lap-top");
        assert_eq!(label("oidc:Ann@example.com"), "oidc-ann-example-com");
        assert_eq!(label("§§"), "user");
        assert_eq!(label(&"a-".repeat(60)).len(), BASE_LENGTH - 1);
    }

    #[test]
    fn signature_verifies_with_the_published_key() {
        let key = SessionKey::generate().unwrap();
        let published = identity::decode_public_key(&key.public()).unwrap();
        let signature = key.sign("uid-1", &[7; 32]);
        let verifier = UnparsedPublicKey::new(&ED25519, published);
        verifier
            .verify(&identity::signed_message("uid-1", &[7; 32]), &signature)
            .unwrap();
        assert!(
            verifier
                .verify(&identity::signed_message("uid-2", &[7; 32]), &signature)
                .is_err()
        );
    }
}
