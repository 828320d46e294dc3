//! One connection of a session: its nonce, and who it turned out to be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvpn_proto::identity::{NONCE_LENGTH, signed_message};
use kvpn_proto::{Failure, Reason};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::sync::watch;

use crate::admission::Admitted;

/// How long a connection that was closed may take to tell its streams why.
const FAREWELL: Duration = Duration::from_millis(500);

/// One connection of a session.
#[derive(Debug)]
pub(crate) struct Connection {
    nonce: [u8; NONCE_LENGTH],
    standing: Mutex<Standing>,
    closed: watch::Sender<Option<Failure>>,
    /// Its place among those that are not known yet.
    place: Mutex<Option<Arc<Admitted>>>,
}

/// The session that a connection is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) session: String,
    pub(crate) uid: String,
    pub(crate) user: String,
}

#[derive(Debug)]
enum Standing {
    Unknown,
    /// The one try is under way, or has failed.
    Tried,
    Known(Identity),
}

impl Connection {
    /// Fails when the system has no randomness.
    pub(crate) fn new(place: Arc<Admitted>) -> Result<Self, ring::error::Unspecified> {
        let mut nonce = [0; NONCE_LENGTH];
        SystemRandom::new().fill(&mut nonce)?;
        Ok(Self {
            nonce,
            standing: Mutex::new(Standing::Unknown),
            closed: watch::Sender::new(None),
            place: Mutex::new(Some(place)),
        })
    }

    pub(crate) fn nonce(&self) -> &[u8; NONCE_LENGTH] {
        &self.nonce
    }

    /// Uses up the one try to authenticate.
    pub(crate) fn try_once(&self) -> Result<(), Failure> {
        self.check_open()?;
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match *standing {
            Standing::Unknown => {
                *standing = Standing::Tried;
                Ok(())
            }
            Standing::Tried | Standing::Known(_) => Err(unauthenticated(
                "this connection has used its one try to authenticate",
            )),
        }
    }

    /// Whether the signature proves that the caller holds the session's key.
    pub(crate) fn verify(&self, uid: &str, public_key: &[u8], signature: &[u8]) -> bool {
        let message = signed_message(uid, &self.nonce);
        UnparsedPublicKey::new(&ED25519, public_key)
            .verify(&message, signature)
            .is_ok()
    }

    pub(crate) fn identify(&self, identity: Identity) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Standing::Known(identity);
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        *place = None;
    }

    /// Whether it has shown who it is.
    pub(crate) fn is_known(&self) -> bool {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(*standing, Standing::Known(_))
    }

    /// Who the connection is of, for the calls that need to know.
    pub(crate) fn identity(&self) -> Result<Identity, Failure> {
        self.check_open()?;
        match &*self.standing.lock().unwrap_or_else(PoisonError::into_inner) {
            Standing::Known(identity) => Ok(identity.clone()),
            Standing::Unknown | Standing::Tried => {
                Err(unauthenticated("this connection is not authenticated"))
            }
        }
    }

    /// Ends the connection: its streams end with this failure, then it is cut.
    pub(crate) fn close(&self, failure: Failure) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(failure);
            first
        });
    }

    /// Why the connection was closed, if it was.
    pub(crate) fn closed(&self) -> Option<Failure> {
        self.closed.borrow().clone()
    }

    /// Waits until the connection is closed, and says why.
    pub(crate) async fn wait_closed(&self) -> Failure {
        let mut closed = self.closed.subscribe();
        match closed
            .wait_for(Option::is_some)
            .await
            .map(|closed| closed.clone())
        {
            Ok(Some(failure)) => failure,
            // The sender lives in `self`.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the connection is to be cut.
    pub(crate) async fn wait_cut(&self) {
        self.wait_closed().await;
        tokio::time::sleep(FAREWELL).await;
    }

    fn check_open(&self) -> Result<(), Failure> {
        self.closed().map_or(Ok(()), Err)
    }

    #[cfg(test)]
    pub(crate) fn for_test() -> Self {
        let admission = crate::admission::Admission::new(1, 1);
        let place = admission.admit([127, 0, 0, 1].into()).unwrap();
        Self::new(Arc::new(place)).unwrap()
    }
}

/// The failure of a caller who has not shown who it is.
pub(crate) fn unauthenticated(message: &str) -> Failure {
    Failure::new(
        Reason::Unauthenticated,
        message,
        "run `kvpn quit`, then `kvpn connect` again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{Ed25519KeyPair, KeyPair};

    fn key_pair() -> Ed25519KeyPair {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap()
    }

    fn identity() -> Identity {
        Identity {
            session: "alice-1".into(),
            uid: "u".into(),
            user: "alice".into(),
        }
    }

    #[test]
    fn a_signature_counts_for_its_key_its_session_and_its_connection_only() {
        let (connection, other) = (Connection::for_test(), Connection::for_test());
        let (pair, stranger) = (key_pair(), key_pair());
        let key = pair.public_key().as_ref();
        let signature = pair.sign(&signed_message("u", connection.nonce()));
        assert!(connection.verify("u", key, signature.as_ref()));
        assert!(!connection.verify("v", key, signature.as_ref()));
        assert!(!other.verify("u", key, signature.as_ref()));
        let stranger = stranger.public_key().as_ref();
        assert!(!connection.verify("u", stranger, signature.as_ref()));
        assert!(!connection.verify("u", key, b"short"));
    }

    #[test]
    fn a_connection_has_one_try() {
        let connection = Connection::for_test();
        assert!(connection.identity().is_err());
        assert_eq!(connection.try_once(), Ok(()));
        assert_eq!(
            connection.try_once().unwrap_err().reason,
            Reason::Unauthenticated
        );
        assert!(connection.identity().is_err());
    }

    #[test]
    fn a_known_connection_says_who_it_is_until_it_is_closed() {
        let connection = Connection::for_test();
        connection.try_once().unwrap();
        connection.identify(identity());
        assert_eq!(connection.identity(), Ok(identity()));
        let failure = Failure::new(Reason::SessionRevoked, "gone", "again");
        connection.close(failure.clone());
        connection.close(Failure::internal("later"));
        assert_eq!(connection.identity(), Err(failure.clone()));
        assert_eq!(connection.closed(), Some(failure));
    }
}
