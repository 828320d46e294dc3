//! What the traffic manager knows and what follows from it, without I/O:
//! events come in, effects go out, time arrives as an argument.

mod agents;
mod births;
mod census;
mod change;
mod claims;
mod companions;
mod deletions;
mod engagements;
mod event;
mod in_pod;
mod pods;
mod readers;
mod reading;
mod reconcile;
mod replace;
mod sessions;
mod status;
#[cfg(test)]
pub(crate) mod testing;
mod world;

pub(crate) use births::{Newborn, Nursery};
pub(crate) use census::Census;
pub(crate) use change::{Change, Identified};
pub(crate) use claims::{Claim, ClaimRoute, ClaimSet};
pub(crate) use deletions::Deletion;
pub(crate) use engagements::{EngagementView, Resolution};
pub(crate) use event::{AgentRejected, Caller, Effect, Event, Questions, Role};
pub(crate) use in_pod::{NoPodRoute, PodRoute};
pub(crate) use pods::{PodView, pull_secrets};
pub(crate) use readers::{Calling, Owner};
pub(crate) use reading::NoReader;
pub(crate) use sessions::SessionView;
pub(crate) use world::{Settings, World};

use std::time::Instant;

use k8s_openapi::jiff::Timestamp;

/// The time of an event, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) wall: Timestamp,
}

impl Now {
    /// Reads the clocks.
    pub(crate) fn read() -> Self {
        Self {
            instant: Instant::now(),
            wall: Timestamp::now(),
        }
    }
}

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Identifies an agent's open `WatchClaims`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u64);

/// Identifies a session's open `WatchDials`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);
