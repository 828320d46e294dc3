//! The certificate authority that agents trust, and the server's certificate.
//!
//! The authority is kept in a Secret, so that agents that are already in pods
//! still trust a traffic manager that was restarted. Keys are never logged.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use kvpn_proto::names;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::timeout;
use tracing::info;

/// Name of the Secret.
const SECRET: &str = "traffic-manager-tls";
const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(10);

/// A certificate authority.
pub(crate) struct Authority {
    certificate_pem: String,
    key: KeyPair,
}

impl Authority {
    /// Reads the authority from its Secret, or makes both. The Secret is
    /// collected together with its owner.
    pub(crate) async fn load_or_create(
        client: Client,
        namespace: &str,
        owner: Option<OwnerReference>,
    ) -> anyhow::Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        if let Some(authority) = Self::load(&secrets, namespace).await? {
            return Ok(authority);
        }
        let authority = Self::create()?;
        let request = PostParams::default();
        let secret = authority.to_secret(owner);
        let created = timeout(REQUEST, secrets.create(&request, &secret))
            .await
            .with_context(|| format!("create Secret {namespace}/{SECRET}"))?;
        match created {
            Ok(_) => {
                info!(secret = SECRET, "made a certificate authority for agents");
                Ok(authority)
            }
            // Another traffic manager was faster; its authority counts.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                Self::load(&secrets, namespace)
                    .await?
                    .ok_or_else(|| anyhow!("Secret {namespace}/{SECRET} comes and goes"))
            }
            Err(error) => Err(error).with_context(|| format!("create Secret {namespace}/{SECRET}")),
        }
    }

    async fn load(secrets: &Api<Secret>, namespace: &str) -> anyhow::Result<Option<Self>> {
        let secret = timeout(REQUEST, secrets.get_opt(SECRET))
            .await
            .with_context(|| format!("read Secret {namespace}/{SECRET}"))?
            .with_context(|| format!("read Secret {namespace}/{SECRET}"))?;
        secret
            .map(|secret| {
                Self::from_secret(&secret).with_context(|| {
                    format!(
                        "read the authority in Secret {namespace}/{SECRET}; delete the Secret and \
                         restart the traffic manager to get a new one"
                    )
                })
            })
            .transpose()
    }

    fn create() -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("make the authority's key")?;
        let certificate = authority_params()
            .self_signed(&key)
            .context("sign the authority's certificate")?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key,
        })
    }

    fn from_secret(secret: &Secret) -> anyhow::Result<Self> {
        let text = |name: &str| -> anyhow::Result<String> {
            let data = secret.data.as_ref().and_then(|data| data.get(name));
            let ByteString(bytes) = data.ok_or_else(|| anyhow!("{name} is missing"))?;
            String::from_utf8(bytes.clone()).map_err(|_| anyhow!("{name} is not PEM"))
        };
        let certificate_pem = text(CERTIFICATE)?;
        if base64_of_pem(&certificate_pem).is_empty() {
            return Err(anyhow!("{CERTIFICATE} is not PEM"));
        }
        // The error of the parser might quote the key.
        let key = KeyPair::from_pem(&text(KEY)?).map_err(|_| anyhow!("{KEY} is not a key"))?;
        Ok(Self {
            certificate_pem,
            key,
        })
    }

    fn to_secret(&self, owner: Option<OwnerReference>) -> Secret {
        let data = [
            (CERTIFICATE, self.certificate_pem.clone()),
            (KEY, self.key.serialize_pem()),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                owner_references: owner.map(|owner| vec![owner]),
                ..ObjectMeta::default()
            },
            data: Some(
                data.into_iter()
                    .map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    /// The authority's certificate, DER in base64, as agents get it.
    pub(crate) fn certificate_base64(&self) -> String {
        base64_of_pem(&self.certificate_pem)
    }

    /// The authority's certificate, as webhooks have it.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// TLS for a port, with a certificate that is made for this process.
    pub(crate) fn server_config(
        &self,
        namespace: &str,
        alpn: &[&[u8]],
    ) -> anyhow::Result<Arc<ServerConfig>> {
        let issuer = Issuer::new(authority_params(), &self.key);
        let key = KeyPair::generate().context("make the server's key")?;
        let certificate = server_params(namespace)?
            .signed_by(&key, &issuer)
            .context("sign the server's certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .context("choose TLS versions")?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .context("use the server's certificate")?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
impl Authority {
    pub(crate) fn for_test() -> Self {
        Self::create().unwrap()
    }

    /// TLS for a client that trusts only this authority.
    pub(crate) fn client_config(&self, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};

        let mut roots = rustls::RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes());
        roots.add(certificate.unwrap()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "kvpn traffic-manager agent CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params
}

fn server_params(namespace: &str) -> anyhow::Result<CertificateParams> {
    // The second is what the API server calls a Service of that namespace.
    let service = format!("{}.{namespace}.svc", names::MANAGER_SERVICE);
    let mut params = CertificateParams::new([names::MANAGER_TLS_NAME.to_owned(), service])
        .context("name the server's certificate")?;
    params
        .distinguished_name
        .push(DnType::CommonName, names::MANAGER_SERVICE);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// What stands between the first `BEGIN` and `END` lines.
fn base64_of_pem(pem: &str) -> String {
    pem.lines()
        .skip_while(|line| !line.starts_with("-----BEGIN"))
        .skip(1)
        .take_while(|line| !line.starts_with("-----END"))
        .map(str::trim)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, ServerConnection};

    /// Shakes hands in memory with a client that trusts only `authority`.
    fn handshake(server: Arc<ServerConfig>, authority: &Authority) -> Result<(), rustls::Error> {
        let config = authority.client_config(&[]);
        let name = ServerName::try_from(names::MANAGER_TLS_NAME).unwrap();
        let mut client = ClientConnection::new(config, name)?;
        let mut server = ServerConnection::new(server)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut wire = Vec::new();
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut &wire[..]).unwrap();
            server.process_new_packets()?;
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut &wire[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn an_agent_trusts_the_authority_also_after_a_restart() {
        let authority = Authority::create().unwrap();
        let again = Authority::from_secret(&authority.to_secret(None)).unwrap();
        for server in [&authority, &again] {
            let server = server.server_config("kvpn", &[]).unwrap();
            assert_eq!(handshake(server, &authority), Ok(()));
        }
        assert_eq!(authority.certificate_base64(), again.certificate_base64());
    }

    #[test]
    fn an_agent_does_not_trust_another_authority() {
        let (authority, other) = (Authority::create().unwrap(), Authority::create().unwrap());
        let server = other.server_config("kvpn", &[]).unwrap();
        assert!(handshake(server, &authority).is_err());
    }

    #[test]
    fn a_damaged_secret_is_refused_without_showing_the_key() {
        let mut secret = Authority::create().unwrap().to_secret(None);
        let damaged = ByteString(b"secret words".to_vec());
        secret.data.as_mut().unwrap().insert(KEY.into(), damaged);
        let error = Authority::from_secret(&secret).err().unwrap();
        assert!(!format!("{error:#}").contains("secret words"));
        secret.data.as_mut().unwrap().remove(KEY);
        assert!(Authority::from_secret(&secret).is_err());
    }
}
