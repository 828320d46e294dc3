//! The pace of an end.

use std::time::Instant;

use crate::netstack::tests::simulation::plan::Pace;

/// When an end acts next.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) pace: Pace,
    pub(super) next: Option<Instant>,
    last: Option<Instant>,
}

impl Turn {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            next: None,
            last: None,
        }
    }

    /// Something has happened that is worth a turn.
    pub(super) fn call(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |last| last + self.pace.every);
        self.next.get_or_insert(now.max(earliest));
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        let is_due = self.next.take_if(|at| *at <= now).is_some();
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}
