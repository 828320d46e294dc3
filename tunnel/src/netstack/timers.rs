//! Which flow wants to be looked at when.
//!
//! A flow's deadline usually moves on before it comes, so it is not taken out:
//! the flow is asked when its old deadline comes, and sets another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use crate::flow::FiveTuple;

/// A deadline of a flow. Stale unless the flow remembers the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    pub(super) at: Instant,
    pub(super) five_tuple: FiveTuple,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

#[derive(Default)]
pub(super) struct Timers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: BinaryHeap<Reverse<Timer>>,
    waker: Option<Waker>,
}

impl Timers {
    pub(super) fn next(&self) -> Option<Instant> {
        self.lock().queue.peek().map(|Reverse(timer)| timer.at)
    }

    pub(super) fn register(&self, waker: &Waker) {
        self.lock().waker = Some(waker.clone());
    }

    /// Returns who waits for an earlier deadline, to be woken without a lock.
    pub(super) fn add(&self, timer: Timer) -> Option<Waker> {
        let mut state = self.lock();
        let is_first = state
            .queue
            .peek()
            .is_none_or(|Reverse(first)| timer.at < first.at);
        state.queue.push(Reverse(timer));
        is_first.then(|| state.waker.take()).flatten()
    }

    pub(super) fn take_due(&self, now: Instant) -> Vec<Timer> {
        let mut state = self.lock();
        let mut due = Vec::new();
        while let Some(Reverse(timer)) = state.queue.peek()
            && timer.at <= now
        {
            due.push(*timer);
            state.queue.pop();
        }
        due
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
