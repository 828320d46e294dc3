//! Has the processes of containers stopped by their holders.

mod holder;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

use self::holder::Holder;
use crate::holder::{HOLD, RELEASE, address};

/// How long until the socket is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// How often a holder hears that has nothing to do, and is to stay.
const STAY: Duration = match cfg!(test) {
    true => Duration::from_millis(10),
    false => Duration::from_secs(5),
};

/// How long a container is left in peace that could not be stopped: at first, and at most.
const FIRST_REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// The holders of this pod, and what they are to stop. Clones share the same state.
#[derive(Clone, Default)]
pub(crate) struct Holds {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    wanted: watch::Sender<BTreeSet<String>>,
    standings: watch::Sender<Standings>,
    turns: Mutex<BTreeMap<String, Turn>>,
}

/// The containers that have a holder which was told to stop them.
pub(crate) type Standings = BTreeMap<String, Standing>;

/// How far a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Some of its processes may have stopped. With the reason why they did not the last
    /// time, if they were to be.
    Stopping(String),
    Stopped,
    /// It goes on, for this reason.
    Failed(String),
}

/// One holder at a time deals with a container, whichever images they are of.
type Turn = Arc<tokio::sync::Mutex<Tries>>;

/// What has come of stopping a container since it was to be.
#[derive(Debug, Default)]
struct Tries {
    failures: u32,
    /// Whether a holder has gone as it was told to. The first may have been about to leave.
    was_left: bool,
    /// Why the last one failed, and until when there is no other.
    last: Option<(String, Instant)>,
}

impl Holds {
    /// Waits for holders until the handle is dropped, and then lets go of them all.
    pub(crate) fn listen(&self) -> AbortOnDropHandle<()> {
        let shared = Arc::clone(&self.shared);
        // Whoever listened before has let go of all.
        let turns = shared.turns.lock();
        turns.unwrap_or_else(PoisonError::into_inner).clear();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                // Another agent of the pod may have the name, and leave.
                if let Err(error) = shared.accept().await {
                    debug!("No holder can call: {error:#}");
                }
                sleep(AGAIN).await;
            }
        }))
    }

    /// These containers are to be stopped, and no others.
    pub(crate) fn want(&self, containers: BTreeSet<String>) {
        self.shared.wanted.send_if_modified(|wanted| {
            let is_new = *wanted != containers;
            *wanted = containers;
            is_new
        });
    }

    /// The containers that are to be stopped and are not, and why; empty while they may
    /// soon be and none has failed to.
    pub(crate) fn not_stopped(&self) -> BTreeMap<String, String> {
        let standings = self.shared.standings.borrow();
        let wanted = self.shared.wanted.borrow();
        let not_stopped = wanted.iter().filter_map(|container| {
            let why = match standings.get(container) {
                Some(Standing::Stopped) => return None,
                Some(Standing::Stopping(why) | Standing::Failed(why)) => why.clone(),
                None => String::new(),
            };
            Some((container.clone(), why))
        });
        not_stopped.collect()
    }

    /// Whether the processes of a container are stopped, or about to.
    pub(crate) fn is_stopped(&self, container: &str) -> bool {
        match self.shared.standings.borrow().get(container) {
            Some(Standing::Stopping(_) | Standing::Stopped) => true,
            Some(Standing::Failed(_)) | None => false,
        }
    }

    /// Tells when something has come of it.
    pub(crate) fn changes(&self) -> watch::Receiver<Standings> {
        self.shared.standings.subscribe()
    }
}

impl Shared {
    /// Serves all who call, until the socket fails.
    async fn accept(self: &Arc<Self>) -> anyhow::Result<()> {
        let listener = UnixListener::bind_addr(&address()?).context("listen for holders")?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        // They end with this.
        let mut holders = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    holders.spawn(Arc::clone(self).serve(stream));
                }
                Some(served) = holders.join_next() => {
                    if let Ok(Err(error)) = served {
                        debug!("A holder is gone: {error:#}");
                    }
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: UnixStream) -> anyhow::Result<()> {
        // Others in the pod may call too.
        ensure!(stream.peer_cred()?.uid() == 0, "it is not root's");
        let mut holder = Holder::new(stream);
        let container = holder.line().await?;
        let mut tries = self.turn(&mut holder, &container).await?;
        let _forget = Forget(&self, &container);
        self.direct(&mut holder, &container, &mut tries).await
    }

    /// Waits until no other holder deals with the container.
    async fn turn(
        &self,
        holder: &mut Holder,
        container: &str,
    ) -> anyhow::Result<tokio::sync::OwnedMutexGuard<Tries>> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(container.to_owned()).or_default())
        };
        let mut turn = std::pin::pin!(turn.lock_owned());
        loop {
            tokio::select! {
                tries = &mut turn => return Ok(tries),
                gone = holder.gone() => return Err(gone),
                () = sleep(STAY) => {
                    // Should it leave, another one would be added to the pod.
                    if self.wanted.borrow().contains(container) {
                        holder.ask(RELEASE).await?.map_err(anyhow::Error::msg)?;
                    }
                }
            }
        }
    }

    /// Tells the holder of a container what to do, for as long as it is there.
    async fn direct(
        &self,
        holder: &mut Holder,
        container: &str,
        tries: &mut Tries,
    ) -> anyhow::Result<()> {
        let mut wanted = self.wanted.subscribe();
        let mut is_held = false;
        loop {
            let is_wanted = wanted.borrow_and_update().contains(container);
            let mut again = None;
            if !is_wanted {
                *tries = Tries::default();
                // What came of it before says nothing any more.
                self.note(container, None);
                if std::mem::take(&mut is_held) {
                    holder.ask(RELEASE).await?.map_err(anyhow::Error::msg)?;
                    info!(container, "Let go");
                }
            } else if !is_held {
                if tries.is_due(Instant::now()) {
                    self.hold(holder, container, tries).await?;
                }
                is_held = tries.last.is_none();
                let standing = match &tries.last {
                    None => Standing::Stopped,
                    Some((why, at)) => {
                        again = Some(*at);
                        Standing::Failed(why.clone())
                    }
                };
                self.note(container, Some(standing));
            }
            let again = async {
                match again {
                    Some(again) => sleep_until(again).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = wanted.changed() => {}
                gone = holder.gone() => return Err(gone),
                () = again => {}
            }
        }
    }

    /// Has a container stopped. An error when its holder is not there any more.
    async fn hold(
        &self,
        holder: &mut Holder,
        container: &str,
        tries: &mut Tries,
    ) -> anyhow::Result<()> {
        let last = tries.last.as_ref().map(|(why, _)| why.clone());
        self.note(
            container,
            Some(Standing::Stopping(last.unwrap_or_default())),
        );
        let outcome = holder.ask(HOLD).await;
        info!(container, ?outcome, "Told to stop");
        match outcome {
            Ok(Ok(())) => *tries = Tries::default(),
            Ok(Err(why)) => tries.fail(why, Instant::now()),
            Err(error) => {
                if std::mem::replace(&mut tries.was_left, true) {
                    tries.fail(format!("its holder: {error:#}"), Instant::now());
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn note(&self, container: &str, standing: Option<Standing>) {
        self.standings.send_if_modified(|standings| {
            let before = match &standing {
                Some(standing) => standings.insert(container.to_owned(), standing.clone()),
                None => standings.remove(container),
            };
            before != standing
        });
    }
}

impl Tries {
    fn is_due(&self, now: Instant) -> bool {
        self.last.as_ref().is_none_or(|(_, again)| now >= *again)
    }

    fn fail(&mut self, why: String, now: Instant) {
        let rest = FIRST_REST * 2u32.saturating_pow(self.failures);
        self.failures += 1;
        self.last = Some((why, now + rest.min(LONGEST_REST)));
    }
}

/// Notes that a container has no holder any more, when dropped.
struct Forget<'a>(&'a Shared, &'a str);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.note(self.1, None);
    }
}

#[cfg(test)]
mod tests;
