//! The certificate and key by which agents end clients' TLS: read with the user's own
//! permissions, and given to the traffic manager for as long as the engagement lives. They are
//! in no resource and in no log.

use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::{Failure, Reason, v1};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::table::Key;
use crate::session::cluster::Cluster;
use crate::session::manager::{Client, Manager};

/// Keys of a Secret of type `kubernetes.io/tls`
/// (<https://kubernetes.io/docs/concepts/configuration/secret/#tls-secrets>).
const CERTIFICATES: &str = "tls.crt";
const KEY: &str = "tls.key";

/// How long the traffic manager may take to take an identity.
const GIVE_DEADLINE: Duration = Duration::from_secs(5);

/// How soon it is given again: the traffic manager hears of an engagement within
/// milliseconds, unless the API server is away.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where an identity comes from.
pub(crate) enum Source {
    Given(TlsIdentity),
    /// The name of a Secret.
    Secret(String),
}

impl Source {
    /// What a request asks for.
    pub(crate) fn of(given: Option<v1::TlsIdentity>, secret: String) -> Option<Self> {
        match given {
            Some(identity) => Some(Self::Given(identity.into())),
            None if secret.is_empty() => None,
            None => Some(Self::Secret(secret)),
        }
    }

    /// The identity, which can be used.
    pub(super) async fn read(
        &self,
        cluster: &Cluster,
        namespace: &str,
    ) -> Result<TlsIdentity, Failure> {
        let (identity, whence) = match self {
            Self::Given(identity) => (identity.clone(), "the files".to_owned()),
            Self::Secret(name) => {
                let api: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
                let secret = cluster.call(api.get_opt(name)).await;
                let secret = secret.map_err(|failure| unreadable(name, namespace, failure))?;
                let whence = format!("Secret {name}");
                (of_secret(name, namespace, secret)?, whence)
            }
        };
        match identity.certified_key() {
            Ok(_) => Ok(identity),
            Err(error) => Err(Failure::new(
                Reason::Usage,
                format!("TLS cannot be ended by {whence}: {error}"),
                "give a certificate with its chain, and its key, both in PEM",
            )),
        }
    }
}

/// A Secret that the user may not read is nobody's fault but of their permissions.
fn unreadable(name: &str, namespace: &str, failure: Failure) -> Failure {
    if failure.reason != Reason::Forbidden {
        return failure;
    }
    Failure {
        next_step: format!(
            "have an administrator let you `get` Secret {name} in namespace {namespace}, or \
             give the files by --tls-cert and --tls-key"
        ),
        ..failure
    }
}

fn of_secret(name: &str, namespace: &str, secret: Option<Secret>) -> Result<TlsIdentity, Failure> {
    let Some(secret) = secret else {
        return Err(Failure::new(
            Reason::Usage,
            format!("there is no Secret {name} in namespace {namespace}"),
            format!("see those that there are with `kubectl -n {namespace} get secrets`"),
        ));
    };
    let mut data = secret.data.unwrap_or_default();
    let mut value = |key| data.remove(key).map(|value| Bytes::from(value.0));
    match (value(CERTIFICATES), value(KEY)) {
        (Some(certificates), Some(key)) => Ok(TlsIdentity { certificates, key }),
        (None, _) | (_, None) => Err(Failure::new(
            Reason::Usage,
            format!("Secret {name} has no {CERTIFICATES} and {KEY}"),
            "name one of type kubernetes.io/tls",
        )),
    }
}

/// Gives an engagement's identity to the traffic manager, and to each one that comes after
/// it, for ever.
pub(super) async fn give(manager: Manager, key: Key, uid: String, identity: TlsIdentity) {
    let mut clients = manager.clients();
    let request = v1::GiveTlsIdentityRequest {
        uid,
        identity: Some(identity.into()),
    };
    loop {
        let client = clients.borrow_and_update().clone();
        let changed = match client {
            Some(client) => tokio::select! {
                changed = clients.changed() => changed,
                () = give_to(client, &key, &request) => clients.changed().await,
            },
            None => clients.changed().await,
        };
        if changed.is_err() {
            // There will be no other.
            return;
        }
    }
}

/// Gives it until it is taken.
async fn give_to(mut client: Client, key: &Key, request: &v1::GiveTlsIdentityRequest) {
    let mut pause = FIRST_PAUSE;
    loop {
        let call = client.give_tls_identity(request.clone());
        match timeout(GIVE_DEADLINE, call).await {
            Ok(Ok(given)) if given.get_ref().known => {
                info!(engagement = %key, "The traffic manager has the certificate and key");
                return;
            }
            Ok(Ok(_)) => {}
            Ok(Err(status)) => debug!(engagement = %key, %status, "The certificate is not taken"),
            Err(_) => debug!(engagement = %key, "The certificate is not taken in time"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(keys: &[&str]) -> Secret {
        let data = keys.iter().map(|key| {
            let value = ByteString(format!("of {key}").into_bytes());
            ((*key).to_owned(), value)
        });
        Secret {
            data: Some(data.collect()),
            ..Secret::default()
        }
    }

    #[test]
    fn secret_of_tls_has_both() {
        let both = secret(&[CERTIFICATES, KEY, "ca.crt"]);
        let identity = of_secret("web", "shop", Some(both)).unwrap();
        assert_eq!(identity.certificates, "of tls.crt");
        assert_eq!(identity.key, "of tls.key");
    }

    #[test]
    fn what_a_secret_lacks_is_told() {
        for keys in [&[CERTIFICATES][..], &[KEY], &[]] {
            let failure = of_secret("web", "shop", Some(secret(keys))).unwrap_err();
            assert!(failure.message.contains("no tls.crt"), "{failure:?}");
            assert!(failure.next_step.contains("kubernetes.io/tls"));
        }
        let failure = of_secret("web", "shop", None).unwrap_err();
        assert_eq!(failure.message, "there is no Secret web in namespace shop");
    }

    #[test]
    fn files_come_before_a_secret_and_nothing_is_nothing() {
        let given = v1::TlsIdentity::default();
        assert!(matches!(
            Source::of(Some(given), "web".into()),
            Some(Source::Given(_))
        ));
        assert!(matches!(
            Source::of(None, "web".into()),
            Some(Source::Secret(name)) if name == "web"
        ));
        assert!(Source::of(None, String::new()).is_none());
    }
}
