//! Who keeps a port, or requests of it, for how long, and who is told that.

use k8s_openapi::jiff::Timestamp;
use kvpn_proto::crd::condition;
use kvpn_proto::flow::Protocol;

use super::{EngagementRecord, Standing};
use crate::state::Now;
use crate::state::sessions::SessionRecord;

/// Where the laptop of an engagement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Laptop {
    Present,
    /// Gone since then, for so short a time that what it held is kept for it.
    Away(Timestamp),
    /// Gone since then; others may have what it held.
    Idle(Timestamp),
}

impl Laptop {
    pub(super) fn of(session: &SessionRecord) -> Self {
        match session.absent_since() {
            None => Self::Present,
            Some(since) if session.is_idle() => Self::Idle(since),
            Some(since) => Self::Away(since),
        }
    }

    pub(crate) fn is_present(self) -> bool {
        self == Self::Present
    }
}

/// Whose turn it is to be admitted: those that hold something come first, in the order in
/// which they got it, then those that are new, in the order of their creation. `arrived`
/// tells apart what happened within one second.
pub(super) type Turn = (Rank, Timestamp, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Holder,
    New,
    /// Its laptop is not there to have it.
    Last,
}

impl EngagementRecord {
    pub(super) fn turn(&self, laptop: Laptop) -> Turn {
        let created = self.view.created;
        let (rank, at) = match (laptop, self.held_since) {
            (Laptop::Present | Laptop::Away(_), Some(since)) => (Rank::Holder, since),
            (Laptop::Present, None) => (Rank::New, created),
            (Laptop::Away(_), None) | (Laptop::Idle(_), _) => (Rank::Last, created),
        };
        (rank, at, self.arrived)
    }

    /// Whether others are kept from what it asks for, once it is admitted.
    pub(super) fn holds(&self, laptop: Laptop) -> bool {
        match laptop {
            Laptop::Present => true,
            Laptop::Away(_) => self.held_since.is_some() || self.fails_closed(),
            // Its claims stay for as long as nobody else wants them.
            Laptop::Idle(_) => self.fails_closed(),
        }
    }

    /// Whether it is in the way of another engagement of its own user, whose laptop may be
    /// the same one, connected again.
    pub(super) fn is_in_its_users_way(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.view.spec, &other.view.spec);
        let mut ports = ours.ports.iter();
        let shares_port = ports.any(|port| {
            let mut ports = theirs.ports.iter();
            ports.any(|other| other.container_port == port.container_port)
        });
        ours.user == theirs.user
            && ours.workload == theirs.workload
            && shares_port
            && self.overlaps(other)
    }

    /// Takes note of what was decided.
    pub(crate) fn settle(&mut self, standing: &Standing, now: &Now) {
        match standing {
            Standing::Admitted { laptop, .. } => match laptop {
                Laptop::Present => {
                    self.held_since.get_or_insert(whole_second(now.wall));
                }
                Laptop::Away(_) => {}
                Laptop::Idle(_) => self.held_since = None,
            },
            Standing::Unclaimed { reason, .. } => {
                // Others may have the port meanwhile, but for what passes soon; a certificate
                // comes with the session.
                let passing = [
                    condition::PROGRESSING,
                    condition::NO_RUNNING_POD,
                    condition::NO_TLS_IDENTITY,
                ];
                if !passing.contains(reason) {
                    self.held_since = None;
                    self.has_had_tls = false;
                }
            }
        }
    }
}

/// As a resource has it.
pub(crate) fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// What keeps an engagement from a port.
pub(super) fn conflict(
    (port, protocol): (u16, Protocol),
    holder: &EngagementRecord,
    laptop: Laptop,
) -> String {
    let view = &holder.view;
    let port = match protocol {
        Protocol::Tcp => port.to_string(),
        Protocol::Udp => format!("{port}/udp"),
    };
    let what = match &view.spec.http {
        Some(filter) => format!("requests of port {port} by {filter}"),
        None => format!("port {port}"),
    };
    let user = &view.spec.user;
    let since = holder.held_since.unwrap_or(view.created);
    let absence = match laptop {
        Laptop::Present => String::new(),
        Laptop::Away(since) | Laptop::Idle(since) => {
            format!(", whose laptop has not been connected since {since}")
        }
    };
    format!(
        "{user} has had {what} since {since} (engagement {}){absence}",
        view.key
    )
}
