//! What readers are asked for, and what they answer. It is kept nowhere.

use std::sync::Arc;
use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure};
use kvpn_proto::{Failure, Reason, v1};
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::lines::ReadOutcome;
use super::{Hub, PendingDial};
use crate::state::{AgentRejected, Caller, Calling, Event, Key, LinkId, NoReader, Owner};

/// How soon nobody is served files any more whose engagement is over.
const LEFT: Duration = Duration::from_secs(1);

impl Hub {
    /// Takes a reader's call, when the state knows the reader.
    pub(crate) fn open_reader(
        self: &Arc<Self>,
        caller: &Caller,
        hello: v1::watch_reads_request::Hello,
    ) -> Result<(mpsc::Receiver<v1::WatchReadsResponse>, OpenReader), AgentRejected> {
        let mut inner = self.lock();
        let (pod_uid, pod, target) = inner.world.identify_reader(caller, &hello.container)?;
        let (link, told) = inner.lines.open_reader();
        let owner = hello.owner.map(|owner| Owner {
            uid: owner.uid,
            gid: owner.gid,
        });
        let calling = Calling {
            container: hello.container,
            target,
            unreadable: Some(hello.unreadable).filter(|why| !why.is_empty()),
            owner,
        };
        let event = Event::ReaderLinked {
            pod: pod.clone(),
            pod_uid: pod_uid.clone(),
            link,
            calling,
        };
        self.handle_locked(&mut inner, event);
        drop(inner);
        let open = OpenReader {
            hub: Arc::clone(self),
            pod,
            pod_uid,
            link,
        };
        Ok((told, open))
    }

    /// Reads the environment that an engagement of a session's asks for; also gives the pod
    /// that it was read in.
    pub(crate) async fn read_environment(
        self: &Arc<Self>,
        session: &str,
        engagement_uid: &str,
        limit: Duration,
    ) -> Result<(v1::Environment, Key), Failure> {
        let (pod, read) = self.ask_reader(session, engagement_uid)?;
        info!(session, %pod, "the environment is read");
        let not_ready = |why: &str| {
            Failure::new(
                Reason::AgentNotReady,
                format!("the environment of pod {} cannot be read: {why}", pod.name),
                "try again; if it stays, see the traffic manager's log",
            )
        };
        match read.answered(limit).await {
            Some(Ok(environment)) => Ok((environment, pod)),
            Some(Err(why)) => Err(not_ready(&why)),
            None => Err(not_ready("its reader does not answer")),
        }
    }

    /// Asks the reader of an engaged container to serve its files.
    pub(crate) fn dial_files(
        self: &Arc<Self>,
        session: &str,
        engagement_uid: &str,
    ) -> Result<PendingDial, DialFailure> {
        let mut inner = self.lock();
        let route = inner.world.files_route(session, engagement_uid);
        let (route, access) = route.map_err(|why| {
            let error = match why {
                NoReader::NoEngagement | NoReader::NotAsked => DialError::Prohibited,
                NoReader::NotThere(_) => DialError::TunnelLost,
            };
            DialFailure::new(error, why.to_string())
        })?;
        info!(session, pod = %route.pod, ?access, "files are served");
        let dial = inner.lines.dial_files(route.link, access);
        let (id, answer) = dial.ok_or_else(|| {
            let detail = format!("the reader of pod {} does not keep up", route.pod.name);
            DialFailure::new(DialError::TunnelLost, detail)
        })?;
        Ok(PendingDial {
            hub: Arc::clone(self),
            id,
            whom: "the pod's reader",
            answer,
        })
    }

    /// Resolves soon after an engagement asks for no files any more.
    pub(crate) async fn files_end(&self, session: &str, engagement_uid: &str) {
        loop {
            tokio::time::sleep(LEFT).await;
            let inner = self.lock();
            match inner.world.files_route(session, engagement_uid) {
                Ok(_) | Err(NoReader::NotThere(_)) => {}
                Err(NoReader::NoEngagement | NoReader::NotAsked) => return,
            }
        }
    }

    fn ask_reader(
        self: &Arc<Self>,
        session: &str,
        engagement_uid: &str,
    ) -> Result<(Key, Read), Failure> {
        let mut inner = self.lock();
        let route = inner.world.read_route(session, engagement_uid);
        let route = route.map_err(|why| {
            let (reason, next_step) = match &why {
                NoReader::NoEngagement | NoReader::NotAsked => (
                    Reason::NoSuchEngagement,
                    "see those that there are with `kvpn status`",
                ),
                NoReader::NotThere(_) => (Reason::AgentNotReady, "see why with `kvpn status`"),
            };
            Failure::new(reason, why.to_string(), next_step)
        })?;
        let asked = inner.lines.read_environment(route.link).ok_or_else(|| {
            Failure::new(
                Reason::AgentNotReady,
                format!("the reader of pod {} does not keep up", route.pod.name),
                "try again",
            )
        })?;
        let (id, answer) = asked;
        let hub = Arc::clone(self);
        Ok((route.pod, Read { hub, id, answer }))
    }
}

/// A read that a reader is asked for. Dropping it forgets the read.
#[derive(Debug)]
struct Read {
    hub: Arc<Hub>,
    id: String,
    answer: oneshot::Receiver<ReadOutcome>,
}

impl Read {
    /// Waits for the reader; `None` when it is gone, or silent for too long.
    async fn answered(mut self, limit: Duration) -> Option<ReadOutcome> {
        let answered = tokio::time::timeout(limit, &mut self.answer).await;
        answered.ok()?.ok()
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        self.hub.lock().lines.forget_read(&self.id);
    }
}

/// A reader's open `WatchReads`. Dropping it makes the reader absent.
#[derive(Debug)]
pub(crate) struct OpenReader {
    hub: Arc<Hub>,
    pod: Key,
    pod_uid: String,
    link: LinkId,
}

impl OpenReader {
    pub(crate) fn pod(&self) -> &Key {
        &self.pod
    }

    pub(crate) fn answer(&self, read_id: &str, outcome: ReadOutcome) {
        let mut inner = self.hub.lock();
        inner.lines.answer_read(self.link, read_id, outcome);
    }
}

impl Drop for OpenReader {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.lines.end_link(self.link);
        let event = Event::ReaderUnlinked {
            pod_uid: self.pod_uid.clone(),
            link: self.link,
        };
        self.hub.handle_locked(&mut inner, event);
    }
}
