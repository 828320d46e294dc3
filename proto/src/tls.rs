//! The certificate and key by which an agent ends clients' TLS in an app's place.

use std::fmt;

use bytes::Bytes;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::v1;

/// How large a certificate with its chain and key may be together, in bytes. Each claim on a
/// port has a copy, and the claims of a pod travel in one message.
const LARGEST: usize = 64 << 10;

/// A certificate with its chain, and the key: both in PEM, and not looked into here.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlsIdentity {
    /// The server's own certificate comes first.
    pub certificates: Bytes,
    pub key: Bytes,
}

/// Why a certificate and key cannot be used. It tells nothing of the key.
#[derive(Debug, thiserror::Error)]
pub enum TlsIdentityError {
    #[error("the certificate is not in PEM")]
    Certificate,
    #[error("certificate and key are larger than {} KiB", LARGEST >> 10)]
    TooLarge,
    #[error("there is no certificate in PEM")]
    NoCertificate,
    #[error("there is no private key in PEM that is not encrypted")]
    NoKey,
    #[error("certificate and key cannot be used together: {0}")]
    Unusable(rustls::Error),
}

impl TlsIdentity {
    /// Both, ready for use; the key fits the certificate.
    pub fn certified_key(&self) -> Result<CertifiedKey, TlsIdentityError> {
        if self.certificates.len() + self.key.len() > LARGEST {
            return Err(TlsIdentityError::TooLarge);
        }
        let certificates = CertificateDer::pem_slice_iter(&self.certificates);
        let certificates = certificates.collect::<Result<Vec<_>, _>>();
        // As below, should both be in one file.
        let certificates = certificates.map_err(|_| TlsIdentityError::Certificate)?;
        if certificates.is_empty() {
            return Err(TlsIdentityError::NoCertificate);
        }
        // Its error might tell a line of the key.
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| TlsIdentityError::NoKey)?;
        CertifiedKey::from_der(certificates, key, &ring::default_provider())
            .map_err(TlsIdentityError::Unusable)
    }
}

/// Without the key, as logs show messages whole.
impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity(…)")
    }
}

impl fmt::Debug for v1::TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity(…)")
    }
}

impl From<v1::TlsIdentity> for TlsIdentity {
    fn from(message: v1::TlsIdentity) -> Self {
        Self {
            certificates: message.certificates,
            key: message.key,
        }
    }
}

impl From<TlsIdentity> for v1::TlsIdentity {
    fn from(identity: TlsIdentity) -> Self {
        Self {
            certificates: identity.certificates,
            key: identity.key,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> TlsIdentity {
        let made = rcgen::generate_simple_self_signed(["shop".to_owned()]).unwrap();
        TlsIdentity {
            certificates: made.cert.pem().into(),
            key: made.signing_key.serialize_pem().into(),
        }
    }

    #[test]
    fn key_that_fits_its_certificate_is_used_and_no_other() {
        let (one, other) = (made(), made());
        assert_eq!(one.certified_key().unwrap().cert.len(), 1);
        let refused = |certificates: &Bytes, key: &Bytes| {
            let mixed = TlsIdentity {
                certificates: certificates.clone(),
                key: key.clone(),
            };
            mixed.certified_key().unwrap_err().to_string()
        };
        let mismatch = refused(&one.certificates, &other.key);
        assert!(mismatch.contains("together"), "{mismatch}");
        assert_eq!(
            refused(&one.key, &one.key),
            TlsIdentityError::NoCertificate.to_string()
        );
        for nothing in [Bytes::new(), one.certificates.clone()] {
            assert_eq!(
                refused(&one.certificates, &nothing),
                TlsIdentityError::NoKey.to_string()
            );
        }
    }

    #[test]
    fn no_error_shows_a_key() {
        let made = made();
        let both = [&made.certificates[..], &made.key[..]].concat();
        // Whose lines were joined on the way.
        let line = String::from_utf8(both).unwrap().replace('\n', " ");
        let broken = TlsIdentity {
            certificates: line.into(),
            key: made.key,
        };
        let error = broken.certified_key().unwrap_err();
        assert!(format!("{error} {error:?}").len() < 100, "{error:?}");
    }

    #[test]
    fn what_would_not_travel_is_not_used() {
        let large = TlsIdentity {
            certificates: vec![b'a'; LARGEST].into(),
            key: "k".into(),
        };
        let error = large.certified_key().unwrap_err().to_string();
        assert!(error.contains("64 KiB"), "{error}");
    }

    #[test]
    fn no_message_shows_a_key() {
        let identity = v1::TlsIdentity {
            certificates: "public".into(),
            key: "hushed".into(),
        };
        let claim = v1::Claim {
            tls: Some(identity.clone()),
            ..v1::Claim::default()
        };
        let given = v1::GiveTlsIdentityRequest {
            identity: Some(identity.clone()),
            ..v1::GiveTlsIdentityRequest::default()
        };
        let request = v1::InterceptRequest {
            tls: Some(identity.clone()),
            ..v1::InterceptRequest::default()
        };
        let own = TlsIdentity::from(identity);
        let shown = format!("{claim:?} {given:?} {request:?} {own:?}");
        assert_eq!(shown.matches("TlsIdentity(…)").count(), 4, "{shown}");
        // Bytes are shown as text, or as numbers.
        assert!(
            !shown.contains("hushed") && !shown.contains("104, 117"),
            "{shown}"
        );
    }
}
