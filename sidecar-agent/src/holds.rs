//! Has the processes of containers stopped by their holders.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use crate::holder::{DONE, HOLD, RELEASE, address};

/// How long until the socket is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a holder may take to do what it is told.
const DEADLINE: Duration = Duration::from_secs(10);

/// The holders of this pod, and what they are to stop.
#[derive(Default)]
pub(crate) struct Holds {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    wanted: watch::Sender<BTreeSet<String>>,
    outcomes: watch::Sender<Outcomes>,
}

/// What came of stopping a container; `Err` with the reason why it is not stopped.
type Outcome = Result<(), String>;

/// What came of it, by container.
type Outcomes = BTreeMap<String, Outcome>;

/// Whether all that is to be stopped is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Held,
    /// A holder is missing, or about to.
    Waiting,
    Failed(String),
}

impl Holds {
    /// Waits for holders from now on.
    pub(crate) fn listen(&self) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            loop {
                // Another agent of the pod may have the name, and leave.
                if let Err(error) = shared.accept().await {
                    debug!("No holder can call: {error:#}");
                }
                sleep(AGAIN).await;
            }
        });
    }

    /// These containers are to be stopped, and no others.
    pub(crate) fn want(&self, containers: BTreeSet<String>) {
        self.shared.wanted.send_if_modified(|wanted| {
            let is_new = *wanted != containers;
            *wanted = containers;
            is_new
        });
    }

    pub(crate) fn standing(&self) -> Standing {
        let outcomes = self.shared.outcomes.borrow();
        let mut standing = Standing::Held;
        for container in self.shared.wanted.borrow().iter() {
            match outcomes.get(container) {
                Some(Ok(())) => {}
                None => standing = Standing::Waiting,
                Some(Err(why)) => {
                    return Standing::Failed(format!(
                        "container {container} is not stopped: {why}"
                    ));
                }
            }
        }
        standing
    }

    /// Tells when something has come of it.
    pub(crate) fn changes(&self) -> watch::Receiver<Outcomes> {
        self.shared.outcomes.subscribe()
    }
}

impl Shared {
    /// Serves all who call, until the socket fails.
    async fn accept(self: &Arc<Self>) -> anyhow::Result<()> {
        let listener = UnixListener::bind_addr(&address()?).context("listen for holders")?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            let shared = Arc::clone(self);
            tokio::spawn(async move {
                if let Err(error) = shared.serve(stream).await {
                    debug!("A holder is gone: {error:#}");
                }
            });
        }
    }

    async fn serve(&self, stream: UnixStream) -> anyhow::Result<()> {
        // Others in the pod may call too.
        ensure!(stream.peer_cred()?.uid() == 0, "it is not root's");
        let (reader, writer) = stream.into_split();
        let mut holder = Holder {
            lines: BufReader::new(reader).lines(),
            writer,
        };
        let container = holder.line().await?;
        let served = self.direct(&mut holder, &container).await;
        self.note(&container, None);
        served
    }

    /// Tells the holder of a container what to do, for as long as it is there.
    async fn direct(&self, holder: &mut Holder, container: &str) -> anyhow::Result<()> {
        let mut wanted = self.wanted.subscribe();
        let mut is_held = false;
        loop {
            let is_wanted = wanted.borrow_and_update().contains(container);
            if is_wanted != is_held {
                let word = if is_wanted { HOLD } else { RELEASE };
                // What came of it before says nothing any more.
                self.note(container, None);
                let outcome = holder.ask(word).await?;
                info!(container, ?outcome, "{word}");
                is_held = is_wanted;
                self.note(container, is_held.then_some(outcome));
            }
            tokio::select! {
                _ = wanted.changed() => {}
                // It says nothing unasked.
                line = holder.lines.next_line() => {
                    ensure!(line?.is_some(), "it has hung up");
                }
            }
        }
    }

    fn note(&self, container: &str, outcome: Option<Outcome>) {
        self.outcomes.send_modify(|outcomes| {
            match outcome {
                Some(outcome) => outcomes.insert(container.to_owned(), outcome),
                None => outcomes.remove(container),
            };
        });
    }
}

struct Holder {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Holder {
    async fn ask(&mut self, word: &str) -> anyhow::Result<Outcome> {
        self.writer
            .write_all(format!("{word}\n").as_bytes())
            .await?;
        Ok(match self.line().await?.as_str() {
            DONE => Ok(()),
            why => Err(why.to_owned()),
        })
    }

    async fn line(&mut self) -> anyhow::Result<String> {
        let line = timeout(DEADLINE, self.lines.next_line()).await;
        line.context("it does not answer")??
            .context("it has hung up")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanting(containers: &[&str]) -> Holds {
        let holds = Holds::default();
        holds.want(containers.iter().map(|it| (*it).to_owned()).collect());
        holds
    }

    #[test]
    fn all_is_held_once_each_holder_has_said_so() {
        let holds = wanting(&["app", "worker"]);
        assert_eq!(holds.standing(), Standing::Waiting);
        holds.shared.note("app", Some(Ok(())));
        assert_eq!(holds.standing(), Standing::Waiting);
        holds.shared.note("worker", Some(Ok(())));
        assert_eq!(holds.standing(), Standing::Held);
        holds.shared.note("app", None);
        assert_eq!(holds.standing(), Standing::Waiting);
        holds.shared.note("app", Some(Err("no".into())));
        let why = "container app is not stopped: no".to_owned();
        assert_eq!(holds.standing(), Standing::Failed(why));
        assert_eq!(wanting(&[]).standing(), Standing::Held);
    }

    #[tokio::test]
    async fn holder_is_told_what_is_wanted_and_its_end_is_noticed() {
        let holds = wanting(&["app"]);
        let mut changes = holds.changes();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = theirs.into_split();
        let shared = Arc::clone(&holds.shared);
        let served = tokio::spawn(async move {
            let mut holder = Holder {
                lines: BufReader::new(reader).lines(),
                writer,
            };
            let served = shared.direct(&mut holder, "app").await;
            shared.note("app", None);
            served
        });
        let (reader, mut writer) = ours.into_split();
        let mut told = BufReader::new(reader).lines();
        assert_eq!(told.next_line().await.unwrap().unwrap(), HOLD);
        writer.write_all(b"done\n").await.unwrap();
        let is_done = |outcomes: &Outcomes| outcomes.get("app") == Some(&Ok(()));
        changes.wait_for(is_done).await.unwrap();
        assert_eq!(holds.standing(), Standing::Held);
        holds.want(BTreeSet::new());
        assert_eq!(told.next_line().await.unwrap().unwrap(), RELEASE);
        writer.write_all(b"done\n").await.unwrap();
        let is_none = |outcomes: &Outcomes| !outcomes.contains_key("app");
        changes.wait_for(is_none).await.unwrap();
        holds.want(BTreeSet::from(["app".to_owned()]));
        assert_eq!(told.next_line().await.unwrap().unwrap(), HOLD);
        writer.write_all(b"it may not\n").await.unwrap();
        let is_failed = |outcomes: &Outcomes| matches!(outcomes.get("app"), Some(Err(_)));
        changes.wait_for(is_failed).await.unwrap();
        assert!(matches!(holds.standing(), Standing::Failed(_)));
        drop(writer);
        drop(told);
        assert!(served.await.unwrap().is_err());
        assert_eq!(holds.standing(), Standing::Waiting);
    }
}
