//! Questions to the host's own name servers.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_proto::rr::{DNSClass, LowerName, RecordType};
use kvpn_tunnel::dns::{ForwardError, Forwarder, parse_resolv_conf};
use tracing::{debug, info};

use crate::lease::slot;

/// The port of DNS.
const PORT: u16 = 53;

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

/// The file that names the host's name servers, read again when it has changed.
pub(super) struct Servers {
    path: PathBuf,
    /// Not asked, because a question would come back to us for ever.
    left_out: Vec<IpAddr>,
    read: Mutex<Read>,
}

#[derive(Default)]
struct Read {
    /// Of the file: inode, length, and its time in seconds and nanoseconds.
    version: Option<(u64, u64, i64, i64)>,
    forwarder: Arc<Forwarder>,
    /// Whether one of them is another connection's.
    is_connection: bool,
    /// Whether they are others than when this was asked last.
    has_changed: bool,
}

impl Servers {
    pub(super) fn new(path: PathBuf, left_out: Vec<IpAddr>) -> Self {
        Self {
            path,
            left_out,
            read: Mutex::default(),
        }
    }

    /// Servers that no file names.
    #[cfg(test)]
    pub(super) fn fixed(servers: Vec<SocketAddr>) -> Self {
        let fixed = Self::new(PathBuf::new(), Vec::new());
        fixed.read.lock().unwrap().forwarder = Arc::new(Forwarder::new(servers));
        fixed
    }

    /// What asks them as they are now.
    fn forwarder(&self) -> Arc<Forwarder> {
        Arc::clone(&self.read_again().forwarder)
    }

    fn read_again(&self) -> MutexGuard<'_, Read> {
        let version = fs::metadata(&self.path)
            .map(|it| (it.ino(), it.len(), it.mtime(), it.mtime_nsec()))
            .ok();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if version.is_some() && version != read.version {
            match fs::read_to_string(&self.path) {
                Ok(text) => {
                    let servers = self.addresses(&text);
                    info!(?servers, "The host's name servers");
                    read.version = version;
                    read.has_changed = true;
                    read.is_connection = servers.iter().any(|it| slot::is_own(&it.ip()));
                    read.forwarder = Arc::new(Forwarder::new(servers));
                }
                Err(error) => debug!(%error, "The host's name servers cannot be read"),
            }
        }
        read
    }

    fn addresses(&self, text: &str) -> Vec<SocketAddr> {
        let servers = parse_resolv_conf(text).name_servers.into_iter();
        servers
            .filter(|address| !self.left_out.contains(address))
            .map(|address| SocketAddr::new(address, PORT))
            .collect()
    }
}

/// The host's name servers. The same question is put to them only once at a
/// time, and everybody who asks it gets that answer: should one of them, such as
/// a resolver on this host, ask us in its turn, the question ends here instead
/// of going round.
#[derive(Clone)]
pub(super) struct Upstream {
    servers: Arc<Servers>,
    pending: Arc<Mutex<HashMap<Question, Pending>>>,
}

impl Upstream {
    pub(super) fn new(servers: Servers) -> Self {
        Self {
            servers: Arc::new(servers),
            pending: Arc::default(),
        }
    }

    /// Tells whether others are asked than when this was called last.
    pub(super) fn has_changed(&self) -> bool {
        std::mem::take(&mut self.servers.read_again().has_changed)
    }

    /// Tells whether who is asked is another connection of kvpn's.
    pub(super) fn is_connection(&self) -> bool {
        self.servers.read_again().is_connection
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
            this.servers.forwarder().forward(&query).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_again_when_it_changes_and_our_own_address_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("upstreams");
        let own = "198.18.0.1".parse().unwrap();
        let servers = Servers::new(path.clone(), vec![own]);
        let told = || format!("{:?}", servers.forwarder());
        assert!(!told().contains("10.0.0"));
        fs::write(&path, "nameserver 198.18.0.1\nnameserver 10.0.0.1\n").unwrap();
        assert!(told().contains("10.0.0.1:53"), "{}", told());
        assert!(!told().contains("198.18.0.1"), "{}", told());

        fs::write(&path, "nameserver 10.0.0.22\n").unwrap();
        assert!(told().contains("10.0.0.22:53"), "{}", told());
        // Better those of before than none.
        fs::remove_file(&path).unwrap();
        assert!(told().contains("10.0.0.22:53"), "{}", told());
    }
}
