//! Names, ports and paths that several processes must agree on.

use std::path::PathBuf;

/// Namespace of the traffic manager unless the user says another.
pub const MANAGER_NAMESPACE: &str = "kvpn";

/// Name of the traffic manager's Deployment and Service.
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

/// Start of the name of an agent's ephemeral container.
pub const AGENT_CONTAINER_PREFIX: &str = "kvpn-agent-";

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

/// The unix socket of a user's session: below `XDG_RUNTIME_DIR`, else below a
/// directory of the user's own in `/tmp`.
pub fn session_socket(runtime_dir: Option<PathBuf>, uid: u32) -> PathBuf {
    match runtime_dir {
        Some(dir) => dir.join("kvpn/session.sock"),
        None => PathBuf::from(format!("/tmp/kvpn-{uid}/session.sock")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_name_has_scheme_and_port() {
        assert_eq!(manager_proxy_name(), "https:traffic-manager:443");
    }

    #[test]
    fn session_socket_prefers_the_runtime_directory() {
        let in_runtime = session_socket(Some("/run/user/7".into()), 7);
        let fallback = session_socket(None, 7);
        assert_eq!(in_runtime, PathBuf::from("/run/user/7/kvpn/session.sock"));
        assert_eq!(fallback, PathBuf::from("/tmp/kvpn-7/session.sock"));
    }
}
