//! What the traffic manager tells of the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use kvpn_proto::v1;
use tracing::warn;

/// Subnets and names of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterInfo {
    pub(crate) pod_subnets: Vec<IpNet>,
    pub(crate) service_subnets: Vec<IpNet>,
    /// Such as `cluster.local`.
    pub(crate) domain: String,
    pub(crate) namespaces: BTreeSet<String>,
    /// Services without an address of their own in the session's namespace, which is
    /// with each. Pods have names under theirs.
    pub(crate) headless: BTreeMap<String, String>,
    /// Whether pings through the tunnel are answered.
    pub(crate) ping_supported: bool,
}

impl ClusterInfo {
    /// Tells whether an address is one of the cluster's.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.subnets().any(|subnet| subnet.contains(&address))
    }

    /// Every subnet of the cluster.
    pub(crate) fn subnets(&self) -> impl Iterator<Item = IpNet> {
        self.pod_subnets
            .iter()
            .chain(&self.service_subnets)
            .copied()
    }
}

impl From<v1::WatchClusterResponse> for ClusterInfo {
    fn from(message: v1::WatchClusterResponse) -> Self {
        Self {
            pod_subnets: subnets(&message.pod_subnets),
            service_subnets: subnets(&message.service_subnets),
            domain: message
                .cluster_domain
                .trim_matches('.')
                .to_ascii_lowercase(),
            namespaces: message.namespaces.into_iter().collect(),
            headless: message
                .headless_services
                .into_iter()
                .map(|service| (service.name, service.namespace))
                .collect(),
            ping_supported: message.ping_supported,
        }
    }
}

fn subnets(texts: &[String]) -> Vec<IpNet> {
    texts
        .iter()
        .filter_map(|text| match text.parse::<IpNet>() {
            Ok(subnet) => Some(subnet.trunc()),
            Err(_) => {
                warn!(subnet = %text, "The traffic manager told a malformed subnet");
                None
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ClusterInfo {
        ClusterInfo::from(v1::WatchClusterResponse {
            pod_subnets: vec!["10.244.0.0/16".into(), "fd00:244::/64".into(), "?".into()],
            service_subnets: vec!["10.96.0.0/16".into(), "fd00:96::/108".into()],
            cluster_domain: "cluster.local.".into(),
            namespaces: vec!["default".into(), "shop".into()],
            ping_supported: true,
            headless_services: Vec::new(),
        })
    }

    #[test]
    fn malformed_subnets_are_left_out() {
        assert_eq!(info().pod_subnets.len(), 2);
        assert_eq!(info().domain, "cluster.local");
    }
}
