//! UDP flows: a queue of datagrams each, until they fall silent.
//!
//! Nobody waits for a holder that is slow: the oldest datagrams are lost.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use kvpn_proto::flow::DialError;

use super::Shared;
use super::timers::Timer;
use crate::flow::FiveTuple;
use crate::packet::{self, MAX_WIRE, Packet};

/// How many datagrams, and how many bytes of them, wait for the flow's holder.
const MAX_QUEUED: usize = 256;
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// How much of a packet an ICMP error quotes.
pub(super) const MAX_QUOTED: usize = 128;

/// What the host sends at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub payload: Bytes,
    /// Rather lost than fragmented; see [`crate::packet`].
    pub whole: bool,
}

#[derive(Debug)]
pub(super) struct Udp {
    pub(super) five_tuple: FiveTuple,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Datagram>,
    queued_bytes: usize,
    /// The start of the host's last packet.
    last_packet: Vec<u8>,
    last_active: Instant,
    timer: Option<Instant>,
    over: bool,
    reader: Option<Waker>,
}

impl Udp {
    pub(super) fn new(five_tuple: FiveTuple, now: Instant) -> Self {
        Self {
            five_tuple,
            state: Mutex::new(State {
                queue: VecDeque::new(),
                queued_bytes: 0,
                last_packet: Vec::new(),
                last_active: now,
                timer: None,
                over: false,
                reader: None,
            }),
        }
    }

    /// Queues a datagram of the host; `false` when the flow is over.
    pub(super) fn handle_datagram(
        &self,
        shared: &Shared,
        packet: &Packet<'_>,
        payload: &[u8],
        now: Instant,
    ) -> bool {
        let mut state = self.lock();
        if state.over {
            return false;
        }
        state.last_active = now;
        let bytes = packet.bytes;
        bytes[..bytes.len().min(MAX_QUOTED)].clone_into(&mut state.last_packet);
        state.queued_bytes += payload.len();
        state.queue.push_back(Datagram {
            payload: Bytes::copy_from_slice(payload),
            whole: packet.dont_fragment && bytes.len() <= MAX_WIRE,
        });
        while state.queue.len() > MAX_QUEUED || state.queued_bytes > MAX_QUEUED_BYTES {
            let Some(oldest) = state.queue.pop_front() else {
                break;
            };
            state.queued_bytes -= oldest.payload.len();
            shared.count_dropped_datagram();
        }
        let reader = state.reader.take();
        drop(state);
        wake(reader);
        true
    }

    pub(super) fn handle_timeout(self: &Arc<Self>, shared: &Shared, at: Instant, now: Instant) {
        let mut state = self.lock();
        if state.timer.take_if(|timer| *timer == at).is_none() {
            return;
        }
        if now < state.last_active + shared.idle_limit(&self.five_tuple) {
            drop(state);
            self.schedule(shared);
            return;
        }
        state.over = true;
        let reader = state.reader.take();
        drop(state);
        shared.table.remove_udp(self);
        wake(reader);
    }

    /// Sets the timer for the flow's expiry, as it looks now.
    pub(super) fn schedule(&self, shared: &Shared) {
        let mut state = self.lock();
        let at = state.last_active + shared.idle_limit(&self.five_tuple);
        state.timer = Some(at);
        drop(state);
        wake(shared.timers.add(Timer {
            at,
            five_tuple: self.five_tuple,
        }));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Datagrams between one port of the host and one in the cluster.
pub struct UdpFlow {
    udp: Arc<Udp>,
    shared: Arc<Shared>,
}

impl UdpFlow {
    pub(super) fn new(udp: Arc<Udp>, shared: Arc<Shared>) -> Self {
        Self { udp, shared }
    }

    pub fn five_tuple(&self) -> FiveTuple {
        self.udp.five_tuple
    }

    /// Receives the host's next datagram; when too many wait, the oldest are
    /// lost. `None` when the flow has been silent for too long.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<Datagram>> {
        let mut state = self.udp.lock();
        if let Some(datagram) = state.queue.pop_front() {
            state.queued_bytes -= datagram.payload.len();
            self.shared.count_to_cluster(datagram.payload.len());
            return Poll::Ready(Some(datagram));
        }
        if state.over {
            return Poll::Ready(None);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Sends a datagram from the flow's cluster end to the host. One that is
    /// longer than UDP allows is dropped.
    pub fn send(&self, payload: &[u8], now: Instant) {
        self.shared.clock.advance(now);
        self.udp.lock().last_active = now;
        if let Some(packet) = packet::udp(&self.udp.five_tuple, payload) {
            self.shared.count_from_cluster(payload.len());
            self.shared.send(&packet);
        }
    }

    /// Tells the host that its last datagram did not arrive.
    pub fn unreachable(&self, error: DialError, now: Instant) {
        self.shared.clock.advance(now);
        let offending = self.udp.lock().last_packet.clone();
        let FiveTuple { host, cluster, .. } = self.udp.five_tuple;
        self.shared
            .send_unreachable(cluster.ip(), host.ip(), error, &offending, now);
    }
}

impl Drop for UdpFlow {
    fn drop(&mut self) {
        self.udp.lock().over = true;
        self.shared.table.remove_udp(&self.udp);
    }
}

impl fmt::Debug for UdpFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UdpFlow({})", self.udp.five_tuple)
    }
}

pub(super) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}
