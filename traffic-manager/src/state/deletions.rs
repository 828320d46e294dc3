//! Who asks the API server to delete what.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use kvpn_proto::names;

/// How long a deletion is remembered; its owner asks at once.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How many are, at most.
const MOST: usize = 1_024;

/// A deletion that the API server was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deletion {
    /// Of the Engagement or the Session.
    pub(crate) uid: String,
    /// Whose that is.
    pub(crate) owner: String,
    /// Who asked.
    pub(crate) by: String,
    /// Nothing comes of it.
    pub(crate) is_trial: bool,
}

impl Deletion {
    /// Who asked, as the owner is told.
    pub(crate) fn by_whom(&self) -> &str {
        names::called(&self.by, &self.owner)
    }
}

/// The deletions of late.
#[derive(Debug)]
pub(crate) struct Deletions {
    /// The traffic manager's own name.
    own: String,
    /// Whether the API server tells of them; unknown before it is told for the first time.
    expected: Option<bool>,
    /// The latest come last.
    remembered: VecDeque<(Instant, Deletion)>,
}

impl Deletions {
    pub(super) fn new(manager_namespace: &str) -> Self {
        Self {
            own: names::manager_user(manager_namespace),
            expected: None,
            remembered: VecDeque::new(),
        }
    }

    /// Takes note of whether there is something to delete; returns whether that is new.
    pub(super) fn expect(&mut self, expected: bool) -> bool {
        self.expected.replace(expected) != Some(expected)
    }

    /// Remembers who asked. The traffic manager itself deletes what has lost its session or
    /// its laptop, which is nobody's doing.
    pub(super) fn note(&mut self, deletion: Deletion, now: Instant) {
        if deletion.is_trial {
            return;
        }
        let own = deletion.by == self.own;
        self.remembered
            .retain(|(at, it)| now < *at + REMEMBERED && !(own && it.uid == deletion.uid));
        if own {
            return;
        }
        if self.remembered.len() == MOST {
            self.remembered.pop_front();
        }
        self.remembered.push_back((now, deletion));
    }

    /// The deletion of what is that user's. Of several the latest counts: policies have
    /// refused those before it.
    pub(super) fn of(&self, uid: &str, owner: &str, now: Instant) -> Option<&Deletion> {
        let mut latest = self.remembered.iter().rev();
        let found = latest.find(|(at, it)| now < *at + REMEMBERED && it.uid == uid);
        found.map(|(_, it)| it).filter(|it| it.owner == owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "system:serviceaccount:kvpn:traffic-manager";

    /// Of an engagement of alice's.
    fn deletion(uid: &str, by: &str) -> Deletion {
        Deletion {
            uid: uid.into(),
            owner: "alice".into(),
            by: by.into(),
            is_trial: false,
        }
    }

    fn by(deletions: &Deletions, uid: &str, now: Instant) -> Option<String> {
        let found = deletions.of(uid, "alice", now);
        found.map(|it| it.by_whom().to_owned())
    }

    #[test]
    fn who_asked_last_is_told_to_the_owner_alone() {
        let mut deletions = Deletions::new("kvpn");
        let now = Instant::now();
        deletions.note(deletion("a", "bob"), now);
        deletions.note(deletion("b", "carol"), now);
        deletions.note(deletion("a", "dave"), now);
        assert_eq!(by(&deletions, "a", now).as_deref(), Some("dave"));
        assert_eq!(by(&deletions, "b", now).as_deref(), Some("carol"));
        assert_eq!(by(&deletions, "c", now), None);
        assert_eq!(deletions.of("a", "bob", now), None);
    }

    #[test]
    fn owner_who_asked_is_called_you() {
        let mut deletions = Deletions::new("kvpn");
        let now = Instant::now();
        deletions.note(deletion("a", "alice"), now);
        assert_eq!(by(&deletions, "a", now).as_deref(), Some("you"));
    }

    #[test]
    fn trials_are_not_remembered() {
        let mut deletions = Deletions::new("kvpn");
        let now = Instant::now();
        let trial = Deletion {
            is_trial: true,
            ..deletion("a", "bob")
        };
        deletions.note(trial, now);
        assert_eq!(by(&deletions, "a", now), None);
    }

    #[test]
    fn nobody_is_blamed_for_what_the_traffic_manager_deletes() {
        let mut deletions = Deletions::new("kvpn");
        let now = Instant::now();
        // Who was refused.
        deletions.note(deletion("a", "bob"), now);
        deletions.note(deletion("b", "bob"), now);
        deletions.note(deletion("a", OWN), now);
        assert_eq!(by(&deletions, "a", now), None);
        assert_eq!(by(&deletions, "b", now).as_deref(), Some("bob"));
    }

    #[test]
    fn deletion_is_forgotten_after_a_minute() {
        let mut deletions = Deletions::new("kvpn");
        let start = Instant::now();
        deletions.note(deletion("a", "bob"), start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(by(&deletions, "a", at(59)).is_some());
        assert_eq!(by(&deletions, "a", at(60)), None);
        deletions.note(deletion("b", "bob"), at(60));
        assert_eq!(deletions.remembered.len(), 1);
    }

    #[test]
    fn the_oldest_make_room() {
        let mut deletions = Deletions::new("kvpn");
        let now = Instant::now();
        for number in 0..=MOST {
            deletions.note(deletion(&number.to_string(), "bob"), now);
        }
        assert_eq!(deletions.remembered.len(), MOST);
        assert_eq!(by(&deletions, "0", now), None);
        assert!(by(&deletions, "1", now).is_some());
    }

    #[test]
    fn only_a_change_of_what_is_expected_is_new() {
        let mut deletions = Deletions::new("kvpn");
        let news = [false, false, true, true, false].map(|it| deletions.expect(it));
        assert_eq!(news, [true, false, true, false, true]);
    }
}
