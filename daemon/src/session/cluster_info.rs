//! What the traffic manager tells of the cluster.

use std::collections::BTreeSet;
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
    /// Whether pings through the tunnel are answered.
    pub(crate) ping_supported: bool,
}

impl ClusterInfo {
    /// What to route into the tunnel: every subnet of the cluster, merged, but
    /// not the API server, through which the tunnel itself runs.
    pub(crate) fn routes(&self, api_server: &[IpAddr]) -> Vec<IpNet> {
        let subnets: Vec<IpNet> = self.subnets().collect();
        let mut routes = IpNet::aggregate(&subnets);
        for address in api_server {
            routes = routes
                .into_iter()
                .flat_map(|subnet| without(subnet, *address))
                .collect();
        }
        routes
    }

    /// Tells whether an address is one of the cluster's.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.subnets().any(|subnet| subnet.contains(&address))
    }

    /// What completes short names, as in a pod of that namespace; nothing while
    /// the cluster's domain is not known.
    pub(crate) fn search_domains(&self, namespace: &str) -> Vec<String> {
        let domain = &self.domain;
        if domain.is_empty() {
            return Vec::new();
        }
        vec![
            format!("{namespace}.svc.{domain}"),
            format!("svc.{domain}"),
            domain.clone(),
        ]
    }

    fn subnets(&self) -> impl Iterator<Item = IpNet> {
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

/// Splits a subnet so that one address is left out.
fn without(subnet: IpNet, address: IpAddr) -> Vec<IpNet> {
    if !subnet.contains(&address) {
        return vec![subnet];
    }
    match subnet.subnets(subnet.prefix_len() + 1) {
        Ok(halves) => halves.flat_map(|half| without(half, address)).collect(),
        // It is the address itself.
        Err(_) => Vec::new(),
    }
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
        })
    }

    #[test]
    fn malformed_subnets_are_left_out() {
        assert_eq!(info().pod_subnets.len(), 2);
        assert_eq!(info().domain, "cluster.local");
    }

    #[test]
    fn search_domains_are_those_of_a_pod() {
        assert_eq!(
            info().search_domains("shop"),
            [
                "shop.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local"
            ]
        );
    }

    #[test]
    fn an_unknown_domain_completes_nothing() {
        assert!(ClusterInfo::default().search_domains("shop").is_empty());
    }

    #[test]
    fn routes_leave_out_the_api_server_and_nothing_else() {
        let server: IpAddr = "10.96.0.1".parse().unwrap();
        let routes = info().routes(&[server]);
        let routed = |text: &str| {
            let address: IpAddr = text.parse().unwrap();
            routes.iter().any(|route| route.contains(&address))
        };
        assert!(!routed("10.96.0.1"));
        for address in [
            "10.96.0.0",
            "10.96.0.2",
            "10.96.255.255",
            "10.244.3.4",
            "fd00:96::1",
        ] {
            assert!(routed(address), "{address}");
        }
    }

    #[test]
    fn an_api_server_elsewhere_changes_nothing() {
        assert_eq!(
            info().routes(&["192.0.2.1".parse().unwrap()]),
            info().routes(&[])
        );
    }
}
