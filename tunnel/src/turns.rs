//! Turns: how much a task moves before others on its thread go on.
//!
//! tokio gives a task a budget of operations (128 in a row). One operation on a
//! socket may move a quarter of a MiB, so here the bytes count: what a person
//! waits for does not wait for a download's megabytes.

use std::pin::pin;
use std::task::Context;

use tokio::task::coop::consume_budget;

/// Bytes that cost as much as one operation. A turn is some 512 KiB.
const UNIT: usize = 4 << 10;

/// After how many turns a runtime looks whether sockets are ready, for
/// `tokio::runtime::Builder::event_interval`. By default it is so many that a
/// packet may wait behind tens of megabytes.
pub const EVENT_INTERVAL: u32 = 4;

/// Pays for bytes that have been moved, be they none; waits for the next turn when
/// this one is over.
pub async fn pay(bytes: usize) {
    for _ in 0..=bytes / UNIT {
        consume_budget().await;
    }
}

/// Pays where nothing can be awaited. When the turn is over, the task is woken
/// for its next one, and until then no operation of tokio's is ready that takes
/// part in this.
pub fn charge(cx: &mut Context<'_>, bytes: usize) {
    for _ in 0..=bytes / UNIT {
        if pin!(consume_budget()).poll(cx).is_pending() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::task::coop::has_budget_remaining;

    use super::*;

    #[tokio::test]
    async fn a_megabyte_ends_a_turn_and_a_byte_does_not() {
        let is_over = |bytes| {
            poll_fn(move |cx| {
                charge(cx, bytes);
                Poll::Ready(!has_budget_remaining())
            })
        };
        assert!(!is_over(1).await);
        assert!(is_over(1 << 20).await);
        tokio::task::yield_now().await;
        assert!(!is_over(1).await);
    }

    #[tokio::test]
    async fn others_go_on_while_much_is_moved() {
        let other = tokio::spawn(async {});
        pay(1).await;
        assert!(!other.is_finished());
        pay(1 << 20).await;
        assert!(other.is_finished());
    }
}
