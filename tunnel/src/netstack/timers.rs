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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kvpn_proto::flow::Protocol;
    use proptest::prelude::*;

    use super::*;
    use crate::netstack::tests::lab::Woken;

    proptest! {
        #[test]
        fn timers_come_once_in_order_and_only_earlier_ones_wake(
            steps in prop::collection::vec((any::<bool>(), 0_u64..1_000), 1..100),
        ) {
            let five_tuple = FiveTuple {
                protocol: Protocol::Tcp,
                host: "198.18.0.1:40000".parse().unwrap(),
                cluster: "10.1.2.3:80".parse().unwrap(),
            };
            let start = Instant::now();
            let timers = Timers::default();
            let mut set: Vec<Instant> = Vec::new();
            for (is_added, millis) in steps {
                let at = start + Duration::from_millis(millis);
                if is_added {
                    let (_, waker) = Woken::new();
                    timers.register(&waker);
                    let is_earlier = set.iter().all(|other| at < *other);
                    let woken = timers.add(Timer { at, five_tuple });
                    prop_assert_eq!(woken.is_some(), is_earlier);
                    // Only once.
                    prop_assert!(!is_earlier || timers.lock().waker.is_none());
                    set.push(at);
                } else {
                    let due: Vec<_> = timers.take_due(at).iter().map(|timer| timer.at).collect();
                    set.sort();
                    let split = set.partition_point(|other| *other <= at);
                    let expected: Vec<_> = set.drain(..split).collect();
                    prop_assert_eq!(due, expected);
                }
                prop_assert_eq!(timers.next(), set.iter().min().copied());
            }
        }
    }
}
