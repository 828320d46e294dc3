//! The way through the API server, as kvpn's own tunnel takes it, and nothing
//! more: TLS, an upgraded request to `services/proxy`, bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use kvpn_tests::bench::ports::{NAMESPACE, PROXY_NAME, Service};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::target::{Stream, connect};

/// How much rustls encrypts at once.
const SEND_BUFFER: usize = 256 << 10;

/// The longest answer that is read.
const MAX_HEAD: usize = 16 << 10;

/// The API server, and who the user is.
#[derive(Clone, Debug)]
pub(crate) struct Pipe {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
}

#[derive(Deserialize)]
struct Kubeconfig {
    clusters: [NamedCluster; 1],
    users: [NamedUser; 1],
}

#[derive(Deserialize)]
struct NamedCluster {
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: ByteString,
}

#[derive(Deserialize)]
struct NamedUser {
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: ByteString,
    client_key_data: ByteString,
}

impl Pipe {
    /// Reads a kubeconfig such as the lab's: one cluster, one user with a
    /// certificate.
    pub(crate) fn read(kubeconfig: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(kubeconfig)
            .with_context(|| format!("read {}", kubeconfig.display()))?;
        let config: Kubeconfig = parse(&text).context("read the kubeconfig")?;
        let [NamedCluster { cluster }] = config.clusters;
        let [NamedUser { user }] = config.users;
        let authority = cluster.server.strip_prefix("https://");
        let authority = authority.context("the API server's URL is not https")?;
        let (host, _) = authority.rsplit_once(':').context("no port in the URL")?;
        let address = authority.to_socket_addrs().context("resolve")?.next();
        let name = ServerName::try_from(host.to_owned()).context("a name for TLS")?;
        Ok(Self {
            address: address.context("the API server has no address")?,
            name,
            tls: Arc::new(tls(&cluster, &user)?),
        })
    }

    /// Opens a connection for a purpose.
    pub(crate) fn open(&self, service: Service) -> Result<Box<dyn Stream>> {
        let mut session = ClientConnection::new(Arc::clone(&self.tls), self.name.clone())?;
        session.set_buffer_limit(Some(SEND_BUFFER));
        let mut stream = StreamOwned::new(session, connect(self.address)?);
        let request = format!(
            "GET /api/v1/namespaces/{NAMESPACE}/services/{PROXY_NAME}/proxy{} HTTP/1.1\r\n\
             Host: {}\r\nConnection: Upgrade\r\nUpgrade: kvpn\r\n\r\n",
            service.path(),
            self.address,
        );
        stream.write_all(request.as_bytes()).context("ask")?;
        let head = read_head(&mut stream)?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.starts_with("HTTP/1.1 101"), "not upgraded: {head}");
        Ok(Box::new(stream))
    }
}

/// Reads up to the empty line, and no byte more.
fn read_head(stream: &mut impl Read) -> Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < MAX_HEAD, "an endless answer");
        stream.read_exact(&mut byte).context("read the answer")?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn tls(cluster: &Cluster, user: &User) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let authority = &cluster.certificate_authority_data.0;
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate.context("read the authority")?)?;
    }
    let own: Vec<_> = CertificateDer::pem_slice_iter(&user.client_certificate_data.0)
        .collect::<Result<_, _>>()
        .context("read the user's certificate")?;
    let key =
        PrivateKeyDer::from_pem_slice(&user.client_key_data.0).context("read the user's key")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(own, key)
        .context("prepare TLS")
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_yaml::from_str(text).context("not the YAML that was expected")
}
