//! The flows that there are, and those that have just ended, for people to
//! look at.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kvpn_proto::flow::{Carried, DialError};
use kvpn_tunnel::flow::FiveTuple;
use kvpn_tunnel::packet::EchoId;
use kvpn_tunnel::relay::{FlowMeter, FrameStream};

/// How many ended flows are remembered, and for how long.
const MAX_ENDED: usize = 256;
const ENDED_FOR: Duration = Duration::from_secs(60);

/// The flows of a session; clones share them. Open ones are as many as the
/// netstack and the traffic manager's dials allow.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlowRegistry(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    begun: u64,
    dials_failed: u64,
    open: BTreeMap<u64, Arc<Record>>,
    ended: VecDeque<Ended>,
}

#[derive(Debug)]
struct Record {
    id: u64,
    about: FlowAbout,
    started_at: SystemTime,
    /// Microseconds; 0 until the dial is answered.
    rtt: AtomicU64,
    meter: Arc<FlowMeter>,
}

#[derive(Debug)]
struct Ended {
    record: Arc<Record>,
    failure: Option<DialError>,
    at: Instant,
}

/// What stays as it is for as long as a flow lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlowAbout {
    pub(crate) protocol: Carried,
    pub(crate) host: SocketAddr,
    pub(crate) cluster: SocketAddr,
    /// For a connection that an engagement brings about.
    pub(crate) engaged: Option<Engaged>,
}

/// The engagement that a connection belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Engaged {
    pub(crate) namespace: String,
    pub(crate) engagement: String,
    /// The pod that was connected to, of an intercepted connection; none for one to a
    /// port of a pod's localhost.
    pub(crate) pod: Option<String>,
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowState {
    Dialling,
    Open,
    /// One end sends no more.
    HalfClosed,
    Ended,
    Failed(DialError),
}

/// A flow at the time of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlowView {
    pub(crate) id: u64,
    pub(crate) about: FlowAbout,
    pub(crate) state: FlowState,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    /// How long the far side took to answer the dial.
    pub(crate) rtt: Option<Duration>,
    pub(crate) started_at: SystemTime,
}

/// How many flows there were since the session began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowTotals {
    pub(crate) begun: u64,
    pub(crate) dials_failed: u64,
}

impl FlowRegistry {
    /// Enters a flow that is being dialled.
    pub(crate) fn begin(&self, about: FlowAbout) -> FlowRecord {
        let mut inner = self.lock();
        inner.begun += 1;
        let record = Arc::new(Record {
            id: inner.begun,
            about,
            started_at: SystemTime::now(),
            rtt: AtomicU64::new(0),
            meter: Arc::default(),
        });
        inner.open.insert(record.id, Arc::clone(&record));
        FlowRecord {
            registry: self.clone(),
            record,
            began: Instant::now(),
            failure: None,
        }
    }

    /// The flows in the order in which they began; with `ended` also those that
    /// have ended a short time before `now`.
    pub(crate) fn look(&self, ended: bool, now: Instant) -> Vec<FlowView> {
        let inner = self.lock();
        let past = inner
            .ended
            .iter()
            .filter(|past| ended && now.saturating_duration_since(past.at) < ENDED_FOR);
        let mut views: Vec<FlowView> = past
            .map(|past| {
                let state = past.failure.map_or(FlowState::Ended, FlowState::Failed);
                past.record.view(state)
            })
            .chain(
                inner
                    .open
                    .values()
                    .map(|record| record.view(record.state())),
            )
            .collect();
        drop(inner);
        views.sort_by_key(|view| view.id);
        views
    }

    pub(crate) fn totals(&self) -> FlowTotals {
        let inner = self.lock();
        FlowTotals {
            begun: inner.begun,
            dials_failed: inner.dials_failed,
        }
    }

    fn end(&self, id: u64, failure: Option<DialError>) {
        let mut inner = self.lock();
        let Some(record) = inner.open.remove(&id) else {
            return;
        };
        inner.dials_failed += u64::from(failure.is_some());
        if inner.ended.len() == MAX_ENDED {
            inner.ended.pop_front();
        }
        inner.ended.push_back(Ended {
            record,
            failure,
            at: Instant::now(),
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn state(&self) -> FlowState {
        let is_dialled = self.about.protocol != Carried::Icmp;
        if is_dialled && self.rtt.load(Ordering::Relaxed) == 0 {
            FlowState::Dialling
        } else if self.meter.has_sent_fin() || self.meter.has_received_fin() {
            FlowState::HalfClosed
        } else {
            FlowState::Open
        }
    }

    fn view(&self, state: FlowState) -> FlowView {
        let rtt = self.rtt.load(Ordering::Relaxed);
        FlowView {
            id: self.id,
            about: self.about.clone(),
            state,
            bytes_sent: self.meter.sent(),
            bytes_received: self.meter.received(),
            rtt: (rtt > 0).then(|| Duration::from_micros(rtt)),
            started_at: self.started_at,
        }
    }
}

/// The entry of a flow; when it is dropped the flow has ended.
#[derive(Debug)]
pub(crate) struct FlowRecord {
    registry: FlowRegistry,
    record: Arc<Record>,
    began: Instant,
    failure: Option<DialError>,
}

impl FlowRecord {
    /// Notes that the dial was accepted; what passes the frames is counted.
    pub(crate) fn opened(&self, frames: FrameStream) -> FrameStream {
        self.answered();
        self.metered(frames)
    }

    /// Counts what passes the frames of a flow that does not wait for the
    /// answer to its dial.
    pub(crate) fn metered(&self, frames: FrameStream) -> FrameStream {
        frames.metered(&self.record.meter)
    }

    /// Notes that the dial was accepted.
    pub(crate) fn answered(&self) {
        let rtt = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.record.rtt.store(rtt.max(1), Ordering::Relaxed);
    }

    /// Notes that the dial was not accepted.
    pub(crate) fn failed(mut self, error: DialError) {
        self.failure = Some(error);
    }
}

impl Drop for FlowRecord {
    fn drop(&mut self) {
        self.registry.end(self.record.id, self.failure);
    }
}

impl From<EchoId> for FlowAbout {
    fn from(id: EchoId) -> Self {
        Self {
            protocol: Carried::Icmp,
            host: SocketAddr::new(id.host, 0),
            cluster: SocketAddr::new(id.cluster, 0),
            engaged: None,
        }
    }
}

impl From<FiveTuple> for FlowAbout {
    fn from(five_tuple: FiveTuple) -> Self {
        Self {
            protocol: five_tuple.protocol.into(),
            host: five_tuple.host,
            cluster: five_tuple.cluster,
            engaged: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kvpn_proto::flow::Frame;
    use kvpn_tunnel::grpc::{TunnelClient, client_endpoint};

    use super::*;

    fn about(port: u16) -> FlowAbout {
        FlowAbout {
            protocol: Carried::Tcp,
            host: "198.18.0.1:40000".parse().unwrap(),
            cluster: SocketAddr::new("10.96.0.10".parse().unwrap(), port),
            engaged: None,
        }
    }

    fn states(registry: &FlowRegistry, ended: bool) -> Vec<FlowState> {
        let views = registry.look(ended, Instant::now());
        views.iter().map(|view| view.state).collect()
    }

    #[tokio::test]
    async fn flow_is_told_from_its_dial_to_its_end() {
        let registry = FlowRegistry::default();
        let record = registry.begin(about(80));
        assert_eq!(states(&registry, false), [FlowState::Dialling]);

        // Its frames wait, since nobody answers.
        let tunnel = TunnelClient::new(client_endpoint("x").connect_lazy());
        let frames = record.opened(tunnel.carry(Frame::Fin));
        let data = Frame::Data(Bytes::from_static(b"hello"));
        frames.sender.send(data).await.unwrap();
        let view = &registry.look(false, Instant::now())[0];
        assert_eq!((view.state, view.bytes_sent), (FlowState::Open, 5));
        assert!(view.rtt.is_some());

        frames.sender.send(Frame::Fin).await.unwrap();
        assert_eq!(states(&registry, false), [FlowState::HalfClosed]);
        drop(record);
        assert_eq!(states(&registry, false), []);
        assert_eq!(states(&registry, true), [FlowState::Ended]);
        let later = Instant::now() + ENDED_FOR;
        assert_eq!(registry.look(true, later), []);
    }

    #[test]
    fn failed_dials_are_counted_and_told_with_their_reason() {
        let registry = FlowRegistry::default();
        registry.begin(about(81)).failed(DialError::Refused);
        assert_eq!(
            states(&registry, true),
            [FlowState::Failed(DialError::Refused)]
        );
        let totals = FlowTotals {
            begun: 1,
            dials_failed: 1,
        };
        assert_eq!(registry.totals(), totals);
    }

    #[test]
    fn only_so_many_ended_flows_are_remembered() {
        let registry = FlowRegistry::default();
        for _ in 0..=MAX_ENDED {
            drop(registry.begin(about(80)));
        }
        let views = registry.look(true, Instant::now());
        assert_eq!(views.len(), MAX_ENDED);
        assert_eq!(views[0].id, 2);
    }
}
