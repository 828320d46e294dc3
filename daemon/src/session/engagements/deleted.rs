//! Engagements that were deleted from the cluster's side, and who did it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvpn_proto::v1::DeletedEngagement;

use super::table::{Entry, Key};

/// How long the user is told of one.
const TOLD: Duration = Duration::from_secs(600);

/// Of how many, at most.
const MOST: usize = 16;

/// Those of late.
#[derive(Default)]
pub(super) struct Deleted(Mutex<VecDeque<(Instant, DeletedEngagement)>>);

impl Deleted {
    pub(super) fn note(&self, deleted: DeletedEngagement, now: Instant) {
        let mut all = self.lock();
        if all.len() == MOST {
            all.pop_front();
        }
        all.push_back((now, deleted));
    }

    /// The latest come last.
    pub(super) fn of_late(&self, now: Instant) -> Vec<DeletedEngagement> {
        let all = self.lock();
        let of_late = all.iter().filter(|(at, _)| now < *at + TOLD);
        of_late.map(|(_, deleted)| deleted.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(Instant, DeletedEngagement)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the user is told. The time is Unix time.
pub(super) fn message(
    key: &Key,
    entry: &Entry,
    by: Option<&str>,
    at: Duration,
) -> DeletedEngagement {
    DeletedEngagement {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        workload: entry.workload.to_string(),
        verb: entry.verb.as_str().to_owned(),
        by: by.unwrap_or_default().to_owned(),
        at: i64::try_from(at.as_secs()).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted(name: &str) -> DeletedEngagement {
        DeletedEngagement {
            name: name.into(),
            by: "bob".into(),
            ..DeletedEngagement::default()
        }
    }

    #[test]
    fn those_of_late_are_told_in_their_order() {
        let all = Deleted::default();
        let start = Instant::now();
        all.note(deleted("a"), start);
        all.note(deleted("b"), start + TOLD / 2);
        let told = |after: Duration| all.of_late(start + after);
        assert_eq!(told(TOLD / 2), [deleted("a"), deleted("b")]);
        assert_eq!(told(TOLD), [deleted("b")]);
        assert_eq!(told(2 * TOLD), []);
    }

    #[test]
    fn the_oldest_make_room() {
        let all = Deleted::default();
        let now = Instant::now();
        for number in 0..=MOST {
            all.note(deleted(&number.to_string()), now);
        }
        let told = all.of_late(now);
        assert_eq!(told.len(), MOST);
        assert_eq!(told[0], deleted("1"));
    }
}
