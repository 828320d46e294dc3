//! Names, ports and paths that several processes must agree on.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Failure, Reason};

/// Namespace of the traffic manager unless the user says another.
pub const MANAGER_NAMESPACE: &str = "kvpn";

/// Name of the traffic manager's Deployment, Service and ServiceAccount.
pub const MANAGER_SERVICE: &str = "traffic-manager";

/// Port of the Service that sessions reach through the API server's
/// `services/proxy`.
pub const MANAGER_SERVICE_PORT: u16 = 443;

/// Port that the traffic manager listens on for sessions.
pub const MANAGER_SESSION_PORT: u16 = 8443;

/// Port that agents reach, on the pod and on the Service.
pub const MANAGER_AGENT_PORT: u16 = 8444;

/// The name by which agents verify the traffic manager's certificate.
pub const MANAGER_TLS_NAME: &str = "traffic-manager.kvpn.internal";

/// What a session asks for in the `Upgrade` header.
pub const UPGRADE_PROTOCOL: &str = "kvpn";

/// Path on the traffic manager that upgrades to the tunnel.
pub const TUNNEL_PATH: &str = "/tunnel";

/// Path on the traffic manager that the kubelet probes.
pub const HEALTH_PATH: &str = "/healthz";

/// Path on the traffic manager that Prometheus scrapes.
pub const METRICS_PATH: &str = "/metrics";

/// Path on the traffic manager, before a secret, that the API server asks about what is
/// about to be created or deleted.
pub const ADMISSION_PATH: &str = "/admit/";

/// Name of the MutatingWebhookConfiguration, whose webhooks the traffic manager writes.
pub const WEBHOOK_CONFIGURATION: &str = "kvpn-agents";

/// Annotation of pods that keep an agent, also while nobody engages them, and its value.
pub const AGENT_ANNOTATION: &str = "kvpn.dev/agent";
pub const AGENT_ENABLED: &str = "enabled";

/// Annotation of a pod template with when kvpn had its workload rolled out.
pub const ROLL_OUT_ANNOTATION: &str = "kvpn.dev/restartedAt";

/// Audience of the tokens by which agents show whose pod they are in.
pub const AGENT_TOKEN_AUDIENCE: &str = "kvpn";

/// Start of the name of an agent's container.
pub const AGENT_CONTAINER_PREFIX: &str = "kvpn-agent-";

/// Start of the name of a container that stops the processes of another one.
pub const HOLDER_CONTAINER_PREFIX: &str = "kvpn-holder-";

/// Start of the name of a container that reads what another one has.
pub const READER_CONTAINER_PREFIX: &str = "kvpn-reader-";

/// Name of the agent's nftables table in the pod's network namespace.
pub const AGENT_NFT_TABLE: &str = "kvpn";

/// Directory of the root daemon's state.
pub const DAEMON_RUN_DIR: &str = "/run/kvpn";

/// The root daemon's unix socket.
pub const DAEMON_SOCKET: &str = "/run/kvpn/kvpnd.sock";

/// The service name in the path of `services/proxy`, and in the
/// `resourceNames` of the RBAC rule that allows it.
pub fn manager_proxy_name() -> String {
    format!("https:{MANAGER_SERVICE}:{MANAGER_SERVICE_PORT}")
}

/// The traffic manager's name as a user of the API server
/// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#service-account-tokens>).
pub fn manager_user(namespace: &str) -> String {
    format!("system:serviceaccount:{namespace}:{MANAGER_SERVICE}")
}

/// What a user is called before a reader, who may be that user.
pub fn called<'a>(user: &'a str, reader: &str) -> &'a str {
    if user == reader { "you" } else { user }
}

/// Name of a connection unless the user says another.
pub const DEFAULT_CONNECTION: &str = "default";

/// Under `NAME.kvpn` the connection of that name answers, whatever other
/// connections there are.
pub const CONNECTIONS_DOMAIN: &str = "kvpn";

/// Directory of the sockets of a user's sessions: below `XDG_RUNTIME_DIR`, else a
/// directory of the user's own in `/tmp`.
pub fn sessions_dir(uid: u32) -> PathBuf {
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR");
    sessions_dir_in(runtime_dir.filter(|dir| !dir.is_empty()), uid)
}

fn sessions_dir_in(runtime_dir: Option<OsString>, uid: u32) -> PathBuf {
    match runtime_dir.map(PathBuf::from) {
        Some(dir) => dir.join("kvpn"),
        None => PathBuf::from(format!("/tmp/kvpn-{uid}")),
    }
}

/// The unix socket of the session for the connection of this name.
pub fn session_socket(sessions_dir: &Path, connection: &str) -> PathBuf {
    sessions_dir.join(match connection {
        DEFAULT_CONNECTION => "session.sock".to_owned(),
        name => format!("session-{name}.sock"),
    })
}

/// The connection whose session has a socket of this file name.
pub fn connection_of_socket(file_name: &str) -> Option<&str> {
    match file_name.strip_prefix("session")?.strip_suffix(".sock")? {
        "" => Some(DEFAULT_CONNECTION),
        name => name.strip_prefix('-'),
    }
}

/// Checks the name of a connection, which is a label of names under it
/// (RFC 1123 section 2.1).
///
/// # Errors
/// `Usage` when it is none.
pub fn check_connection(name: &str) -> Result<(), Failure> {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = (1..=63).contains(&name.len())
        && name.chars().all(is_letter)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if is_label {
        return Ok(());
    }
    Err(Failure::new(
        Reason::Usage,
        format!("`{name}` is not the name of a connection"),
        "use up to 63 lower-case letters, digits and hyphens, such as staging",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_name_has_scheme_and_port() {
        assert_eq!(manager_proxy_name(), "https:traffic-manager:443");
    }

    #[test]
    fn reader_is_called_you() {
        assert_eq!(called("alice", "alice"), "you");
        assert_eq!(called("bob", "alice"), "bob");
    }

    #[test]
    fn sessions_are_in_the_runtime_directory_where_there_is_one() {
        let in_runtime = sessions_dir_in(Some("/run/user/7".into()), 7);
        assert_eq!(in_runtime, PathBuf::from("/run/user/7/kvpn"));
        assert_eq!(sessions_dir_in(None, 7), PathBuf::from("/tmp/kvpn-7"));
    }

    #[test]
    fn socket_tells_its_connection() {
        for (name, file) in [
            (DEFAULT_CONNECTION, "session.sock"),
            ("staging", "session-staging.sock"),
        ] {
            assert_eq!(
                session_socket(Path::new("/run"), name),
                Path::new("/run").join(file)
            );
            assert_eq!(connection_of_socket(file), Some(name));
        }
        for other in ["session.lock", "sessions.sock", "kvpnd.sock"] {
            assert_eq!(connection_of_socket(other), None);
        }
    }

    #[test]
    fn connection_is_named_by_a_label() {
        for name in ["default", "a", "eu-1", &"x".repeat(63)] {
            assert_eq!(check_connection(name), Ok(()));
        }
        for name in ["", "A", "a.b", "-a", "a-", "a/b", &"x".repeat(64)] {
            assert_eq!(check_connection(name).unwrap_err().reason, Reason::Usage);
        }
    }
}
