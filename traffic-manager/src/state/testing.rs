//! Objects and invented time for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kvpn_proto::crd::{EngagedPort, EngagementSpec, Verb, WorkloadKind, WorkloadRef};
use kvpn_proto::flow::Protocol;

use super::engagements::{EngagementView, Resolution};
use super::pods::{AgentContainer, AgentState, CompanionContainer, Phase, PodView};
use super::sessions::SessionView;
use super::{Key, Now};

/// Time that passes when a test says so.
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// So many seconds after the start.
    pub(crate) fn at(&self, seconds: u64) -> Now {
        Now {
            instant: self.start + Duration::from_secs(seconds),
            wall: epoch() + SignedDuration::from_secs(seconds as i64),
        }
    }
}

pub(crate) fn epoch() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// A running pod with the label `app: web`.
pub(crate) fn pod(namespace: &str, name: &str, ip: &str) -> PodView {
    PodView {
        key: Key::new(namespace, name),
        uid: format!("uid-{name}"),
        created: epoch(),
        ips: vec![ip.parse().unwrap()],
        labels: BTreeMap::from([("app".into(), "web".into())]),
        phase: Phase::Running,
        terminating: false,
        host_network: false,
        http_probed: Default::default(),
        agents: Vec::new(),
        probes: BTreeMap::new(),
        shares_processes: false,
        holders: Vec::new(),
        readers: Vec::new(),
        pull_secrets: BTreeSet::new(),
    }
}

/// A running agent's container.
pub(crate) fn agent_container(name: &str, image: &str) -> AgentContainer {
    AgentContainer {
        name: name.into(),
        image: image.into(),
        is_sidecar: false,
        state: AgentState::Running,
    }
}

/// A running container that is there for another one.
pub(crate) fn companion(name: &str, target: &str, image: &str) -> CompanionContainer {
    CompanionContainer {
        name: name.into(),
        target: target.into(),
        image: image.into(),
        state: AgentState::Running,
    }
}

pub(crate) fn session(name: &str, user: &str) -> SessionView {
    SessionView {
        key: Key::new("kvpn", name),
        uid: format!("uid-{name}"),
        user: user.into(),
        public_key: String::new(),
        status: None,
    }
}

/// An engagement on Deployment `web` in `shop`, by the user's first session.
pub(crate) fn engagement(name: &str, user: &str, port: u16, created: i64) -> EngagementView {
    EngagementView {
        key: Key::new("shop", name),
        uid: format!("uid-{name}"),
        created: epoch() + SignedDuration::from_secs(created),
        observed: Some(1),
        terminating: false,
        spec: EngagementSpec {
            user: user.into(),
            session: format!("{user}-1"),
            verb: Verb::Intercept,
            workload: WorkloadRef {
                kind: WorkloadKind::Deployment,
                name: "web".into(),
            },
            ports: vec![EngagedPort {
                container_port: port,
                protocol: Protocol::Tcp,
                local: format!("127.0.0.1:{port}"),
                service: None,
                app_protocol: None,
            }],
            http: None,
            on_failure: None,
            container: None,
            roll_out: false,
            terminates_tls: false,
            to_pod: Vec::new(),
            environment: false,
            files: None,
        },
        status: None,
    }
}

pub(crate) fn selector(label: &str, value: &str) -> Resolution {
    Resolution::Selector([(label.to_owned(), value.to_owned())].into_iter().collect())
}
