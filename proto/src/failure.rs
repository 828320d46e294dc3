//! Failures that reach a person: what is wrong, what to do, which exit code.

use serde::{Deserialize, Serialize};

/// A failure that a user can act on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub reason: Reason,
    /// One sentence on what is wrong, lower-case, without a full stop.
    pub message: String,
    /// One sentence on what to do next.
    pub next_step: String,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            next_step: next_step.into(),
        }
    }

    /// Wraps an error that nothing more helpful is known about.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(
            Reason::Internal,
            error.to_string(),
            "this is a fault in kvpn; run again with RUST_LOG=debug and report what it prints",
        )
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// Kinds of failure. Each has a stable name and a stable exit code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason, in the order of its exit code.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The exit code of the command line.
            pub fn exit_code(self) -> u8 {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// The stable name, as in JSON.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// A fault in kvpn itself.
    Internal = 1,
    /// Arguments that make no sense.
    Usage = 2,
    /// Something took longer than its deadline.
    TimedOut = 3,
    /// The root daemon does not run, or this user may not use it.
    DaemonNotRunning = 10,
    /// The root daemon could not change the host as needed.
    HostRefused = 11,
    /// Another session has this laptop's connection.
    AlreadyConnected = 12,
    /// No session runs; `kvpn connect` starts one.
    NotConnected = 13,
    /// No kubeconfig, or one that cannot be read.
    NoKubeconfig = 20,
    /// The kubeconfig has no such context.
    UnknownContext = 21,
    /// The API server does not answer.
    ApiServerUnreachable = 22,
    /// The API server does not know the user.
    Unauthenticated = 23,
    /// RBAC or an admission policy does not allow what is needed.
    Forbidden = 24,
    /// kvpn is not installed in the cluster.
    ChartNotInstalled = 25,
    /// The cluster's kvpn does not fit this one.
    VersionMismatch = 26,
    /// The traffic manager is installed but does not answer.
    ManagerUnreachable = 27,
    /// The session was ended from the cluster's side.
    SessionRevoked = 28,
    /// No such workload in the namespace.
    NoSuchWorkload = 30,
    /// The workload has no such port, or several and none was chosen.
    NoSuchPort = 31,
    /// The workload has no running pod.
    NoRunningPod = 32,
    /// The cluster's policy does not admit the agent.
    AgentRefused = 33,
    /// The agent did not come up.
    AgentNotReady = 34,
    /// Somebody else engages this port.
    AlreadyEngaged = 35,
    /// No such engagement.
    NoSuchEngagement = 36,
    /// This kind of workload or pod cannot be engaged.
    NotSupported = 37,
}

impl std::str::FromStr for Reason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
            .ok_or(())
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Puts the failure into a gRPC status; its details are the failure as JSON.
impl From<Failure> for tonic::Status {
    fn from(failure: Failure) -> Self {
        let details = serde_json::to_vec(&failure).unwrap_or_default();
        Self::with_details(code(failure.reason), failure.message, details.into())
    }
}

/// Reads back a failure; a status without one becomes `Internal`.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        serde_json::from_slice(status.details())
            .unwrap_or_else(|_| Self::internal(status.message()))
    }
}

fn code(reason: Reason) -> tonic::Code {
    match reason {
        Reason::Internal | Reason::HostRefused => tonic::Code::Internal,
        Reason::Usage | Reason::NoSuchPort => tonic::Code::InvalidArgument,
        Reason::TimedOut => tonic::Code::DeadlineExceeded,
        Reason::AlreadyConnected | Reason::AlreadyEngaged => tonic::Code::AlreadyExists,
        Reason::Unauthenticated | Reason::SessionRevoked => tonic::Code::Unauthenticated,
        Reason::Forbidden | Reason::AgentRefused => tonic::Code::PermissionDenied,
        Reason::NoSuchWorkload | Reason::NoSuchEngagement => tonic::Code::NotFound,
        Reason::NotSupported => tonic::Code::Unimplemented,
        Reason::ApiServerUnreachable | Reason::ManagerUnreachable => tonic::Code::Unavailable,
        Reason::DaemonNotRunning
        | Reason::NotConnected
        | Reason::NoKubeconfig
        | Reason::UnknownContext
        | Reason::ChartNotInstalled
        | Reason::VersionMismatch
        | Reason::NoRunningPod
        | Reason::AgentNotReady => tonic::Code::FailedPrecondition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_survives_a_grpc_status() {
        let failure = Failure::new(Reason::NoSuchPort, "no port 81", "choose 80");
        let status = tonic::Status::from(failure.clone());
        assert_eq!(Failure::from(status), failure);
    }

    #[test]
    fn foreign_status_becomes_internal() {
        let failure = Failure::from(tonic::Status::unavailable("gone"));
        assert_eq!(failure.reason, Reason::Internal);
        assert_eq!(failure.message, "gone");
    }

    #[test]
    fn exit_codes_and_names_are_unique() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert_eq!(a.as_str().parse(), Ok(*a));
            for b in &Reason::ALL[i + 1..] {
                assert_ne!(a.exit_code(), b.exit_code());
            }
        }
    }
}
