//! One direction of a wire that loses, repeats, delays and so reorders packets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use crate::netstack::tests::lab::Rng;

/// How bad a wire is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quality {
    /// In percent.
    pub(super) loss: u64,
    /// In percent.
    pub(super) repeat: u64,
    pub(super) delay: Duration,
    /// What may come on top of the delay.
    pub(super) jitter: Duration,
}

impl Quality {
    pub(super) const PERFECT: Self = Self {
        loss: 0,
        repeat: 0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
    };

    pub(super) fn random(rng: &mut Rng) -> Self {
        let mut millis = |most| Duration::from_millis(rng.below(most));
        let (delay, jitter) = (millis(30), millis(40));
        let is_good = rng.chance(30);
        Self {
            loss: rng.below(4) * u64::from(!is_good),
            repeat: rng.below(4),
            delay,
            jitter: jitter * (!is_good && rng.chance(70)).into(),
        }
    }

    /// Tells whether all packets arrive, in order.
    pub(super) fn is_good(&self) -> bool {
        self.loss == 0 && self.jitter.is_zero()
    }
}

/// Packets on their way.
pub(super) struct Path {
    pub(super) quality: Quality,
    rng: Rng,
    in_flight: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    sent: u64,
}

impl Path {
    pub(super) fn new(quality: Quality, seed: u64) -> Self {
        Self {
            quality,
            rng: Rng::new(seed),
            in_flight: BinaryHeap::new(),
            sent: 0,
        }
    }

    /// A packet that is not `droppable` arrives, perhaps late, at least once.
    pub(super) fn send(&mut self, packet: &[u8], droppable: bool, now: Instant) {
        if droppable && self.rng.chance(self.quality.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(self.quality.repeat));
        for _ in 0..copies {
            let jitter = self.quality.jitter.as_micros() as u64;
            let jitter = Duration::from_micros(self.rng.below(jitter + 1));
            let at = now + self.quality.delay + jitter;
            self.sent += 1;
            self.in_flight
                .push(Reverse((at, self.sent, packet.to_vec())));
        }
    }

    pub(super) fn arrive(&mut self, now: Instant) -> Option<Vec<u8>> {
        let is_due = self.next().is_some_and(|at| at <= now);
        let Reverse((_, _, packet)) = is_due.then(|| self.in_flight.pop())??;
        Some(packet)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.in_flight.peek().map(|Reverse((at, _, _))| *at)
    }
}
