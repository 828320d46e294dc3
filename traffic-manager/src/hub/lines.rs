//! Open streams to agents and sessions, and the dials that wait for an answer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use kvpn_proto::crd::FileAccess;
use kvpn_proto::v1;
use kvpn_proto::v1::watch_reads_response::What;
use kvpn_tunnel::relay::FrameStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Connection, revoked};
use crate::state::{ClaimRoute, ClaimSet, Deletion, LinkId, PodRoute, StreamId};

/// Dials that may wait for a session, or an agent, to take them. More than that at once, and
/// the app answers instead of the session; those that are for the agent fail.
const QUEUED_DIALS: usize = 1_024;

/// Reads that may wait for a reader to take them.
const QUEUED_READS: usize = 64;

/// Open streams to agents and sessions.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    next: u64,
    links: HashMap<LinkId, watch::Sender<Option<ClaimSet>>>,
    dials: HashMap<StreamId, mpsc::Sender<v1::WatchDialsResponse>>,
    /// To agents, by their links.
    pod_dials: HashMap<LinkId, mpsc::Sender<v1::WatchPodDialsResponse>>,
    pending: HashMap<String, Pending>,
    /// To readers.
    readers: HashMap<LinkId, mpsc::Sender<v1::WatchReadsResponse>>,
    /// What readers are asked for, by its id.
    reads: HashMap<String, PendingRead>,
    /// By the UID of the session.
    connections: HashMap<String, Vec<Weak<Connection>>>,
}

/// A read, and who waits for it.
#[derive(Debug)]
struct PendingRead {
    link: LinkId,
    answer: oneshot::Sender<ReadOutcome>,
}

/// What has been read, or why not; for people.
pub(crate) type ReadOutcome = Result<v1::Environment, String>;

#[derive(Debug)]
struct Pending {
    answerer: Answerer,
    answer: oneshot::Sender<FrameStream>,
}

/// Who is asked to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answerer {
    /// The session of that UID.
    Session(String),
    /// An agent, or a reader.
    Agent(LinkId),
}

impl Lines {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn open_link(&mut self) -> (LinkId, watch::Receiver<Option<ClaimSet>>) {
        let id = LinkId(self.next());
        let (sender, receiver) = watch::channel(None);
        self.links.insert(id, sender);
        (id, receiver)
    }

    /// Ends an agent's or a reader's call, and what waits for it.
    pub(crate) fn end_link(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.readers.remove(&link);
        self.reads.retain(|_, read| read.link != link);
        self.pod_dials.remove(&link);
        self.forget_dials_of(&Answerer::Agent(link));
    }

    pub(crate) fn send_claims(&self, link: LinkId, claims: ClaimSet) {
        if let Some(sender) = self.links.get(&link) {
            sender.send_replace(Some(claims));
        }
    }

    pub(crate) fn open_dials(&mut self) -> (StreamId, mpsc::Receiver<v1::WatchDialsResponse>) {
        let id = StreamId(self.next());
        let (sender, receiver) = mpsc::channel(QUEUED_DIALS);
        self.dials.insert(id, sender);
        (id, receiver)
    }

    pub(crate) fn close_dials(&mut self, stream: StreamId) {
        self.dials.remove(&stream);
    }

    /// The dials for an agent come out of the receiver from now on. `None` while they come
    /// out of another one: whoever else calls from the pod's address does not get them.
    pub(crate) fn open_pod_dials(
        &mut self,
        link: LinkId,
    ) -> Option<mpsc::Receiver<v1::WatchPodDialsResponse>> {
        if self.takes_pod_dials(link) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(QUEUED_DIALS);
        self.pod_dials.insert(link, sender);
        Some(receiver)
    }

    /// Whether somebody reads the dials for an agent.
    pub(crate) fn takes_pod_dials(&self, link: LinkId) -> bool {
        let sender = self.pod_dials.get(&link);
        sender.is_some_and(|sender| !sender.is_closed())
    }

    /// Asks an agent for a dial. `None` when it does not keep up, or knows of none.
    pub(crate) fn dial_in_pod(
        &mut self,
        route: &PodRoute,
        port: u16,
    ) -> Option<(String, oneshot::Receiver<FrameStream>)> {
        let id = format!("dial-{}", self.next());
        let message = v1::WatchPodDialsResponse {
            dial_id: id.clone(),
            port: port.into(),
            claim_id: route.claim_id.clone(),
        };
        self.pod_dials.get(&route.link)?.try_send(message).ok()?;
        let answer = self.expect_answer(&id, Answerer::Agent(route.link));
        Some((id, answer))
    }

    /// What a reader is told comes out of the receiver.
    pub(crate) fn open_reader(&mut self) -> (LinkId, mpsc::Receiver<v1::WatchReadsResponse>) {
        let id = LinkId(self.next());
        let (sender, receiver) = mpsc::channel(QUEUED_READS);
        self.readers.insert(id, sender);
        (id, receiver)
    }

    /// Asks a reader for the environment. `None` when it does not keep up, or is gone.
    pub(crate) fn read_environment(
        &mut self,
        link: LinkId,
    ) -> Option<(String, oneshot::Receiver<ReadOutcome>)> {
        let id = format!("read-{}", self.next());
        let what = Some(What::Environment(id.clone()));
        let message = v1::WatchReadsResponse { what };
        self.readers.get(&link)?.try_send(message).ok()?;
        let (answer, receiver) = oneshot::channel();
        self.reads.insert(id.clone(), PendingRead { link, answer });
        Some((id, receiver))
    }

    /// Asks a reader to serve files. `None` when it does not keep up, or is gone.
    pub(crate) fn dial_files(
        &mut self,
        link: LinkId,
        access: FileAccess,
    ) -> Option<(String, oneshot::Receiver<FrameStream>)> {
        let id = format!("dial-{}", self.next());
        let files = v1::watch_reads_response::Files {
            dial_id: id.clone(),
            writable: access.writable,
            root: access.root,
        };
        let what = Some(What::Files(files));
        let message = v1::WatchReadsResponse { what };
        self.readers.get(&link)?.try_send(message).ok()?;
        let answer = self.expect_answer(&id, Answerer::Agent(link));
        Some((id, answer))
    }

    /// Takes the answer of the reader that was asked.
    pub(crate) fn answer_read(&mut self, link: LinkId, id: &str, outcome: ReadOutcome) {
        if self.reads.get(id).is_some_and(|read| read.link == link)
            && let Some(read) = self.reads.remove(id)
        {
            // Who has asked may be gone.
            let _ = read.answer.send(outcome);
        }
    }

    pub(crate) fn forget_read(&mut self, id: &str) {
        self.reads.remove(id);
    }

    /// Has a reader end.
    pub(crate) fn dismiss_reader(&mut self, link: LinkId) {
        if let Some(reader) = self.readers.remove(&link) {
            let what = Some(What::Leave(v1::watch_reads_response::Leave {}));
            // It may be gone, or end with its call.
            let _ = reader.try_send(v1::WatchReadsResponse { what });
        }
        self.reads.retain(|_, read| read.link != link);
    }

    /// Asks for a dial. `None` when the session does not keep up.
    pub(crate) fn dial(
        &mut self,
        stream: StreamId,
        route: ClaimRoute,
        source: SocketAddr,
    ) -> Option<(String, oneshot::Receiver<FrameStream>)> {
        let id = format!("dial-{}", self.next());
        let message = v1::WatchDialsResponse {
            dial_id: id.clone(),
            engagement_namespace: route.engagement.namespace,
            engagement_name: route.engagement.name,
            container_port: route.container_port.into(),
            protocol: v1::Protocol::from(route.protocol).into(),
            source: Some(source.into()),
            pod: route.pod.name,
        };
        self.dials.get(&stream)?.try_send(message).ok()?;
        let answer = self.expect_answer(&id, Answerer::Session(route.session_uid));
        Some((id, answer))
    }

    fn expect_answer(&mut self, id: &str, answerer: Answerer) -> oneshot::Receiver<FrameStream> {
        let (answer, receiver) = oneshot::channel();
        let pending = Pending { answerer, answer };
        self.pending.insert(id.to_owned(), pending);
        receiver
    }

    /// The one who waits for the answer to a dial that was addressed to that
    /// session or agent.
    pub(crate) fn take_dial(
        &mut self,
        answerer: &Answerer,
        dial_id: &str,
    ) -> Option<oneshot::Sender<FrameStream>> {
        let addressed = self
            .pending
            .get(dial_id)
            .is_some_and(|pending| pending.answerer == *answerer);
        if !addressed {
            return None;
        }
        self.pending.remove(dial_id).map(|pending| pending.answer)
    }

    pub(crate) fn forget_dial(&mut self, dial_id: &str) {
        self.pending.remove(dial_id);
    }

    pub(crate) fn register(&mut self, connection: &Arc<Connection>, session_uid: &str) {
        self.connections.retain(|_, connections| {
            connections.retain(|weak| weak.strong_count() > 0);
            !connections.is_empty()
        });
        self.connections
            .entry(session_uid.to_owned())
            .or_default()
            .push(Arc::downgrade(connection));
    }

    /// How many connections of sessions there are.
    pub(crate) fn connections(&self) -> usize {
        let connections = self.connections.values().flatten();
        connections.filter(|weak| weak.strong_count() > 0).count()
    }

    /// Ends the connections of a session that was deleted and the dials that wait for it.
    pub(crate) fn revoke(&mut self, session_uid: &str, deletion: Option<&Deletion>) {
        self.forget_dials_of(&Answerer::Session(session_uid.to_owned()));
        let connections = self.connections.remove(session_uid).unwrap_or_default();
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.close(revoked(deletion));
        }
    }

    fn forget_dials_of(&mut self, answerer: &Answerer) {
        self.pending
            .retain(|_, pending| pending.answerer != *answerer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Key;
    use kvpn_proto::flow::Protocol;

    fn route() -> ClaimRoute {
        ClaimRoute {
            session_uid: "alice".into(),
            engagement: Key::new("shop", "web-a"),
            container_port: 8080,
            protocol: Protocol::Tcp,
            pod: Key::new("shop", "web-1"),
        }
    }

    fn in_pod(link: LinkId) -> PodRoute {
        PodRoute {
            link,
            pod: Key::new("shop", "web-1"),
            claim_id: "uid/8080/tcp".into(),
        }
    }

    fn source() -> SocketAddr {
        "10.1.0.9:4000".parse().unwrap()
    }

    #[test]
    fn a_dial_is_answered_once_and_only_by_the_session_it_was_addressed_to() {
        let mut lines = Lines::default();
        let (stream, mut dials) = lines.open_dials();
        let (id, _answer) = lines.dial(stream, route(), source()).unwrap();
        assert_eq!(dials.try_recv().unwrap().dial_id, id);
        let [alice, bob] = ["alice", "bob"].map(|uid| Answerer::Session(uid.into()));
        assert!(lines.take_dial(&bob, &id).is_none());
        assert!(lines.take_dial(&alice, &id).is_some());
        assert!(lines.take_dial(&alice, &id).is_none());
    }

    #[test]
    fn a_dial_in_a_pod_is_answered_by_its_agent_alone_and_ends_with_its_call() {
        let mut lines = Lines::default();
        let (link, _claims) = lines.open_link();
        let route = in_pod(link);
        assert!(!lines.takes_pod_dials(link));
        let early = lines.dial_in_pod(&route, 9901);
        assert!(early.is_none(), "it does not watch");
        let mut dials = lines.open_pod_dials(link).unwrap();
        let (id, _answer) = lines.dial_in_pod(&route, 9901).unwrap();
        let asked = dials.try_recv().unwrap();
        assert_eq!((asked.dial_id.as_str(), asked.port), (id.as_str(), 9901));
        assert_eq!(asked.claim_id, "uid/8080/tcp");
        let (other, _claims) = lines.open_link();
        assert!(lines.take_dial(&Answerer::Agent(other), &id).is_none());
        assert!(lines.take_dial(&Answerer::Agent(link), &id).is_some());

        let (_, mut answer) = lines.dial_in_pod(&route, 9901).unwrap();
        lines.end_link(link);
        assert!(answer.try_recv().is_err());
        assert!(lines.pending.is_empty());
        assert!(lines.dial_in_pod(&route, 9901).is_none());
    }

    #[test]
    fn who_dials_in_a_pod_is_not_displaced_while_it_reads() {
        let mut lines = Lines::default();
        let (link, _claims) = lines.open_link();
        let mut dials = lines.open_pod_dials(link).unwrap();
        assert!(lines.open_pod_dials(link).is_none());
        assert!(lines.dial_in_pod(&in_pod(link), 9901).is_some());
        assert!(dials.try_recv().is_ok());
        drop(dials);
        assert!(!lines.takes_pod_dials(link));
        assert!(lines.open_pod_dials(link).is_some(), "it has called again");
    }

    #[test]
    fn a_read_is_answered_by_the_reader_that_was_asked_and_ends_with_its_call() {
        let mut lines = Lines::default();
        let (link, mut told) = lines.open_reader();
        let (other, _told) = lines.open_reader();
        let (id, mut answer) = lines.read_environment(link).unwrap();
        let asked = told.try_recv().unwrap().what;
        assert_eq!(asked, Some(What::Environment(id.clone())));
        lines.answer_read(other, &id, Err("mine".into()));
        assert!(answer.try_recv().is_err(), "another one answers");
        lines.answer_read(link, &id, Ok(v1::Environment::default()));
        assert_eq!(answer.try_recv().unwrap(), Ok(v1::Environment::default()));

        let (_, mut answer) = lines.read_environment(link).unwrap();
        lines.dismiss_reader(link);
        assert!(answer.try_recv().is_err());
        drop(told.try_recv());
        let told = told.try_recv().unwrap().what;
        assert!(matches!(told, Some(What::Leave(_))));
        assert!(lines.read_environment(link).is_none());
        assert!(lines.reads.is_empty());
    }

    #[test]
    fn a_dial_to_a_stream_that_is_gone_is_not_made() {
        let mut lines = Lines::default();
        let (stream, _dials) = lines.open_dials();
        lines.close_dials(stream);
        assert!(lines.dial(stream, route(), source()).is_none());
        assert!(lines.pending.is_empty());
    }

    #[test]
    fn revoking_a_session_closes_its_connections_and_its_waiting_dials() {
        let mut lines = Lines::default();
        let (alice, bob) = (
            Arc::new(Connection::for_test()),
            Arc::new(Connection::for_test()),
        );
        lines.register(&alice, "alice");
        lines.register(&bob, "bob");
        let (stream, _dials) = lines.open_dials();
        let (_, mut answer) = lines.dial(stream, route(), source()).unwrap();
        assert_eq!(lines.connections(), 2);
        lines.revoke("alice", None);
        assert_eq!(lines.connections(), 1);
        assert!(alice.closed().is_some());
        assert!(bob.closed().is_none());
        assert!(answer.try_recv().is_err());
    }
}
