//! How the TLS of a port's clients is ended here, and begun anew with the app.

use std::fmt;
use std::sync::Arc;

use kvpn_proto::tls::{TlsIdentity, TlsIdentityError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};

/// The type of a record of handshakes, with which a client begins (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;

/// The greater half of a record's version, which never changes.
const VERSION: u8 = 3;

/// Whether a client that has said this begins with TLS. Nothing else is known to.
pub(crate) fn is_hello(said: &[u8]) -> bool {
    said.first() == Some(&HANDSHAKE) && said.get(1).is_none_or(|version| *version == VERSION)
}

/// What is needed for a port; clones share the sessions that can be resumed.
#[derive(Clone)]
pub(crate) struct Termination {
    clients: Arc<ServerConfig>,
    app: Arc<ClientConfig>,
}

/// Why a port's TLS cannot be ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminationError {
    #[error(transparent)]
    Identity(#[from] TlsIdentityError),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] Error),
}

impl Termination {
    pub(crate) fn new(identity: &TlsIdentity) -> Result<Self, TerminationError> {
        let provider = Arc::new(ring::default_provider());
        let key = SingleCertAndKey::from(identity.certified_key()?);
        let clients = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(key));
        let app = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth();
        Ok(Self {
            clients: Arc::new(clients),
            app: Arc::new(app),
        })
    }

    /// For a client, with the protocol (RFC 7301) that was agreed on with the app.
    pub(crate) fn clients(&self, protocol: Option<Vec<u8>>) -> Arc<ServerConfig> {
        let mut clients = ServerConfig::clone(&self.clients);
        clients.alpn_protocols = protocol.into_iter().collect();
        Arc::new(clients)
    }

    /// For the app, with the protocols that a client speaks.
    pub(crate) fn app(&self, protocols: Vec<Vec<u8>>) -> Arc<ClientConfig> {
        let mut app = ClientConfig::clone(&self.app);
        app.alpn_protocols = protocols;
        Arc::new(app)
    }
}

impl fmt::Debug for Termination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Termination(…)")
    }
}

/// Takes whoever the app says it is: the connection does not leave the pod, where only its
/// own containers listen, and what they show is for others' eyes.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.0.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_of_tls_are_known_by_their_first_bytes() {
        assert!(is_hello(&[22]));
        assert!(is_hello(&[22, 3, 1, 2, 0, 1]));
        for other in [
            &b""[..],
            b"GET / HTTP/1.1",
            b"PRI * HTTP/2.0",
            &[22, 0],
            &[21, 3],
        ] {
            assert!(!is_hello(other), "{other:?}");
        }
    }
}
