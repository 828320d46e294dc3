//! Datagrams between one port of the host and one in the cluster, and which of
//! them each end must see.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::netstack::UdpFlow;
use crate::netstack::tests::lab::{POD_V4, POD_V6, Rng, Woken, address, pattern};
use crate::netstack::tests::packets::datagram;
use crate::packet;

pub(super) struct Exchange {
    pub(super) port: u16,
    pod: SocketAddr,
    /// When the host sends, the last first.
    sends: Vec<(Instant, Vec<u8>)>,
    host_mtu: usize,
    echo: bool,
    /// The holder drops the flow after so many datagrams.
    drops_after: usize,
    flow: Option<UdpFlow>,
    asked: Vec<Vec<u8>>,
    /// What has reached the netstack and must come out of the flow.
    waiting: VecDeque<Vec<u8>>,
    /// What has been sent to the host, and may arrive there.
    answered: Vec<Vec<u8>>,
    pub(super) received: usize,
    pub(super) sent: usize,
    woken: Arc<Woken>,
    waker: Waker,
    wakes_seen: usize,
}

impl Exchange {
    pub(super) fn random(rng: &mut Rng, port: u16, start: Instant) -> Self {
        let mut sends: Vec<_> = (0..1 + rng.below(60))
            .map(|_| {
                let at = start + Duration::from_millis(rng.below(20_000));
                let largest = [0, 20, 1_200, 9_000][rng.below(4) as usize];
                (at, pattern(rng.below(largest + 1) as usize, rng.next()))
            })
            .collect();
        sends.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let (woken, waker) = Woken::new();
        Self {
            port,
            pod: address(if rng.chance(50) { POD_V6 } else { POD_V4 }),
            sends,
            host_mtu: if rng.chance(50) { 1_280 } else { 65_535 },
            echo: rng.chance(70),
            drops_after: if rng.chance(30) {
                1 + rng.below(20) as usize
            } else {
                usize::MAX
            },
            flow: None,
            asked: Vec::new(),
            waiting: VecDeque::new(),
            answered: Vec::new(),
            received: 0,
            sent: 0,
            woken,
            waker,
            wakes_seen: 0,
        }
    }

    pub(super) fn next_send(&self) -> Option<Instant> {
        self.sends.last().map(|(at, _)| *at)
    }

    pub(super) fn is_over(&self) -> bool {
        self.sends.is_empty() && self.flow.is_none()
    }

    /// The host's next datagram that is due, in one packet or in fragments.
    pub(super) fn send(&mut self, now: Instant) -> Option<Vec<Vec<u8>>> {
        let (_, payload) = self.sends.pop_if(|(at, _)| *at <= now)?;
        let whole = datagram(self.port, self.pod, &payload);
        let identification = self.asked.len() as u32 + (u32::from(self.port) << 8);
        self.asked.push(payload);
        let packets = if whole.len() > self.host_mtu {
            packet::fragments(&whole, self.host_mtu, identification)
        } else {
            vec![whole]
        };
        Some(packets)
    }

    /// A datagram reaches the netstack.
    pub(super) fn handle_arrival(&mut self, payload: &[u8]) {
        assert!(self.asked.iter().any(|asked| asked == payload));
        self.waiting.push_back(payload.to_vec());
    }

    pub(super) fn handle_new_flow(&mut self, flow: UdpFlow) {
        let old = self.flow.replace(flow);
        assert!(old.is_none(), "a second flow of port {}", self.port);
        self.wakes_seen = usize::MAX;
    }

    /// Lets the flow's holder act when it was woken.
    pub(super) fn act(&mut self, now: Instant) {
        let wakes = self.woken.count();
        if wakes == std::mem::replace(&mut self.wakes_seen, wakes) {
            return;
        }
        let Some(flow) = &self.flow else { return };
        let mut cx = Context::from_waker(&self.waker);
        while let Poll::Ready(payload) = flow.poll_recv(&mut cx) {
            let Some(payload) = payload else {
                assert!(self.waiting.is_empty(), "expired with datagrams");
                self.flow = None;
                return;
            };
            let expected = self.waiting.pop_front();
            let payload = payload.payload;
            assert!(expected.as_deref() == Some(&*payload), "another datagram");
            self.received += payload.len();
            if self.echo {
                flow.send(&payload, now);
                self.sent += payload.len();
                self.answered.push(payload.to_vec());
            }
            self.drops_after -= 1;
            if self.drops_after == 0 {
                self.drops_after = usize::MAX;
                self.waiting.clear();
                self.flow = None;
                return;
            }
        }
        assert!(self.waiting.is_empty(), "a datagram is missing");
    }

    /// A datagram reaches the host.
    pub(super) fn handle_answer(&self, from: SocketAddr, payload: &[u8]) {
        assert_eq!(from, self.pod);
        let is_known = self.answered.iter().any(|answer| answer == payload);
        assert!(is_known, "an answer that nobody gave");
    }
}
