//! The state shared by the gRPC services and the controller, and the lines
//! that lead from it to agents and sessions.

mod connection;
mod lines;
mod pod_dials;
mod reads;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure};
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::{Failure, v1};
use kvpn_tunnel::relay::FrameStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tracing::{debug, info};

pub(crate) use connection::{Connection, Identity, unauthenticated};
use lines::{Answerer, Lines};
pub(crate) use reads::OpenReader;
pub(crate) use requests::Reporting;
use requests::Requests;

use crate::state::{
    AgentRejected, Caller, Census, ClaimRoute, ClaimSet, Deletion, Effect, Event, Key, LinkId,
    Newborn, Now, SessionView, StreamId, World,
};

/// The state and its lines.
#[derive(Debug)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// Effects that need the API server.
    effects: mpsc::UnboundedSender<Effect>,
    /// Wakes the timer when the next deadline may have changed.
    deadline_changed: Notify,
    synced: watch::Sender<bool>,
}

#[derive(Debug)]
struct Inner {
    world: World,
    lines: Lines,
    requests: Requests,
}

/// A dial that a session or an agent is asked to answer. Dropping it forgets the dial.
#[derive(Debug)]
pub(crate) struct PendingDial {
    hub: Arc<Hub>,
    id: String,
    /// Who is asked, for people.
    whom: &'static str,
    answer: oneshot::Receiver<FrameStream>,
}

impl Hub {
    /// Also returns the effects that need the API server.
    pub(crate) fn new(world: World) -> (Arc<Self>, mpsc::UnboundedReceiver<Effect>) {
        let (effects, receiver) = mpsc::unbounded_channel();
        let hub = Arc::new(Self {
            inner: Mutex::new(Inner {
                world,
                lines: Lines::default(),
                requests: Requests::default(),
            }),
            effects,
            deadline_changed: Notify::new(),
            synced: watch::Sender::new(false),
        });
        (hub, receiver)
    }

    /// Takes an event in and does what follows from it.
    pub(crate) fn handle(&self, event: Event) {
        let is_synced = matches!(event, Event::Synced);
        let mut inner = self.lock();
        self.handle_locked(&mut inner, event);
        drop(inner);
        if is_synced {
            self.synced.send_replace(true);
        }
    }

    fn handle_locked(&self, inner: &mut Inner, event: Event) {
        let is_of_engagements = matches!(event, Event::Engagements(_));
        for effect in inner.world.handle(event, &Now::read()) {
            match effect {
                Effect::SendClaims { link, claims } => inner.lines.send_claims(link, claims),
                Effect::EndLink { link } => inner.lines.end_link(link),
                Effect::DismissReader { link } => inner.lines.dismiss_reader(link),
                Effect::RevokeSession { uid, deletion } => {
                    let by = deletion.as_ref().map(|it| it.by.as_str());
                    info!(%uid, by, "the session was deleted");
                    inner.lines.revoke(&uid, deletion.as_ref());
                }
                Effect::AddAgent { .. }
                | Effect::AddHolder { .. }
                | Effect::AddReader { .. }
                | Effect::ResolveWorkload { .. }
                | Effect::WriteEngagement { .. }
                | Effect::WriteSession { .. }
                | Effect::WriteWebhooks(_)
                | Effect::DeleteEngagement { .. }
                | Effect::DeleteSession { .. } => {
                    // The receiver lives as long as the process.
                    let _ = self.effects.send(effect);
                }
            }
        }
        if is_of_engagements {
            inner.requests.forget_the_gone(&inner.world);
        }
        self.deadline_changed.notify_one();
    }

    /// Sends ticks when they are due, for ever.
    pub(crate) async fn keep_time(&self) {
        loop {
            let deadline = self.lock().world.deadline();
            let due = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.handle(Event::Tick),
                () = self.deadline_changed.notified() => {}
            }
        }
    }

    /// Waits until everything was listed once.
    pub(crate) async fn wait_synced(&self, limit: Duration) -> bool {
        let mut synced = self.synced.subscribe();
        let waited = tokio::time::timeout(limit, synced.wait_for(|synced| *synced)).await;
        matches!(waited, Ok(Ok(_)))
    }

    pub(crate) fn session(&self, name: &str) -> Option<SessionView> {
        self.lock().world.session(name).cloned()
    }

    /// Remembers which session a connection is of, so that it ends with it.
    /// Returns whether the session still exists.
    pub(crate) fn register(&self, connection: &Arc<Connection>, identity: &Identity) -> bool {
        let mut inner = self.lock();
        let session = inner.world.session(&identity.session);
        let exists = session.is_some_and(|session| session.uid == identity.uid);
        if exists {
            inner.lines.register(connection, &identity.uid);
        }
        exists
    }

    /// Makes a session present until the stream is closed. The dials for it
    /// come out of the receiver.
    pub(crate) fn open_dials(
        self: &Arc<Self>,
        uid: &str,
    ) -> (mpsc::Receiver<v1::WatchDialsResponse>, OpenDials) {
        let mut inner = self.lock();
        let (stream, receiver) = inner.lines.open_dials();
        let uid = uid.to_owned();
        let event = Event::SessionOpened {
            uid: uid.clone(),
            stream,
        };
        self.handle_locked(&mut inner, event);
        drop(inner);
        let open = OpenDials {
            hub: Arc::clone(self),
            uid,
            stream,
        };
        (receiver, open)
    }

    /// Takes an agent's call, when the state knows the agent.
    pub(crate) fn open_link(
        self: &Arc<Self>,
        caller: &Caller,
        container: &str,
    ) -> Result<(watch::Receiver<Option<ClaimSet>>, OpenLink), AgentRejected> {
        let mut inner = self.lock();
        let (pod_uid, pod) = inner.world.identify_agent(caller, container)?;
        let (link, receiver) = inner.lines.open_link();
        let event = Event::AgentLinked {
            pod_uid: pod_uid.clone(),
            link,
            container: container.to_owned(),
        };
        self.handle_locked(&mut inner, event);
        drop(inner);
        let open = OpenLink {
            hub: Arc::clone(self),
            pod,
            pod_uid,
            link,
        };
        Ok((receiver, open))
    }

    /// Whether an agent may call from an address.
    pub(crate) fn expects_agent(&self, ip: IpAddr) -> bool {
        self.lock().world.expects_agent(ip)
    }

    /// Whether that container was added to a pod, and its agent has not called yet.
    pub(crate) fn awaits_agent(&self, pod_uid: &str, container: &str) -> bool {
        self.lock().world.awaits_agent(pod_uid, container)
    }

    /// Whether an agent may call whose pod has no address yet that is known.
    pub(crate) fn expects_newborn(&self) -> bool {
        self.lock().world.expects_newborn(&Now::read())
    }

    /// Whether a pod that is about to be created gets an agent of this name.
    pub(crate) fn delivers(&self, newborn: &Newborn, agent: &str) -> bool {
        self.lock().world.delivers(newborn, agent, &Now::read())
    }

    /// Takes note of who asked the API server for a deletion.
    pub(crate) fn note_deletion(&self, deletion: Deletion) {
        self.lock().world.note_deletion(deletion, &Now::read());
    }

    /// The deletion of late of what is that user's.
    pub(crate) fn deletion(&self, uid: &str, owner: &str) -> Option<Deletion> {
        let inner = self.lock();
        inner.world.deletion(uid, owner, &Now::read()).cloned()
    }

    /// Takes what clients' TLS is ended with for one of a session's engagements. Returns
    /// whether that is known.
    pub(crate) fn give_tls(&self, session: &str, uid: &str, identity: TlsIdentity) -> bool {
        let mut inner = self.lock();
        let mut own = inner.world.engagements_of(session);
        let Some(engagement) = own.find(|it| it.uid == uid).map(|it| it.key.clone()) else {
            return false;
        };
        drop(own);
        let event = Event::TlsGiven {
            engagement,
            uid: uid.to_owned(),
            identity,
        };
        self.handle_locked(&mut inner, event);
        true
    }

    /// Where a connection goes that an agent has intercepted.
    pub(crate) fn route(&self, caller: &Caller, claim_id: &str) -> Option<ClaimRoute> {
        self.lock().world.route(caller, claim_id)
    }

    /// The pods that have some of these addresses for themselves.
    pub(crate) fn pods_at(&self, addresses: &[IpAddr]) -> Vec<(IpAddr, Key)> {
        let inner = self.lock();
        let pod = |ip: &IpAddr| Some((*ip, inner.world.pod_at(*ip)?.clone()));
        addresses.iter().filter_map(pod).collect()
    }

    /// How much there is of everything.
    pub(crate) fn census(&self) -> Census {
        self.lock().world.census()
    }

    /// How many authenticated connections of sessions there are.
    pub(crate) fn connections(&self) -> usize {
        self.lock().lines.connections()
    }

    /// Asks a session to handle a connection.
    pub(crate) fn dial(
        self: &Arc<Self>,
        route: ClaimRoute,
        source: std::net::SocketAddr,
    ) -> Result<PendingDial, DialFailure> {
        let lost = || DialFailure::new(DialError::TunnelLost, "the laptop is not connected");
        let mut inner = self.lock();
        let stream = inner
            .world
            .dial_stream(&route.session_uid)
            .ok_or_else(lost)?;
        let (id, answer) = inner.lines.dial(stream, route, source).ok_or_else(lost)?;
        Ok(PendingDial {
            hub: Arc::clone(self),
            id,
            whom: "the laptop",
            answer,
        })
    }

    /// Hands over a session's answer to a dial. Gives it back when there is no
    /// such dial for that session.
    pub(crate) fn answer(
        &self,
        session_uid: &str,
        dial_id: &str,
        frames: FrameStream,
    ) -> Result<(), FrameStream> {
        let session = Answerer::Session(session_uid.to_owned());
        let pending = self.lock().lines.take_dial(&session, dial_id);
        hand_over(pending, frames)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere must not take the other sessions down.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the frames back when nobody waits for them.
fn hand_over(
    pending: Option<oneshot::Sender<FrameStream>>,
    frames: FrameStream,
) -> Result<(), FrameStream> {
    match pending {
        Some(pending) => pending.send(frames),
        None => Err(frames),
    }
}

impl PendingDial {
    /// Waits for the stream of who was asked.
    pub(crate) async fn answered(mut self, limit: Duration) -> Result<FrameStream, DialFailure> {
        match tokio::time::timeout(limit, &mut self.answer).await {
            Ok(Ok(frames)) => Ok(frames),
            Ok(Err(_)) => Err(DialFailure::new(
                DialError::TunnelLost,
                format!("{}'s connection has ended", self.whom),
            )),
            Err(_) => Err(DialFailure::new(
                DialError::TimedOut,
                format!("{} did not answer within {} s", self.whom, limit.as_secs()),
            )),
        }
    }
}

impl Drop for PendingDial {
    fn drop(&mut self) {
        self.hub.lock().lines.forget_dial(&self.id);
    }
}

/// A session's open `WatchDials`. Dropping it ends the session's presence.
#[derive(Debug)]
pub(crate) struct OpenDials {
    hub: Arc<Hub>,
    uid: String,
    stream: StreamId,
}

impl Drop for OpenDials {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.lines.close_dials(self.stream);
        let event = Event::SessionClosed {
            uid: self.uid.clone(),
            stream: self.stream,
        };
        self.hub.handle_locked(&mut inner, event);
    }
}

/// An agent's open `WatchClaims`. Dropping it makes the agent absent.
#[derive(Debug)]
pub(crate) struct OpenLink {
    hub: Arc<Hub>,
    pod: Key,
    pod_uid: String,
    link: LinkId,
}

impl OpenLink {
    pub(crate) fn pod(&self) -> &Key {
        &self.pod
    }

    /// The claims are in force; these containers are not stopped, and why, and these claims
    /// have nothing to end TLS with.
    pub(crate) fn applied(
        &self,
        generation: u64,
        not_stopped: BTreeMap<String, String>,
        without_tls: BTreeSet<String>,
    ) {
        debug!(pod = %self.pod, generation, ?not_stopped, ?without_tls, "claims applied");
        self.hub.handle(Event::AgentApplied {
            pod_uid: self.pod_uid.clone(),
            link: self.link,
            generation,
            not_stopped,
            without_tls,
        });
    }

    pub(crate) fn apply_failed(&self, generation: u64, detail: String) {
        self.hub.handle(Event::AgentApplyFailed {
            pod_uid: self.pod_uid.clone(),
            link: self.link,
            generation,
            detail,
        });
    }
}

impl Drop for OpenLink {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.lines.end_link(self.link);
        let event = Event::AgentUnlinked {
            pod_uid: self.pod_uid.clone(),
            link: self.link,
        };
        self.hub.handle_locked(&mut inner, event);
    }
}

/// The failure of calls for a session that is gone, by whom if that is known.
pub(crate) fn revoked(deletion: Option<&Deletion>) -> Failure {
    let how = match deletion {
        Some(deletion) => format!("by {}", deletion.by_whom()),
        None => "from the cluster's side".to_owned(),
    };
    Failure::new(
        kvpn_proto::Reason::SessionRevoked,
        format!("the session was ended {how}"),
        "run `kvpn connect` to start another",
    )
}
