//! Sessions: who is connected, and how long the absent live on.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kvpn_proto::crd::{Session, SessionStatus};

use super::engagements::whole_second;
use super::{Identified, Key, Now, StreamId};

/// How often the status of a present session is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(10);

/// After how long a deletion is asked for again that did not come about, as
/// when the API server was away.
pub(super) const DELETE_AGAIN: Duration = Duration::from_secs(30);

/// What is needed of a Session resource.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SessionView {
    pub(crate) key: Key,
    pub(crate) uid: String,
    pub(crate) user: String,
    pub(crate) public_key: String,
    pub(crate) status: Option<SessionStatus>,
}

impl Identified for SessionView {
    fn key(&self) -> &Key {
        &self.key
    }

    fn uid(&self) -> &str {
        &self.uid
    }
}

impl From<&Session> for SessionView {
    fn from(session: &Session) -> Self {
        let metadata = &session.metadata;
        Self {
            key: Key::new(
                metadata.namespace.clone().unwrap_or_default(),
                metadata.name.clone().unwrap_or_default(),
            ),
            uid: metadata.uid.clone().unwrap_or_default(),
            user: session.spec.user.clone(),
            public_key: session.spec.public_key.clone(),
            status: session.status.clone(),
        }
    }
}

/// A Session and its presence.
#[derive(Debug)]
pub(crate) struct SessionRecord {
    pub(crate) view: SessionView,
    /// Open `WatchDials`; the session is present while there is one.
    streams: BTreeSet<StreamId>,
    absent_since: Now,
    /// Absent for so long that its engagements block nobody.
    is_idle: bool,
    /// What the resource's status says.
    written: SessionStatus,
    renew_at: Instant,
    /// When the resource's deletion was last asked for.
    delete_asked: Option<Instant>,
}

impl Identified for SessionRecord {
    fn key(&self) -> &Key {
        &self.view.key
    }

    fn uid(&self) -> &str {
        &self.view.uid
    }
}

impl SessionRecord {
    /// A session that is seen for the first time; its grace starts now.
    pub(crate) fn new(view: SessionView, now: &Now) -> Self {
        Self {
            written: view.status.clone().unwrap_or_default(),
            view,
            streams: BTreeSet::new(),
            absent_since: *now,
            is_idle: false,
            renew_at: now.instant,
            delete_asked: None,
        }
    }

    pub(crate) fn is_present(&self) -> bool {
        !self.streams.is_empty()
    }

    /// The stream that new dials go to: the newest, since an older one may be
    /// of a connection that is dead without knowing.
    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.streams.last().copied()
    }

    pub(crate) fn handle_opened(&mut self, stream: StreamId) {
        self.is_idle = false;
        self.streams.insert(stream);
    }

    pub(crate) fn handle_closed(&mut self, stream: StreamId, now: &Now) {
        if self.streams.remove(&stream) && self.streams.is_empty() {
            self.absent_since = *now;
        }
    }

    /// Since when it is absent, while it is; as far as this process knows.
    pub(crate) fn absent_since(&self) -> Option<Timestamp> {
        (!self.is_present()).then(|| whole_second(self.absent_since.wall))
    }

    /// Whether it was absent for so long that its engagements block nobody.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// Whether that is so from now on. True once for each absence.
    pub(crate) fn becomes_idle(&mut self, limit: Duration, now: &Now) -> bool {
        if self.is_present() || self.is_idle || now.instant < self.absent_since.instant + limit {
            return false;
        }
        self.is_idle = true;
        true
    }

    /// The status to write, when the one written no longer holds.
    pub(crate) fn status_due(&mut self, now: &Now) -> Option<SessionStatus> {
        let connected = self.is_present();
        let unchanged = self.written.connected == connected;
        if unchanged && !(connected && now.instant >= self.renew_at) {
            return None;
        }
        self.written = SessionStatus {
            connected,
            renew_time: Some(Time(now.wall)),
        };
        self.renew_at = now.instant + RENEW_INTERVAL;
        Some(self.written.clone())
    }

    /// Whether the resource should be deleted now, since the grace is over.
    /// True once, and again when that had no effect.
    pub(crate) fn expires(&mut self, grace: Duration, now: &Now) -> bool {
        if self.is_present() || now.instant < self.delete_at(grace) {
            return false;
        }
        self.delete_asked = Some(now.instant);
        true
    }

    fn delete_at(&self, grace: Duration) -> Instant {
        let over = self.absent_since.instant + grace;
        self.delete_asked
            .map_or(over, |at| over.max(at + DELETE_AGAIN))
    }

    /// When time alone changes something.
    pub(crate) fn deadline(&self, grace: Duration, idle: Duration) -> Instant {
        if self.is_present() {
            self.renew_at
        } else if self.is_idle {
            self.delete_at(grace)
        } else {
            self.delete_at(grace).min(self.absent_since.instant + idle)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::testing::{Clock, session};

    const GRACE: Duration = Duration::from_secs(30);
    const IDLE: Duration = Duration::from_secs(10);

    #[test]
    fn presence_lasts_as_long_as_any_stream() {
        let clock = Clock::start();
        let mut record = SessionRecord::new(session("alice-1", "alice"), &clock.at(0));
        assert!(!record.is_present());
        record.handle_opened(StreamId(1));
        record.handle_opened(StreamId(2));
        assert_eq!(record.stream(), Some(StreamId(2)));
        record.handle_closed(StreamId(2), &clock.at(1));
        assert!(record.is_present());
        record.handle_closed(StreamId(1), &clock.at(2));
        assert!(!record.is_present());
    }

    #[test]
    fn a_session_that_never_connects_expires_after_the_grace() {
        let clock = Clock::start();
        let mut record = SessionRecord::new(session("alice-1", "alice"), &clock.at(5));
        assert!(record.becomes_idle(IDLE, &clock.at(15)));
        assert!(!record.expires(GRACE, &clock.at(34)));
        assert_eq!(record.deadline(GRACE, IDLE), clock.at(35).instant);
        assert!(record.expires(GRACE, &clock.at(35)));
        assert!(!record.expires(GRACE, &clock.at(64)), "it was asked for");
        assert_eq!(record.deadline(GRACE, IDLE), clock.at(65).instant);
        assert!(
            record.expires(GRACE, &clock.at(65)),
            "it did not come about"
        );
    }

    #[test]
    fn the_grace_counts_from_the_last_disconnect() {
        let clock = Clock::start();
        let mut record = SessionRecord::new(session("alice-1", "alice"), &clock.at(0));
        record.handle_opened(StreamId(1));
        assert!(!record.expires(GRACE, &clock.at(100)));
        record.handle_closed(StreamId(1), &clock.at(100));
        assert!(!record.expires(GRACE, &clock.at(129)));
        assert!(record.expires(GRACE, &clock.at(130)));
    }

    #[test]
    fn a_session_is_idle_once_for_each_absence() {
        let clock = Clock::start();
        let mut record = SessionRecord::new(session("alice-1", "alice"), &clock.at(0));
        record.handle_opened(StreamId(1));
        assert!(!record.becomes_idle(IDLE, &clock.at(100)));
        assert_eq!(record.absent_since(), None);
        record.handle_closed(StreamId(1), &clock.at(100));
        assert_eq!(record.absent_since(), Some(clock.at(100).wall));
        assert_eq!(record.deadline(GRACE, IDLE), clock.at(110).instant);
        assert!(!record.becomes_idle(IDLE, &clock.at(109)) && !record.is_idle());
        assert!(record.becomes_idle(IDLE, &clock.at(110)) && record.is_idle());
        assert!(!record.becomes_idle(IDLE, &clock.at(111)));
        assert_eq!(record.deadline(GRACE, IDLE), clock.at(130).instant);
        record.handle_opened(StreamId(2));
        assert!(!record.is_idle());
    }

    #[test]
    fn status_is_written_on_change_and_every_ten_seconds_while_present() {
        let clock = Clock::start();
        let mut record = SessionRecord::new(session("alice-1", "alice"), &clock.at(0));
        assert_eq!(record.status_due(&clock.at(0)), None);
        record.handle_opened(StreamId(1));
        let status = record.status_due(&clock.at(1)).unwrap();
        assert!(status.connected);
        assert_eq!(status.renew_time, Some(Time(clock.at(1).wall)));
        assert_eq!(record.status_due(&clock.at(10)), None);
        assert!(record.status_due(&clock.at(11)).unwrap().connected);
        record.handle_closed(StreamId(1), &clock.at(12));
        assert!(!record.status_due(&clock.at(12)).unwrap().connected);
        assert_eq!(record.status_due(&clock.at(60)), None);
    }

    #[test]
    fn a_status_left_by_an_earlier_manager_is_corrected() {
        let clock = Clock::start();
        let mut view = session("alice-1", "alice");
        view.status = Some(SessionStatus {
            connected: true,
            renew_time: None,
        });
        let mut record = SessionRecord::new(view, &clock.at(0));
        assert!(!record.status_due(&clock.at(0)).unwrap().connected);
    }
}
