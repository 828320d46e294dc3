//! Who answers for a name.

use std::net::IpAddr;

use hickory_proto::rr::Name;

use super::rewrite;
use super::rules::NameRules;
use crate::session::cluster_info::ClusterInfo;

/// Where a question goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To the cluster, as it is.
    Cluster,
    /// To the cluster, under the full names that it may have there, in turn: the
    /// asked name is one that only a pod's search list would complete.
    Completed(Vec<Name>),
    /// To the host's own name servers.
    Upstream,
    /// To nobody: there is no such name.
    Nowhere,
}

/// Why a question goes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// It lies under the cluster's domain.
    Domain(String),
    /// Its suffix is a namespace of the cluster.
    Namespace(String),
    /// Its suffix is a headless Service of the session's namespace.
    Headless(String),
    /// It is the reverse name of an address of the cluster.
    Reverse(IpAddr),
    /// The user says so of this suffix.
    Rule(Name),
    /// By such names programs look for what their own network offers.
    Discovery,
    /// Nothing says that it is the cluster's.
    Foreign,
    /// The cluster's domain is not known.
    NoDomain,
}

/// Classifies a name that was asked for.
///
/// `SVC.NS` and `SVC.NS.svc`, and what lies under them, count as the cluster's when
/// `NS` is one of its namespaces
/// (<https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>), and
/// so does what lies under a headless Service of the session's own namespace;
/// reverse names when their address is one of the cluster's. The user's rules for a
/// suffix as long or longer come first.
pub(super) fn classify(name: &Name, cluster: &ClusterInfo, rules: &NameRules) -> Route {
    explain(name, cluster, rules).0
}

/// The same, and why.
pub(super) fn explain(name: &Name, cluster: &ClusterInfo, rules: &NameRules) -> (Route, Because) {
    let (labels, route, because) = classify_by_cluster(name, cluster);
    let by_rule = || {
        let labels = usize::from(rules.suffix(name).map_or(0, |suffix| suffix.labels));
        Because::Rule(name.trim_to(labels))
    };
    let (route, because) = match rules.suffix(name) {
        Some(suffix) if suffix.labels < labels => (route, because),
        Some(suffix) if suffix.is_included => match route {
            Route::Upstream => (Route::Cluster, by_rule()),
            Route::Cluster | Route::Completed(_) | Route::Nowhere => (route, because),
        },
        Some(_) => (Route::Upstream, by_rule()),
        None => (route, because),
    };
    match route {
        Route::Cluster | Route::Completed(_) if is_discovery(name) => {
            (Route::Nowhere, Because::Discovery)
        }
        Route::Cluster | Route::Completed(_) | Route::Upstream | Route::Nowhere => (route, because),
    }
}

/// What the cluster alone says of a name, and how long the suffix is by which it
/// says so.
fn classify_by_cluster(name: &Name, cluster: &ClusterInfo) -> (u8, Route, Because) {
    let Some(domain) = domain(cluster) else {
        return (0, Route::Upstream, Because::NoDomain);
    };
    if domain.zone_of(name) {
        let because = Because::Domain(cluster.domain.clone());
        return (domain.num_labels(), Route::Cluster, because);
    }
    if let Some(address) = rewrite::reverse_address(name) {
        return if cluster.contains(address) {
            (0, Route::Cluster, Because::Reverse(address))
        } else {
            (0, Route::Upstream, Because::Foreign)
        };
    }
    let found = [
        under_headless(name, cluster, &domain),
        under_namespace(name, cluster, &domain),
    ];
    let found: Vec<Completed> = found.into_iter().flatten().collect();
    match found.last() {
        Some(last) => (
            last.labels,
            Route::Completed(found.iter().map(|it| it.full.clone()).collect()),
            last.because.clone(),
        ),
        None => (0, Route::Upstream, Because::Foreign),
    }
}

/// Names by which programs look for what their own network offers: a proxy's
/// settings, and services (RFC 6763). A cluster has none of it, and is asked again
/// and again under every search domain.
fn is_discovery(name: &Name) -> bool {
    let labels: Vec<&[u8]> = name.iter().collect();
    let is = |label: &[u8], text: &str| label.eq_ignore_ascii_case(text.as_bytes());
    labels.first().is_some_and(|first| is(first, "wpad"))
        || labels
            .windows(2)
            .any(|pair| is(pair[0], "_dns-sd") && is(pair[1], "_udp"))
}

/// A short name that is one of the cluster's.
struct Completed {
    /// How many labels of it say so.
    labels: u8,
    because: Because,
    full: Name,
}

/// `HOST.SVC` and `_PORT._PROTOCOL.SVC`, as the first of a pod's search domains
/// completes them.
fn under_headless(name: &Name, cluster: &ClusterInfo, domain: &Name) -> Option<Completed> {
    let labels = labels(name);
    let service = match &labels[..] {
        [_, service] => service,
        [port, protocol, service] if port.starts_with('_') && protocol.starts_with('_') => service,
        _ => return None,
    };
    let namespace = cluster.headless.get(service)?;
    let zone = Name::from_ascii(format!("{namespace}.svc")).ok()?;
    let mut relative = name.clone();
    relative.set_fqdn(false);
    let full = relative.append_name(&zone).ok()?;
    Some(Completed {
        labels: 1,
        because: Because::Headless(service.clone()),
        full: full.append_domain(domain).ok()?,
    })
}

/// `SVC.NS` and `SVC.NS.svc`, and what lies under them.
fn under_namespace(name: &Name, cluster: &ClusterInfo, domain: &Name) -> Option<Completed> {
    let labels = labels(name);
    let (namespace, has_svc) = match &labels[..] {
        [_, .., namespace, svc] if svc == "svc" && labels.len() >= 3 => (namespace, true),
        [_, .., namespace] => (namespace, false),
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
    Some(Completed {
        labels: if has_svc { 2 } else { 1 },
        because: Because::Namespace(namespace.clone()),
        full: service.append_domain(domain).ok()?,
    })
}

fn labels(name: &Name) -> Vec<String> {
    let labels = name.iter();
    labels
        .map(|label| String::from_utf8_lossy(label).to_ascii_lowercase())
        .collect()
}

/// The cluster's domain; none as long as it is not known.
pub(super) fn domain(cluster: &ClusterInfo) -> Option<Name> {
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
            headless: [
                ("store".to_owned(), "shop".to_owned()),
                ("default".to_owned(), "shop".to_owned()),
            ]
            .into(),
            ..ClusterInfo::default()
        }
    }

    fn route(name: &str) -> Route {
        ruled(name, &NameRules::default())
    }

    fn ruled(name: &str, rules: &NameRules) -> Route {
        classify(&Name::from_ascii(name).unwrap(), &cluster(), rules)
    }

    fn completed(name: &str) -> Route {
        Route::Completed(vec![Name::from_ascii(name).unwrap()])
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
        assert_eq!(
            route("db-0.db.shop."),
            completed("db-0.db.shop.svc.cluster.local.")
        );
    }

    #[test]
    fn hosts_of_headless_services_are_completed_before_namespaces() {
        let full = completed("store-0.store.shop.svc.cluster.local.");
        assert_eq!(route("store-0.Store."), full);
        let of_port = completed("_db._tcp.store.shop.svc.cluster.local.");
        assert_eq!(route("_db._tcp.store."), of_port);
        assert_eq!(route("store."), Route::Upstream);
        assert_eq!(route("www.shop.store."), Route::Upstream);
        let names = [
            "web.default.shop.svc.cluster.local.",
            "web.default.svc.cluster.local.",
        ];
        let names = names.map(|name| Name::from_ascii(name).unwrap());
        assert_eq!(route("web.default."), Route::Completed(names.into()));
    }

    #[test]
    fn other_short_names_go_upstream() {
        for name in ["example.com.", "web.nowhere.svc.", "shop.svc.", "web.", "."] {
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
        let rules = NameRules::default();
        assert_eq!(classify(&name, &unknown, &rules), Route::Upstream);
    }

    #[test]
    fn what_programs_discover_their_own_network_by_is_nowhere_in_the_cluster() {
        for name in [
            "wpad.shop.svc.cluster.local.",
            "WPAD.shop.",
            "b._dns-sd._udp.shop.svc.cluster.local.",
            "lb._dns-sd._udp.svc.cluster.local.",
        ] {
            assert_eq!(route(name), Route::Nowhere, "{name}");
        }
        assert_eq!(route("wpad.office.example."), Route::Upstream);
        assert_eq!(
            route("b._dns-sd._udp.0.0.96.10.in-addr.arpa."),
            Route::Upstream
        );
    }

    #[test]
    fn rules_for_a_suffix_as_long_or_longer_come_first() {
        let rules = |include: &str, exclude: &str| {
            let list = |text: &str| -> Vec<String> {
                text.split_terminator(',').map(str::to_owned).collect()
            };
            NameRules::new(&list(include), &list(exclude), &[], "shop").unwrap()
        };
        let included = rules("corp.example", "");
        assert_eq!(ruled("wiki.corp.example.", &included), Route::Cluster);
        assert_eq!(ruled("wpad.corp.example.", &included), Route::Nowhere);

        // The cluster's own domain is longer than `local`.
        let excluded = rules("", "local,shop,old.svc.cluster.local");
        assert_eq!(
            ruled("web.shop.svc.cluster.local.", &excluded),
            Route::Cluster
        );
        assert_eq!(
            ruled("web.old.svc.cluster.local.", &excluded),
            Route::Upstream
        );
        assert_eq!(ruled("web.shop.", &excluded), Route::Upstream);
        assert_eq!(
            ruled("web.shop.svc.", &excluded),
            completed("web.shop.svc.cluster.local.")
        );
        assert_eq!(ruled("printer.local.", &excluded), Route::Upstream);
    }
}
