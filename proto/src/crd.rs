//! The custom resources, `kvpn.dev/v1alpha1`. The chart's CRD files are
//! generated from these types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::HttpFilter;
use crate::flow::{Malformed, Protocol};
use crate::v1;

/// One laptop's connection to the cluster. Lives in the traffic manager's
/// namespace.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kvpn.dev",
    version = "v1alpha1",
    kind = "Session",
    namespaced,
    status = "SessionStatus",
    printcolumn = r#"{"name":"User","type":"string","jsonPath":".spec.user"}"#,
    printcolumn = r#"{"name":"Host","type":"string","jsonPath":".spec.client.hostname"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".spec.client.version"}"#,
    printcolumn = r#"{"name":"Connected","type":"boolean","jsonPath":".status.connected"}"#,
    printcolumn = r#"{"name":"Renewed","type":"date","jsonPath":".status.renewTime"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SessionSpec {
    /// The Kubernetes user that connects. The API server admits no other than
    /// the one who sends the request.
    pub user: String,
    /// Ed25519 public key made for this session: 64 hexadecimal digits.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub public_key: String,
    pub client: ClientInfo,
}

/// Where a session runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientInfo {
    pub hostname: String,
    pub version: String,
}

/// Written by the traffic manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Whether the laptop is connected at the moment.
    pub connected: bool,
    /// When the laptop was last seen. Sessions not renewed in time are deleted,
    /// and their engagements with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<Time>,
}

/// Sends traffic of a workload to a laptop. Lives in the workload's namespace,
/// so that the permission to create it there is the permission to engage.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "kvpn.dev",
    version = "v1alpha1",
    kind = "Engagement",
    namespaced,
    status = "EngagementStatus",
    printcolumn = r#"{"name":"Verb","type":"string","jsonPath":".spec.verb"}"#,
    printcolumn = r#"{"name":"Workload","type":"string","jsonPath":".spec.workload.name"}"#,
    printcolumn = r#"{"name":"User","type":"string","jsonPath":".spec.user"}"#,
    printcolumn = r#"{"name":"Active","type":"string","jsonPath":".status.conditions[?(@.type==\"Active\")].status"}"#,
    printcolumn = r#"{"name":"Covered","type":"integer","jsonPath":".status.podsCovered"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.podsSelected"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct EngagementSpec {
    /// The Kubernetes user that engages. The API server admits no other than
    /// the one who sends the request.
    pub user: String,
    /// Name of this user's Session in the traffic manager's namespace.
    pub session: String,
    pub verb: Verb,
    pub workload: WorkloadRef,
    /// None for an ingest, which takes no traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<EngagedPort>,
    /// Only requests that fit go to the laptop; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpFilter>,
    /// What becomes of intercepted requests that the laptop does not take; absent: the app
    /// answers them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<OnFailure>,
    /// The container that is replaced, or whose environment or files may be read; absent
    /// otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Its user rolls the workload out where running pods are refused an agent, so that
    /// its pods may be born with one although none has run in their namespace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub roll_out: bool,
    /// Whether agents end clients' TLS, so that filters can look inside. The certificate and
    /// key are never here: the session gives them to the traffic manager.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminates_tls: bool,
    /// TCP ports of the pods' localhost that the laptop reaches meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub to_pod: Vec<u16>,
    /// The laptop may read the environment of the container, in one of the pods. The API
    /// server admits it only from who may execute commands in them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub environment: bool,
    /// What the laptop may see of the container's files, in one of the pods; absent: nothing.
    /// The API server admits it only from who may execute commands in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FileAccess>,
}

/// What may be seen of a container's files, and whether it may be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileAccess {
    /// The laptop may change what the container may.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writable: bool,
    /// The whole file system, rather than the volumes that the container has mounted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub root: bool,
}

impl EngagementSpec {
    /// Whether somebody has to look into the container.
    pub fn reads(&self) -> bool {
        self.environment || self.files.is_some()
    }
}

/// Who answers instead of a laptop that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    App,
    /// Nobody: requests of HTTP get status 503, other connections are reset.
    Unavailable,
}

/// What an engagement does with the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verb {
    /// Connections go to the laptop, and to the app when the laptop is gone.
    Intercept,
    /// Copies go to the laptop, whose answers are thrown away.
    Wiretap,
    /// Connections go to the laptop, and the app's container is stopped meanwhile.
    Replace,
    /// No traffic goes anywhere: what a container has is read.
    Ingest,
}

impl Verb {
    /// The word of the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intercept => "intercept",
            Self::Wiretap => "wiretap",
            Self::Replace => "replace",
            Self::Ingest => "ingest",
        }
    }

    /// The verb of that word.
    pub fn of(word: &str) -> Option<Self> {
        [Self::Intercept, Self::Wiretap, Self::Replace, Self::Ingest]
            .into_iter()
            .find(|verb| verb.as_str() == word)
    }
}

/// Kinds of workloads that can be engaged.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum WorkloadKind {
    Deployment,
    StatefulSet,
    DaemonSet,
    ReplicaSet,
    Job,
    Rollout,
    Pod,
}

impl WorkloadKind {
    /// Every kind, in the order in which a bare name is looked up.
    pub const ALL: [Self; 7] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::Rollout,
        Self::ReplicaSet,
        Self::Job,
        Self::Pod,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::Rollout => "Rollout",
            Self::Pod => "Pod",
        }
    }

    /// As kubectl's users write it.
    pub fn short(self) -> &'static str {
        match self {
            Self::Deployment => "deploy",
            Self::StatefulSet => "sts",
            Self::DaemonSet => "ds",
            Self::ReplicaSet => "rs",
            Self::Job => "job",
            Self::Rollout => "rollout",
            Self::Pod => "pod",
        }
    }

    /// The API group; other groups have kinds of the same name.
    pub fn group(self) -> &'static str {
        match self {
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::ReplicaSet => "apps",
            Self::Job => "batch",
            Self::Rollout => "argoproj.io",
            Self::Pod => "",
        }
    }

    /// Whether a change of its template has its pods made anew, one after the other.
    pub fn has_roll_out(self) -> bool {
        match self {
            Self::Deployment | Self::StatefulSet | Self::DaemonSet | Self::Rollout => true,
            Self::ReplicaSet | Self::Job | Self::Pod => false,
        }
    }

    /// Reads a kind as kubectl does: singular, plural or short, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "deployment" | "deployments" | "deploy" => Some(Self::Deployment),
            "statefulset" | "statefulsets" | "sts" => Some(Self::StatefulSet),
            "daemonset" | "daemonsets" | "ds" => Some(Self::DaemonSet),
            "replicaset" | "replicasets" | "rs" => Some(Self::ReplicaSet),
            "job" | "jobs" => Some(Self::Job),
            "rollout" | "rollouts" | "ro" => Some(Self::Rollout),
            "pod" | "pods" | "po" => Some(Self::Pod),
            _ => None,
        }
    }
}

/// The workload that an engagement is on, in the engagement's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    pub kind: WorkloadKind,
    pub name: String,
}

impl std::fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

/// One port of the workload's pods, and where the laptop handles it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngagedPort {
    /// Number of the port in the pod.
    #[schemars(range(min = 1, max = 65535))]
    pub container_port: u16,
    pub protocol: Protocol,
    /// Address and port on the laptop, such as `127.0.0.1:8080`; for people,
    /// the session has its own.
    pub local: String,
    /// The Service port that leads here, when the user named one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServicePortRef>,
    /// What is spoken there, as the Service's `appProtocol` or the port's name said when the
    /// engagement was made; absent: the first bytes of a connection decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<AppProtocol>,
}

/// What is spoken on a port, as far as it matters to who looks for requests.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum AppProtocol {
    /// HTTP of any version, in the clear; the client speaks first.
    Http,
    /// TLS, whatever is inside; the client speaks first.
    Tls,
    /// Something else, of which nothing is looked at unless somebody filters.
    Opaque,
}

impl From<AppProtocol> for v1::AppProtocol {
    fn from(protocol: AppProtocol) -> Self {
        match protocol {
            AppProtocol::Http => Self::Http,
            AppProtocol::Tls => Self::Tls,
            AppProtocol::Opaque => Self::Opaque,
        }
    }
}

impl TryFrom<v1::AppProtocol> for AppProtocol {
    type Error = Malformed;

    /// Fails where nothing is known of it.
    fn try_from(protocol: v1::AppProtocol) -> Result<Self, Malformed> {
        match protocol {
            v1::AppProtocol::Http => Ok(Self::Http),
            v1::AppProtocol::Tls => Ok(Self::Tls),
            v1::AppProtocol::Opaque => Ok(Self::Opaque),
            v1::AppProtocol::Unspecified => Err(Malformed::Unknown("app protocol")),
        }
    }
}

/// A port of a Service in the engagement's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePortRef {
    pub name: String,
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// Written by the traffic manager.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngagementStatus {
    /// `AgentsReady` and `Active`, and `Readable` where that is asked for; see the
    /// constants of [`condition`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Running pods of the workload.
    #[serde(default)]
    pub pods_selected: u32,
    /// Those of them whose agent has the claims in force.
    #[serde(default)]
    pub pods_covered: u32,
    /// Since when its ports, or requests of them, are kept for it; absent while another
    /// engagement has them, and once its laptop has been gone for too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_since: Option<Time>,
}

/// Condition types and reasons of an Engagement.
pub mod condition {
    /// Every selected pod has an agent that the manager can talk to.
    pub const AGENTS_READY: &str = "AgentsReady";
    /// The next new connection to any selected pod goes to the laptop.
    pub const ACTIVE: &str = "Active";
    /// The container can be read: its environment, its files.
    pub const READABLE: &str = "Readable";

    /// All is well.
    pub const READY: &str = "Ready";
    /// Agents or claims are on their way.
    pub const PROGRESSING: &str = "Progressing";
    pub const NO_SUCH_WORKLOAD: &str = "NoSuchWorkload";
    pub const NO_RUNNING_POD: &str = "NoRunningPod";
    /// The API server or the kubelet refused the agent; the message is theirs.
    pub const AGENT_REFUSED: &str = "AgentRefused";
    /// The API server refused the agent to running pods, in the message's words; new ones
    /// could be born with it.
    pub const ROLL_OUT_NEEDED: &str = "RollOutNeeded";
    /// The agent was admitted but does not come up, or cannot set its redirect.
    pub const AGENT_FAILED: &str = "AgentFailed";
    /// Another engagement has the port.
    pub const CONFLICT: &str = "Conflict";
    /// The Session does not exist or belongs to another user.
    pub const NO_SESSION: &str = "NoSession";
    /// The laptop is not connected at the moment.
    pub const SESSION_ABSENT: &str = "SessionAbsent";
    /// The traffic manager has not been given the certificate and key to end TLS with.
    pub const NO_TLS_IDENTITY: &str = "NoTlsIdentity";
    /// This kind of workload or pod cannot be engaged.
    pub const NOT_SUPPORTED: &str = "NotSupported";
}

/// The definitions to install, as the chart has them.
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [Session::crd(), Engagement::crd()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_kubectl_reads_them() {
        assert_eq!(
            WorkloadKind::parse("deploy"),
            Some(WorkloadKind::Deployment)
        );
        assert_eq!(WorkloadKind::parse("STS"), Some(WorkloadKind::StatefulSet));
        assert_eq!(WorkloadKind::parse("jobs"), Some(WorkloadKind::Job));
        assert_eq!(WorkloadKind::parse("ro"), Some(WorkloadKind::Rollout));
        assert_eq!(WorkloadKind::parse("svc"), None);
        assert_eq!(WorkloadKind::parse("cronjob"), None);
        for kind in WorkloadKind::ALL {
            assert_eq!(WorkloadKind::parse(kind.as_str()), Some(kind));
            assert_eq!(WorkloadKind::parse(kind.short()), Some(kind));
        }
    }

    #[test]
    fn engagement_reads_as_documented() {
        let engagement: Engagement = serde_yaml::from_str(
            "
            apiVersion: kvpn.dev/v1alpha1
            kind: Engagement
            metadata: {name: web-x, namespace: shop}
            spec:
              user: alice
              session: alice-1
              verb: Intercept
              workload: {kind: Deployment, name: web}
              toPod: [9901]
              ports:
              - containerPort: 8080
                protocol: TCP
                local: 127.0.0.1:8080
                service: {name: web, port: 80}
                appProtocol: Http
            ",
        )
        .unwrap();
        assert_eq!(engagement.spec.workload.to_string(), "Deployment/web");
        assert_eq!(engagement.spec.ports[0].protocol, Protocol::Tcp);
        let spoken = engagement.spec.ports[0].app_protocol;
        assert_eq!(spoken, Some(AppProtocol::Http));
        assert_eq!(engagement.spec.to_pod, [9901]);
    }

    #[test]
    fn ingest_needs_no_ports() {
        let spec: EngagementSpec = serde_yaml::from_str(
            "{user: alice, session: alice-1, verb: Ingest, container: web, environment: true,
              workload: {kind: Deployment, name: web}}",
        )
        .unwrap();
        assert!(spec.ports.is_empty() && spec.environment);
        assert_eq!(Verb::of("ingest"), Some(spec.verb));
    }
}
