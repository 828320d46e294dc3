//! Questions to the host's own name servers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_proto::rr::{DNSClass, LowerName, RecordType};
use kvpn_tunnel::dns::{ForwardError, Forwarder};

/// What makes two questions the same, whoever asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) name: LowerName,
    pub(super) record_type: RecordType,
    pub(super) class: DNSClass,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
}

type Answer = Result<Bytes, Arc<ForwardError>>;
type Pending = Shared<BoxFuture<'static, Answer>>;

/// The host's name servers. The same question is put to them only once at a
/// time, and everybody who asks it gets that answer: should one of them, such as
/// a resolver on this host, ask us in its turn, the question ends here instead
/// of going round.
#[derive(Clone)]
pub(super) struct Upstream {
    servers: Arc<Forwarder>,
    pending: Arc<Mutex<HashMap<Question, Pending>>>,
}

impl Upstream {
    pub(super) fn new(servers: Forwarder) -> Self {
        Self {
            servers: Arc::new(servers),
            pending: Arc::default(),
        }
    }

    /// Forwards a query that asks `question`. The answer's id and the case of
    /// its names may be those of another query.
    pub(super) async fn ask(&self, question: Question, query: &[u8]) -> Answer {
        let pending = self
            .lock()
            .entry(question.clone())
            .or_insert_with(|| self.forward(question, query.to_vec()))
            .clone();
        pending.await
    }

    /// The lookup goes on when the first who asked is gone.
    fn forward(&self, question: Question, query: Vec<u8>) -> Pending {
        let this = self.clone();
        let lookup = tokio::spawn(async move {
            let _forget = Forget {
                upstream: &this,
                question,
            };
            this.servers.forward(&query).await
        });
        async move {
            match lookup.await {
                Ok(Ok(answer)) => Ok(answer.into()),
                Ok(Err(error)) => Err(Arc::new(error)),
                Err(_) => Err(Arc::new(ForwardError::TimedOut)),
            }
        }
        .boxed()
        .shared()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Question, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question off the list, however its lookup ends.
struct Forget<'a> {
    upstream: &'a Upstream,
    question: Question,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.upstream.lock().remove(&self.question);
    }
}
