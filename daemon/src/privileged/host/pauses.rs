//! How long resolv.conf is left to somebody else who changes it again and again.

use std::time::{Duration, Instant};

/// The first pause after the second change, and the longest.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Changes that are further apart have nothing to do with each other.
const CALM: Duration = Duration::from_secs(10);

/// Pauses that double while changes follow each other.
#[derive(Default)]
pub(super) struct Pauses {
    last: Option<Instant>,
    length: Duration,
}

impl Pauses {
    /// The pause after a change.
    pub(super) fn next(&mut self, now: Instant) -> Duration {
        let is_calm = |last| now.duration_since(last) > self.length + CALM;
        self.length = if self.last.is_none_or(is_calm) {
            Duration::ZERO
        } else {
            (self.length * 2).clamp(FIRST, LONGEST)
        };
        self.last = Some(now);
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_it_is_calm() {
        let mut pauses = Pauses::default();
        let mut now = Instant::now();
        let lengths: Vec<u64> = (0..9)
            .map(|_| {
                let pause = pauses.next(now);
                now += pause + CALM;
                pause.as_secs()
            })
            .collect();
        assert_eq!(lengths, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        now += Duration::from_secs(1);
        assert_eq!(pauses.next(now), Duration::ZERO);
    }
}
