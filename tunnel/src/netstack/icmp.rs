//! ICMP: pings of the host, which only their target answers, and the errors
//! that the host is told.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kvpn_proto::flow::DialError;

use super::Shared;
use super::udp::{Datagram, MAX_QUOTED, wake};
use crate::packet::{self, Checksum, EchoId, EchoRequest, IcmpError, MAX_WIRE};

/// How many pings there may be at once.
const MAX_ECHOES: usize = 1_024;

/// How many requests of one ping wait for its holder.
const MAX_QUEUED: usize = 32;

/// How many errors may be sent at once, and how many a second for ever
/// (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 (f)).
const BURST: u32 = 100;
const PER_SECOND: u32 = 1_000;

/// The pings that are under way.
#[derive(Default)]
pub(super) struct Echoes(Mutex<HashMap<EchoId, Arc<Echo>>>);

pub(super) struct Echo {
    id: EchoId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Datagram>,
    /// The start of the host's last packet.
    last_packet: Vec<u8>,
    reader: Option<Waker>,
}

impl Echoes {
    /// Queues a request of the host; returns the ping when it is a new one.
    pub(super) fn handle(&self, request: &EchoRequest<'_>) -> Option<Arc<Echo>> {
        let mut echoes = self.lock();
        let full = echoes.len() >= MAX_ECHOES;
        let (echo, is_new) = match echoes.entry(request.id) {
            Entry::Occupied(place) => (place.get().clone(), false),
            Entry::Vacant(_) if full => return None,
            Entry::Vacant(place) => {
                let echo = Arc::new(Echo {
                    id: request.id,
                    state: Mutex::default(),
                });
                (place.insert(echo).clone(), true)
            }
        };
        drop(echoes);
        echo.push(request);
        is_new.then_some(echo)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Removes this very ping, not a later one of the same identifier.
    fn remove(&self, echo: &Arc<Echo>) {
        let mut echoes = self.lock();
        if echoes
            .get(&echo.id)
            .is_some_and(|other| Arc::ptr_eq(other, echo))
        {
            echoes.remove(&echo.id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EchoId, Arc<Echo>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Echo {
    fn push(&self, request: &EchoRequest<'_>) {
        let mut state = self.lock();
        request.bytes[..request.bytes.len().min(MAX_QUOTED)].clone_into(&mut state.last_packet);
        if state.queue.len() >= MAX_QUEUED {
            state.queue.pop_front();
        }
        state.queue.push_back(Datagram {
            payload: Bytes::copy_from_slice(request.data),
            whole: request.dont_fragment && request.bytes.len() <= MAX_WIRE,
        });
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A ping of the host: echo requests to one address, under one identifier.
/// Whoever holds it decides when it is over.
pub struct EchoFlow {
    echo: Arc<Echo>,
    shared: Arc<Shared>,
}

impl EchoFlow {
    pub(super) fn new(echo: Arc<Echo>, shared: Arc<Shared>) -> Self {
        Self { echo, shared }
    }

    pub fn id(&self) -> EchoId {
        self.echo.id
    }

    /// Receives the host's next request: sequence number and payload.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Datagram> {
        let mut state = self.echo.lock();
        if let Some(request) = state.queue.pop_front() {
            self.shared.count_to_cluster(request.payload.len());
            return Poll::Ready(request);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Gives the host the target's reply: sequence number and payload.
    pub fn reply(&self, data: &[u8]) {
        if let Some(reply) = packet::echo_reply(&self.echo.id, data) {
            self.shared.count_from_cluster(data.len());
            self.shared.send(&reply);
        }
    }

    /// Has the host's next request begin another ping.
    pub fn close(&self) {
        self.shared.echoes.remove(&self.echo);
    }

    /// Tells the host that its last request did not arrive.
    pub fn unreachable(&self, error: DialError, now: Instant) {
        let EchoId { host, cluster, .. } = self.echo.id;
        let offending = self.echo.lock().last_packet.clone();
        self.shared
            .send_unreachable(cluster, host, error, &offending, now);
    }
}

impl Drop for EchoFlow {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for EchoFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EchoId { host, cluster, .. } = self.echo.id;
        write!(f, "EchoFlow({host} -> {cluster})")
    }
}

/// How many errors may be sent: a bucket of tokens.
#[derive(Default)]
pub(super) struct ErrorBudget(Mutex<Option<Bucket>>);

struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl ErrorBudget {
    fn take(&self, now: Instant) -> bool {
        const INTERVAL: Duration = Duration::from_nanos(1_000_000_000 / PER_SECOND as u64);
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = bucket.get_or_insert(Bucket {
            tokens: BURST,
            filled: now,
        });
        let elapsed = now.saturating_duration_since(bucket.filled);
        let earned = u32::try_from(elapsed.as_nanos() / INTERVAL.as_nanos()).unwrap_or(u32::MAX);
        if earned >= BURST {
            bucket.tokens = BURST;
            bucket.filled = now;
        } else {
            bucket.tokens = (bucket.tokens + earned).min(BURST);
            bucket.filled += INTERVAL * earned;
        }
        let may = bucket.tokens > 0;
        bucket.tokens = bucket.tokens.saturating_sub(1);
        may
    }
}

impl Shared {
    /// Sends a packet of ours whose checksums are complete; what is longer than
    /// the host takes goes in fragments.
    pub(super) fn send(&self, packet: &[u8]) {
        let mtu = usize::from(self.config.mtu);
        if packet.len() <= mtu {
            return self.sink.send(packet, Checksum::Complete);
        }
        let identification = self.next_identification();
        for fragment in packet::fragments(packet, mtu, identification) {
            self.sink.send(&fragment, Checksum::Complete);
        }
    }

    /// Tells the host that its packet for `cluster` did not arrive. That a port is
    /// closed says the destination; anything else says the way to it.
    pub(super) fn send_unreachable(
        &self,
        cluster: IpAddr,
        host: IpAddr,
        error: DialError,
        offending: &[u8],
        now: Instant,
    ) {
        let from = match error {
            DialError::Refused => cluster,
            DialError::HostUnreachable
            | DialError::NetworkUnreachable
            | DialError::Prohibited
            | DialError::TimedOut
            | DialError::TunnelLost
            | DialError::TooBig(_) => self.hop(host),
        };
        let why = IcmpError::from_dial_error(error);
        self.send_icmp_error(from, host, why, offending, now);
    }

    /// Tells the host what became of its packet, unless it has been told too
    /// much already.
    fn send_icmp_error(
        &self,
        from: IpAddr,
        to: IpAddr,
        why: IcmpError,
        offending: &[u8],
        now: Instant,
    ) {
        if !self.errors.take(now) {
            tracing::trace!(?why, "ICMP error suppressed");
            return;
        }
        if let Some(error) = packet::icmp_error(from, to, why, offending) {
            self.send(&error);
        }
    }

    /// Tells the host that its packet was to live for one hop, which is us.
    pub(super) fn send_time_exceeded(&self, host: IpAddr, offending: &[u8], now: Instant) {
        self.send_icmp_error(self.hop(host), host, IcmpError::HopLimit, offending, now);
    }

    fn hop(&self, host: IpAddr) -> IpAddr {
        match host {
            IpAddr::V4(_) => self.config.hop_v4.into(),
            IpAddr::V6(_) => self.config.hop_v6.into(),
        }
    }
}
