//! What comes into the state, and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kvpn_proto::crd::{EngagementStatus, SessionStatus, WorkloadRef};
use kvpn_proto::tls::TlsIdentity;

use super::{
    Calling, Change, ClaimSet, Deletion, EngagementView, Key, LinkId, Nursery, Owner, PodView,
    Resolution, SessionView, StreamId,
};

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    Sessions(Change<SessionView>),
    Engagements(Change<EngagementView>),
    Pods(Change<PodView>),
    /// All of the above have been listed once.
    Synced,
    /// A session has opened `WatchDials`.
    SessionOpened {
        uid: String,
        stream: StreamId,
    },
    SessionClosed {
        uid: String,
        stream: StreamId,
    },
    WorkloadResolved {
        engagement: Key,
        uid: String,
        resolution: Resolution,
    },
    /// A session has given what clients' TLS is ended with.
    TlsGiven {
        engagement: Key,
        uid: String,
        identity: TlsIdentity,
    },
    /// The API server has added an agent's container.
    AgentAdded {
        pod_uid: String,
        container: String,
    },
    /// The API server does not admit an agent; its own words.
    AgentRefused {
        pod_uid: String,
        message: String,
    },
    /// The container could not be added, for another reason.
    AgentNotAdded {
        pod_uid: String,
        message: String,
    },
    /// The kubelet cannot start an agent's container, and goes on trying; its own words.
    AgentStuck {
        pod_uid: String,
        container: String,
        message: String,
    },
    /// The API server has added a container that can stop or read another one.
    CompanionAdded {
        role: Role,
        pod_uid: String,
        target: String,
        container: String,
    },
    /// It has not.
    CompanionNotAdded {
        role: Role,
        pod_uid: String,
        target: String,
        message: String,
        /// By the API server, and not for a reason that may pass.
        is_refused: bool,
    },
    /// An agent has opened `WatchClaims`.
    AgentLinked {
        pod_uid: String,
        link: LinkId,
        container: String,
    },
    AgentUnlinked {
        pod_uid: String,
        link: LinkId,
    },
    AgentApplied {
        pod_uid: String,
        link: LinkId,
        generation: u64,
        /// Containers that are to be stopped and are not, and why; empty while they may
        /// soon be.
        not_stopped: BTreeMap<String, String>,
        /// Ids of claims for which it has nothing to end TLS with.
        without_tls: BTreeSet<String>,
    },
    AgentApplyFailed {
        pod_uid: String,
        link: LinkId,
        generation: u64,
        detail: String,
    },
    /// A reader has opened `WatchReads`.
    ReaderLinked {
        pod: Key,
        pod_uid: String,
        link: LinkId,
        calling: Calling,
    },
    ReaderUnlinked {
        pod_uid: String,
        link: LinkId,
    },
    /// A deadline has passed.
    Tick,
}

/// What a container is there for beside another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// To stop its processes.
    Holder,
    /// To read what it has.
    Reader,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Effect {
    SendClaims {
        link: LinkId,
        claims: ClaimSet,
    },
    /// End an agent's `WatchClaims`.
    EndLink {
        link: LinkId,
    },
    AddAgent {
        pod: Key,
        uid: String,
        /// The pod's first address.
        ip: Option<IpAddr>,
    },
    /// Add a container that can stop the processes of another one.
    AddHolder {
        pod: Key,
        uid: String,
        target: String,
    },
    /// Add a container that can read what another one has.
    AddReader {
        pod: Key,
        uid: String,
        target: String,
        /// As whom it must run, if the pod does not tell.
        owner: Option<Owner>,
    },
    /// Have a reader end.
    DismissReader {
        link: LinkId,
    },
    ResolveWorkload {
        engagement: Key,
        uid: String,
        workload: WorkloadRef,
    },
    WriteEngagement {
        engagement: Key,
        uid: String,
        status: EngagementStatus,
    },
    WriteSession {
        session: Key,
        uid: String,
        status: SessionStatus,
    },
    /// Have the API server ask this, and nothing else.
    WriteWebhooks(Questions),
    DeleteEngagement {
        engagement: Key,
        uid: String,
    },
    DeleteSession {
        session: Key,
        uid: String,
    },
    /// End the connections of a session that does not exist any more.
    RevokeSession {
        uid: String,
        /// Absent when nobody knows by whom.
        deletion: Option<Deletion>,
    },
}

/// What the API server asks before it does it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Questions {
    /// About these pods, and no others, before they are created.
    pub(crate) births: Vec<Nursery>,
    /// About Engagements and Sessions, before they are deleted.
    pub(crate) deletions: bool,
}

/// Who an agent says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// By where its connection comes from.
    Address(IpAddr),
    /// By a token of its pod, whose UID it holds.
    Pod { key: Key, uid: String },
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(ip) => write!(f, "the address {ip}"),
            Self::Pod { key, .. } => write!(f, "the name {key} and its UID"),
        }
    }
}

/// Why an agent's call is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AgentRejected {
    #[error("no pod has {0}")]
    NoPod(Caller),
    #[error("pod {0} has no agent container {1} of the traffic manager's image")]
    NoContainer(Key, String),
    #[error("another agent serves pod {0}")]
    Taken(Key),
    #[error("another reader reads container {1} of pod {0}")]
    Read(Key, String),
}
