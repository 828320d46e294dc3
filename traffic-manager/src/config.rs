//! What the Deployment tells the traffic manager.

use std::net::IpAddr;
use std::time::Duration;

use clap::Parser;

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
    #[arg(long, env = "KVPN_AGENT_LINGER", default_value = "10m")]
    pub(crate) agent_linger: String,

    /// Version of the chart that installed this, told to sessions
    #[arg(long, env = "KVPN_CHART_VERSION", default_value = "")]
    pub(crate) chart_version: String,

    /// How long a session that is not connected lives on
    #[arg(long, env = "KVPN_SESSION_GRACE", default_value = "30s", value_parser = parse_duration)]
    pub(crate) session_grace: Duration,

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

/// Reads `45s`, `2m`, `1h` or a number of seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3_600),
        Some(_) | None => (text, 1),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no duration such as 30s or 2m"))?;
    number
        .checked_mul(unit)
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is too long"))
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
    fn durations_are_read_with_and_without_a_unit() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3_600)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for text in ["", "s", "1d", "-1s", "99999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

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
