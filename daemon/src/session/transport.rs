//! The byte stream to the traffic manager, before anybody is authenticated on
//! it: two ways through the API server, and which of them is taken.

mod attempt;
mod channel;
mod port_forward;
mod tls;
mod upgrade;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use kvpn_proto::{Failure, Reason, v1};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::{debug, info};

use super::cluster::Cluster;
use attempt::{Blame, Failed, no_answer};

/// How often in a row the way that has worked may fail before the other one is
/// tried: a traffic manager that restarts is soon there again.
const PATIENCE: u32 = 4;

/// How long an attempt may take, with the greeting: two of them fit into what a
/// person waits for.
const ATTEMPT: Duration = Duration::from_secs(12);

/// A byte stream to the traffic manager.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A way to the traffic manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The API server's `services/proxy`.
    Proxy,
    /// A port-forward to the pod.
    PortForward,
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    Auto,
    Proxy,
    PortForward,
}

/// The ways to the traffic manager.
pub(crate) struct Transports {
    cluster: Cluster,
    namespace: String,
    ways: Ways,
}

/// Which way is taken.
struct Ways {
    choice: Choice,
    history: Mutex<History>,
}

/// What is known from earlier attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct History {
    worked: Option<Transport>,
    /// Failures since then.
    failures: u32,
}

impl Transports {
    /// To the traffic manager in a namespace.
    pub(crate) fn new(cluster: Cluster, namespace: &str, choice: Choice) -> Self {
        Self {
            cluster,
            namespace: namespace.to_owned(),
            ways: Ways::new(choice),
        }
    }

    /// Opens a byte stream and greets the traffic manager on it: by the way that
    /// worked last, else by the one that does. A way works once the greeting is
    /// answered, since some let a stream open and then carry nothing.
    pub(crate) async fn open<T, F>(
        &self,
        greet: impl Fn(Box<dyn ByteStream>, Transport) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let greet = &greet;
        let attempt = |transport: Transport| async move {
            let attempt = async {
                let stream = self.dial(transport).await?;
                greet(stream, transport).await.map_err(Failed::by_way)
            };
            timeout(ATTEMPT, attempt)
                .await
                .unwrap_or_else(|_| Err(no_answer(&self.namespace, "no answer in time")))
        };
        self.ways.open(attempt).await
    }

    /// Opens a further byte stream, by the way that works.
    pub(crate) async fn open_further(&self) -> Result<(Box<dyn ByteStream>, Transport), Failure> {
        let transport = first(self.ways.choice, *self.ways.history());
        match self.dial(transport).await {
            Ok(stream) => Ok((stream, transport)),
            Err(failed) => Err(failed.failure),
        }
    }

    async fn dial(&self, transport: Transport) -> Result<Box<dyn ByteStream>, Failed> {
        let stream = match transport {
            Transport::Proxy => upgrade::open(&self.cluster, &self.namespace).await?,
            Transport::PortForward => port_forward::open(&self.cluster, &self.namespace).await?,
        };
        Ok(Box::new(stream))
    }
}

impl Ways {
    fn new(choice: Choice) -> Self {
        Self {
            choice,
            history: Mutex::default(),
        }
    }

    /// Attempts the way that worked last, then the other where that may help.
    async fn open<T, F>(&self, attempt: impl Fn(Transport) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let history = *self.history();
        let first = first(self.choice, history);
        let failed = match self.note(first, attempt(first).await) {
            Ok(opened) => return Ok(opened),
            Err(failed) => failed,
        };
        let Some(second) = second(self.choice, history, failed.blame) else {
            return Err(failed.failure);
        };
        debug!(transport = first.name(), error = %failed.failure, "One way is closed");
        match self.note(second, attempt(second).await) {
            Ok(opened) => {
                info!(transport = second.name(), "The other way is open");
                Ok(opened)
            }
            Err(other) => Err(neither([(first, failed), (second, other)])),
        }
    }

    /// Remembers what came of an attempt.
    fn note<T>(&self, transport: Transport, outcome: Result<T, Failed>) -> Result<T, Failed> {
        let mut history = self.history();
        match &outcome {
            Ok(_) => {
                *history = History {
                    worked: Some(transport),
                    failures: 0,
                };
            }
            Err(_) if history.worked == Some(transport) => history.failures += 1,
            Err(_) => {}
        }
        drop(history);
        outcome
    }

    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport {
    /// As `--transport` has it.
    fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::PortForward => "port-forward",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Proxy => Self::PortForward,
            Self::PortForward => Self::Proxy,
        }
    }
}

impl From<Transport> for v1::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Proxy => Self::Proxy,
            Transport::PortForward => Self::PortForward,
        }
    }
}

/// The way to try first.
fn first(choice: Choice, history: History) -> Transport {
    match choice {
        Choice::Auto => history.worked.unwrap_or(Transport::Proxy),
        Choice::Proxy => Transport::Proxy,
        Choice::PortForward => Transport::PortForward,
    }
}

/// The way to try when the first has failed.
fn second(choice: Choice, history: History, blame: Blame) -> Option<Transport> {
    let patient = history.worked.is_some() && history.failures + 1 < PATIENCE;
    match (choice, blame) {
        (Choice::Auto, Blame::Way) if !patient => Some(first(choice, history).other()),
        (Choice::Auto | Choice::Proxy | Choice::PortForward, _) => None,
    }
}

/// Tells what is wrong with both ways.
fn neither(ways: [(Transport, Failed); 2]) -> Failure {
    // Whatever is wrong with both is wrong with either.
    if let Some((_, failed)) = ways
        .iter()
        .find(|(_, failed)| failed.blame == Blame::Everything)
    {
        return failed.failure.clone();
    }
    let [(one, first), (other, second)] =
        ways.map(|(transport, failed)| (transport.name(), failed.failure));
    let reason = if first.reason == second.reason {
        first.reason
    } else {
        Reason::ManagerUnreachable
    };
    let next_step = if first.next_step == second.next_step {
        first.next_step
    } else {
        format!("{}; or {}", first.next_step, second.next_step)
    };
    let message = format!(
        "no way leads to the traffic manager: by {one}, {}; by {other}, {}",
        first.message, second.message
    );
    Failure::new(reason, message, next_step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(worked: Option<Transport>, failures: u32) -> History {
        History { worked, failures }
    }

    fn forbidden(what: &str) -> Failed {
        Failed::by_way(Failure::new(
            Reason::Forbidden,
            format!("alice may not {what}"),
            "ask an administrator",
        ))
    }

    #[test]
    fn proxy_is_tried_first_until_something_else_has_worked() {
        let new = history(None, 0);
        assert_eq!(first(Choice::Auto, new), Transport::Proxy);
        let worked = history(Some(Transport::PortForward), 2);
        assert_eq!(first(Choice::Auto, worked), Transport::PortForward);
    }

    #[test]
    fn the_other_way_is_tried_only_when_it_may_help() {
        let new = history(None, 0);
        assert_eq!(
            second(Choice::Auto, new, Blame::Way),
            Some(Transport::PortForward)
        );
        assert_eq!(second(Choice::Auto, new, Blame::Everything), None);
    }

    #[test]
    fn a_forced_way_has_no_other() {
        let worked = history(Some(Transport::Proxy), 9);
        for (choice, only) in [
            (Choice::Proxy, Transport::Proxy),
            (Choice::PortForward, Transport::PortForward),
        ] {
            assert_eq!(first(choice, worked), only);
            assert_eq!(second(choice, worked, Blame::Way), None);
        }
    }

    #[test]
    fn a_way_that_has_worked_gets_some_patience() {
        let worked = Some(Transport::Proxy);
        for failures in 0..PATIENCE - 1 {
            let history = history(worked, failures);
            assert_eq!(second(Choice::Auto, history, Blame::Way), None);
        }
        assert_eq!(
            second(Choice::Auto, history(worked, PATIENCE - 1), Blame::Way),
            Some(Transport::PortForward)
        );
    }

    /// Attempts of which only those by one way are answered.
    async fn open(ways: &Ways, answers: Transport) -> Result<Transport, Failure> {
        ways.open(|transport| {
            let silent = Failure::new(
                Reason::ManagerUnreachable,
                "the traffic manager does not answer in time",
                "look at its log",
            );
            let answered = transport == answers;
            let outcome = answered.then_some(transport);
            std::future::ready(outcome.ok_or_else(|| Failed::by_way(silent)))
        })
        .await
    }

    #[tokio::test]
    async fn a_way_on_which_nothing_answers_has_not_worked_and_leaves_the_other() {
        let ways = Ways::new(Choice::Auto);
        let opened = open(&ways, Transport::PortForward).await;
        assert_eq!(opened, Ok(Transport::PortForward));
        let worked = history(Some(Transport::PortForward), 0);
        assert_eq!(*ways.history(), worked);
    }

    #[tokio::test]
    async fn silence_uses_up_the_patience_with_the_way_that_has_worked() {
        let ways = Ways::new(Choice::Auto);
        assert!(open(&ways, Transport::Proxy).await.is_ok());
        for _ in 1..PATIENCE {
            assert!(open(&ways, Transport::PortForward).await.is_err());
        }
        let opened = open(&ways, Transport::PortForward).await;
        assert_eq!(opened, Ok(Transport::PortForward));
    }

    #[test]
    fn when_both_ways_are_forbidden_both_are_told() {
        let failure = neither([
            (Transport::Proxy, forbidden("get services/proxy")),
            (Transport::PortForward, forbidden("create pods/portforward")),
        ]);
        assert_eq!(failure.reason, Reason::Forbidden);
        assert_eq!(
            failure.message,
            "no way leads to the traffic manager: by proxy, alice may not get services/proxy; \
             by port-forward, alice may not create pods/portforward"
        );
        assert_eq!(failure.next_step, "ask an administrator");
    }

    #[test]
    fn a_traffic_manager_without_a_pod_is_told_alone() {
        let failure = neither([
            (Transport::Proxy, forbidden("get services/proxy")),
            (Transport::PortForward, attempt::no_ready_pod("kvpn")),
        ]);
        assert_eq!(failure.reason, Reason::ManagerUnreachable);
        assert!(failure.message.contains("no ready pod"), "{failure}");
    }
}
