//! TCP flows: held, accepted or refused, and carried until their end.

mod connection;
mod flow;
mod pending;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smoltcp::time::Instant as SmolInstant;

use super::Shared;
use super::timers::Timer;
use crate::flow::FiveTuple;
use crate::packet::Segment;
use connection::Connection;

pub use flow::TcpFlow;
pub use pending::PendingTcp;

/// A TCP flow, as the table and its handles share it.
#[derive(Debug)]
pub(super) struct Tcp {
    pub(super) five_tuple: FiveTuple,
    connection: Mutex<Connection>,
}

/// What became of a segment.
pub(super) enum Delivery {
    Taken,
    /// The flow is over: the segment is not its.
    Over,
}

impl Tcp {
    /// A flow whose SYN is held.
    pub(super) fn pending(five_tuple: FiveTuple, syn: &[u8], sequence: u32) -> Self {
        Self {
            five_tuple,
            connection: Mutex::new(Connection::pending(syn, sequence)),
        }
    }

    pub(super) fn handle_segment(
        self: &Arc<Self>,
        shared: &Shared,
        packet: &[u8],
        segment: &Segment,
        now: Instant,
    ) -> Delivery {
        let now = shared.clock.advance(now);
        let mut connection = self.lock();
        let delivery = connection.handle_segment(shared, &self.five_tuple, packet, segment, now);
        self.settle(shared, connection, now);
        delivery
    }

    pub(super) fn handle_timeout(self: &Arc<Self>, shared: &Shared, at: Instant, now: Instant) {
        let now = shared.clock.advance(now);
        let mut connection = self.lock();
        if connection.take_timer(at) {
            self.settle(shared, connection, now);
        }
    }

    /// Tells whether the host has said nothing for so long, and should be asked.
    pub(super) fn is_silent(&self, limit: Duration, now: SmolInstant) -> bool {
        self.lock().is_silent(limit, now)
    }

    /// Asks the host whether it still knows the connection.
    pub(super) fn ask(&self, shared: &Shared) {
        self.lock().ask(shared, &self.five_tuple);
    }

    /// Sends what is to be sent after a change, sets the timer, lets go of the
    /// lock, and then tells whom it concerns.
    fn settle(
        self: &Arc<Self>,
        shared: &Shared,
        mut connection: MutexGuard<'_, Connection>,
        now: SmolInstant,
    ) {
        let ended = connection.advance(shared, now);
        let timer_waker = connection.next_timer(shared, now).and_then(|at| {
            shared.timers.add(Timer {
                at,
                five_tuple: self.five_tuple,
            })
        });
        let wakers = connection.take_wakers();
        drop(connection);

        if ended {
            shared.table.remove_tcp(self);
        }
        for waker in wakers.into_iter().chain([timer_waker]).flatten() {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
