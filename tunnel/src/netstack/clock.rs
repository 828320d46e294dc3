//! Time as smoltcp counts it: from the first instant that the netstack heard of.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use smoltcp::time::Instant as SmolInstant;

thread_local! {
    /// What TCP timestamps (RFC 7323) say, in milliseconds. smoltcp asks a
    /// function without arguments for it, so it waits here.
    static TIMESTAMP: Cell<u32> = const { Cell::new(0) };
}

/// Turns instants into smoltcp's and back; never runs backwards.
#[derive(Debug, Default)]
pub(super) struct Clock {
    start: OnceLock<Instant>,
    /// The latest time heard of, in microseconds since `start`.
    latest: AtomicU64,
}

impl Clock {
    /// Notes that it is `now`. Calls of several threads may cross.
    pub(super) fn advance(&self, now: Instant) -> SmolInstant {
        let start = *self.start.get_or_init(|| now);
        let elapsed = u64::try_from(now.saturating_duration_since(start).as_micros());
        let elapsed = elapsed.unwrap_or(u64::MAX);
        let latest = self
            .latest
            .fetch_max(elapsed, Ordering::Relaxed)
            .max(elapsed);
        TIMESTAMP.set((latest / 1_000) as u32);
        SmolInstant::from_micros(latest.cast_signed())
    }

    /// The latest time heard of, for those who are not told the time.
    pub(super) fn latest(&self) -> Option<Instant> {
        let start = *self.start.get()?;
        Some(start + Duration::from_micros(self.latest.load(Ordering::Relaxed)))
    }

    /// An instant of smoltcp's; `None` when it is too far away to matter.
    pub(super) fn instant(&self, at: SmolInstant) -> Option<Instant> {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.start.get()?.checked_add(Duration::from_micros(micros))
    }
}

/// The clock of TCP timestamps, as of the last [`Clock::advance`] on this
/// thread. Never 0, which smoltcp takes for "none".
pub(super) fn timestamp() -> u32 {
    TIMESTAMP.get().wrapping_add(1).max(1)
}
