//! Who answers for a name.

use hickory_proto::rr::Name;

use crate::session::cluster_info::ClusterInfo;

/// Where a question goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To the cluster, as it is.
    Cluster,
    /// To the cluster, under its full name there: the asked name is one that
    /// only a pod's search list would complete.
    Completed(Name),
    /// To the host's own name servers.
    Upstream,
}

/// Classifies a name that was asked for.
///
/// `SVC.NS` and `SVC.NS.svc` count as the cluster's when `NS` is one of its
/// namespaces (<https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>);
/// reverse names when their address is one of the cluster's.
pub(super) fn classify(name: &Name, cluster: &ClusterInfo) -> Route {
    let Some(domain) = domain(cluster) else {
        return Route::Upstream;
    };
    if domain.zone_of(name) {
        return Route::Cluster;
    }
    if let Ok(subnet) = name.parse_arpa_name() {
        let whole = subnet.prefix_len() == subnet.max_prefix_len();
        return if whole && cluster.contains(subnet.addr()) {
            Route::Cluster
        } else {
            Route::Upstream
        };
    }
    match complete(name, cluster, &domain) {
        Some(full) => Route::Completed(full),
        None => Route::Upstream,
    }
}

fn complete(name: &Name, cluster: &ClusterInfo, domain: &Name) -> Option<Name> {
    let labels: Vec<String> = name
        .iter()
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect();
    let (namespace, has_svc) = match &labels[..] {
        [_, .., namespace, svc] if svc == "svc" && labels.len() >= 3 => (namespace, true),
        [_, namespace] => (namespace, false),
        _ => return None,
    };
    if !cluster.namespaces.contains(namespace) {
        return None;
    }
    let mut relative = name.clone();
    relative.set_fqdn(false);
    let service = if has_svc {
        relative
    } else {
        relative.append_label("svc").ok()?
    };
    service.append_domain(domain).ok()
}

/// The cluster's domain; none as long as it is not known.
fn domain(cluster: &ClusterInfo) -> Option<Name> {
    if cluster.domain.is_empty() {
        return None;
    }
    let mut domain = Name::from_ascii(&cluster.domain).ok()?;
    domain.set_fqdn(true);
    Some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterInfo {
        ClusterInfo {
            pod_subnets: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:244::/64".parse().unwrap(),
            ],
            service_subnets: vec!["10.96.0.0/16".parse().unwrap()],
            domain: "cluster.local".into(),
            namespaces: ["shop".to_owned(), "default".to_owned()].into(),
            ..ClusterInfo::default()
        }
    }

    fn route(name: &str) -> Route {
        classify(&Name::from_ascii(name).unwrap(), &cluster())
    }

    fn completed(name: &str) -> Route {
        Route::Completed(Name::from_ascii(name).unwrap())
    }

    #[test]
    fn names_of_the_cluster_domain_go_to_the_cluster() {
        for name in [
            "web.shop.svc.cluster.local.",
            "WEB.Shop.svc.Cluster.LOCAL.",
            "google.com.shop.svc.cluster.local.",
            "cluster.local.",
        ] {
            assert_eq!(route(name), Route::Cluster, "{name}");
        }
        assert_eq!(route("notcluster.local."), Route::Upstream);
    }

    #[test]
    fn short_names_of_known_namespaces_are_completed() {
        assert_eq!(route("web.shop."), completed("web.shop.svc.cluster.local."));
        assert_eq!(
            route("web.shop.svc."),
            completed("web.shop.svc.cluster.local.")
        );
        assert_eq!(
            route("db-0.db.shop.svc."),
            completed("db-0.db.shop.svc.cluster.local.")
        );
        assert_eq!(route("Web.SHOP."), completed("Web.SHOP.svc.cluster.local."));
    }

    #[test]
    fn other_short_names_go_upstream() {
        for name in [
            "example.com.",
            "web.nowhere.svc.",
            "shop.svc.",
            "web.",
            "a.web.shop.",
            ".",
        ] {
            assert_eq!(route(name), Route::Upstream, "{name}");
        }
    }

    #[test]
    fn reverse_names_of_the_clusters_addresses_go_to_the_cluster() {
        assert_eq!(route("7.3.244.10.in-addr.arpa."), Route::Cluster);
        assert_eq!(route("1.0.96.10.in-addr.arpa."), Route::Cluster);
        assert_eq!(route("1.2.0.192.in-addr.arpa."), Route::Upstream);
        assert_eq!(route("244.10.in-addr.arpa."), Route::Upstream);
        let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.4.2.0.0.0.d.f.ip6.arpa.";
        assert_eq!(route(v6), Route::Cluster);
    }

    #[test]
    fn without_a_known_domain_everything_goes_upstream() {
        let unknown = ClusterInfo::default();
        let name = Name::from_ascii("web.shop.svc.cluster.local.").unwrap();
        assert_eq!(classify(&name, &unknown), Route::Upstream);
    }
}
