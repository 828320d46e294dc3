//! Which name server is asked, and when the next one is.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::{ExchangeError, Query, exchange};

/// How long one name server may take before the next is asked.
const ATTEMPT: Duration = Duration::from_millis(1_500);

/// How long a lookup may take in all; below the five seconds after which the
/// C library asks again.
const DEADLINE: Duration = Duration::from_millis(4_500);

/// How often the whole list is gone through.
const ROUNDS: usize = 2;

/// Why no name server answered.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("not a DNS query")]
    NotAQuery,
    #[error("no name server is known")]
    NoServers,
    #[error("no name server answered in time")]
    TimedOut,
    #[error("no name server answered: {0}")]
    Failed(#[source] ExchangeError),
}

/// Forwards DNS messages to name servers, over UDP and, for answers that do
/// not fit, TCP.
#[derive(Debug)]
pub struct Forwarder {
    servers: Vec<SocketAddr>,
    /// Index of the server that answered last, which is asked first: a dead
    /// one costs a lookup its time only once.
    preferred: AtomicUsize,
    attempt: Duration,
    deadline: Duration,
}

impl Forwarder {
    /// Asks `servers` in this order.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self::with_limits(servers, ATTEMPT, DEADLINE)
    }

    pub(super) fn with_limits(
        servers: Vec<SocketAddr>,
        attempt: Duration,
        deadline: Duration,
    ) -> Self {
        Self {
            servers,
            preferred: AtomicUsize::new(0),
            attempt,
            deadline,
        }
    }

    /// Forwards a query (RFC 1035 section 4) and returns the answer, which has
    /// the query's id and is not truncated. A server that refuses or fails is
    /// passed over while another may answer.
    pub async fn forward(&self, query: &[u8]) -> Result<Vec<u8>, ForwardError> {
        let query = Query::parse(query).ok_or(ForwardError::NotAQuery)?;
        if self.servers.is_empty() {
            return Err(ForwardError::NoServers);
        }
        let deadline = Instant::now() + self.deadline;
        let mut outcome = Outcome::default();
        match timeout_at(deadline, self.ask_all(&query, &mut outcome)).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) | Err(_) => outcome.finish(),
        }
    }

    async fn ask_all(&self, query: &Query<'_>, outcome: &mut Outcome) -> Option<Vec<u8>> {
        let first = self.preferred.load(Ordering::Relaxed);
        for turn in 0..ROUNDS * self.servers.len() {
            let index = (first + turn) % self.servers.len();
            let server = self.servers[index];
            match timeout(self.attempt, exchange(server, query)).await {
                Ok(Ok(answer)) if answer.is_conclusive() => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Some(answer.message);
                }
                Ok(Ok(answer)) => outcome.unhelpful = Some(answer.message),
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "name server failed");
                    outcome.error = Some(error);
                }
                Err(_) => tracing::debug!(%server, "name server does not answer"),
            }
        }
        None
    }
}

/// Knows no server.
impl Default for Forwarder {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

/// The best that is known while nobody has answered.
#[derive(Default)]
struct Outcome {
    /// An answer such as SERVFAIL.
    unhelpful: Option<Vec<u8>>,
    error: Option<ExchangeError>,
}

impl Outcome {
    fn finish(self) -> Result<Vec<u8>, ForwardError> {
        match (self.unhelpful, self.error) {
            (Some(answer), _) => Ok(answer),
            (None, Some(error)) => Err(ForwardError::Failed(error)),
            (None, None) => Err(ForwardError::TimedOut),
        }
    }
}
