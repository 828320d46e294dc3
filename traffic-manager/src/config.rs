//! What the Deployment tells the traffic manager.

use std::net::IpAddr;
use std::time::Duration;

use clap::Parser;
use kvpn_proto::duration::parse_duration;

/// Lets laptops into the cluster and brings agents into the pods they engage.
#[derive(Clone, Debug, Parser)]
#[command(name = "traffic-manager", version)]
pub(crate) struct Config {
    /// Namespace of this pod, where sessions live
    #[arg(long, env = "POD_NAMESPACE")]
    pub(crate) namespace: String,

    /// Name of this pod
    #[arg(long, env = "POD_NAME")]
    pub(crate) pod_name: String,

    /// Address of this pod
    #[arg(long, env = "POD_IP")]
    pub(crate) pod_ip: IpAddr,

    /// All addresses of this pod
    #[arg(long, env = "POD_IPS", value_delimiter = ',')]
    pub(crate) pod_ips: Vec<IpAddr>,

    /// Image of the agent
    #[arg(long, env = "KVPN_AGENT_IMAGE")]
    pub(crate) agent_image: String,

    /// When the kubelet pulls the agent's image
    #[arg(
        long,
        env = "KVPN_AGENT_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent",
        value_parser = ["Always", "IfNotPresent", "Never"]
    )]
    pub(crate) agent_image_pull_policy: String,

    /// How long an agent that has nothing to do stays in its pod
    #[arg(long, env = "KVPN_AGENT_LINGER", default_value = "10m", value_parser = parse_duration)]
    pub(crate) agent_linger: Duration,

    /// Version of the chart that installed this, told to sessions
    #[arg(long, env = "KVPN_CHART_VERSION", default_value = "")]
    pub(crate) chart_version: String,

    /// How long a session that is not connected lives on
    #[arg(long, env = "KVPN_SESSION_GRACE", default_value = "30s", value_parser = parse_duration)]
    pub(crate) session_grace: Duration,

    /// How long the laptop of an engagement may be gone until it no longer blocks others
    #[arg(long, env = "KVPN_ENGAGEMENT_IDLE", default_value = "10s", value_parser = parse_duration)]
    pub(crate) engagement_idle: Duration,

    /// Whether metrics are served to those whom the cluster lets read them
    #[arg(long, env = "KVPN_METRICS", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) metrics: bool,

    /// Whether pods of engaged workloads are born with an agent
    #[arg(long, env = "KVPN_WEBHOOK", default_value_t = true, action = clap::ArgAction::Set)]
    pub(crate) webhook: bool,

    /// The namespaces in which workloads may be engaged; all when empty
    #[arg(long, env = "KVPN_MANAGED_NAMESPACES", default_value = "", value_parser = parse_names)]
    pub(crate) managed_namespaces: Names,
}

/// Names separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names(pub(crate) Vec<String>);

impl Config {
    /// Every address of this pod.
    pub(crate) fn own_ips(&self) -> Vec<IpAddr> {
        let mut ips = self.pod_ips.clone();
        if !ips.contains(&self.pod_ip) {
            ips.insert(0, self.pod_ip);
        }
        ips
    }
}

fn parse_names(text: &str) -> Result<Names, std::convert::Infallible> {
    let names = text
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty());
    Ok(Names(names.map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [&str; 9] = [
        "traffic-manager",
        "--namespace",
        "kvpn",
        "--pod-name",
        "traffic-manager-0",
        "--pod-ip",
        "10.1.0.5",
        "--agent-image",
        "agent:1",
    ];

    #[test]
    fn own_addresses_always_hold_the_first() {
        let mut config = Config::parse_from(REQUIRED);
        assert_eq!(config.own_ips(), [config.pod_ip]);
        let second: IpAddr = "fd00::5".parse().unwrap();
        config.pod_ips = vec![config.pod_ip, second];
        assert_eq!(config.own_ips(), [config.pod_ip, second]);
    }

    #[test]
    fn managed_namespaces_are_a_list() {
        let arguments = REQUIRED
            .into_iter()
            .chain(["--managed-namespaces", "a, b,"]);
        let config = Config::parse_from(arguments);
        assert_eq!(config.managed_namespaces.0, ["a", "b"]);
    }
}
