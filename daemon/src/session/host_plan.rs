//! What a session changes on the host, from what the cluster says and what its
//! user wants.

use std::collections::BTreeSet;
use std::net::IpAddr;

mod reverse;

use ipnet::IpNet;
use kvpn_proto::Failure;

use super::cluster_info::ClusterInfo;
use super::protected::Protected;
use super::subnet_rules::SubnetRules;
use super::vnat::{Vnat, VnatRules};
use crate::dns::rules::NameRules;
use crate::lease::network::Network;

/// What of the plan stays as it is while the cluster changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostPlan {
    /// The session's own, in which short names are looked up first.
    pub(crate) namespace: String,
    pub(crate) protected: Protected,
    pub(crate) names: NameRules,
    pub(crate) subnets: SubnetRules,
    pub(crate) vnat_rules: VnatRules,
    pub(crate) vnat: Vnat,
}

impl HostPlan {
    /// Finds a place for subnets that are to be shown at other addresses.
    ///
    /// # Errors
    /// `HostRefused` when there is none.
    pub(crate) async fn find_places(&self, cluster: &ClusterInfo) -> Result<(), Failure> {
        let subnets = self.subnets.also_proxy().iter().copied();
        let subnets: Vec<IpNet> = subnets.chain(cluster.subnets()).collect();
        self.vnat.extend(&self.vnat_rules, &subnets).await
    }

    /// What to ask of the root daemon while the cluster is like this.
    pub(crate) fn network(&self, cluster: &ClusterInfo) -> Network {
        // Of a subnet that is shown elsewhere, the host's own addresses are not in it.
        let protected = self.protected.addresses();
        let protected: Vec<IpAddr> = protected
            .filter(|address| self.vnat.shown(*address) == *address)
            .collect();
        let routed = self.subnets.routed(cluster.subnets().collect(), &protected);
        Network {
            subnets: self.vnat.shown_subnets(&routed),
            search_domains: self.search_domains(cluster),
            domains: self.domains(cluster),
            allowed_conflicts: self.subnets.allowed_conflicts().to_vec(),
        }
    }

    /// What completes short names, as in a pod of the namespace; nothing while
    /// the cluster's domain is not known.
    fn search_domains(&self, cluster: &ClusterInfo) -> Vec<String> {
        let domain = &cluster.domain;
        if domain.is_empty() {
            return Vec::new();
        }
        vec![
            format!("{}.svc.{domain}", self.namespace),
            format!("svc.{domain}"),
            domain.clone(),
        ]
    }

    /// Where names are to be asked of the session, by what it takes for the
    /// cluster's.
    fn domains(&self, cluster: &ClusterInfo) -> Vec<String> {
        let subnets: Vec<IpNet> = cluster.subnets().collect();
        let subnets = self.vnat.shown_subnets(&subnets).into_iter();
        let mut domains: BTreeSet<String> = subnets.flat_map(reverse::zones).collect();
        let mut first = Vec::new();
        if !cluster.domain.is_empty() {
            first.extend([cluster.domain.clone(), "svc".into()]);
            domains.extend(cluster.namespaces.iter().cloned());
            domains.extend(cluster.headless.keys().cloned());
        }
        // A resolver may not take all of them.
        let of_cluster = first.into_iter().chain(domains);
        let of_cluster = of_cluster.filter(|domain| !self.names.excludes(domain));
        self.names.domains().chain(of_cluster).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ClusterInfo {
        let subnet = |text: &str| text.parse().unwrap();
        ClusterInfo {
            pod_subnets: vec![subnet("10.244.0.0/16"), subnet("fd00:244::/64")],
            service_subnets: vec![subnet("10.96.0.0/16"), subnet("fd00:96::/108")],
            domain: "cluster.local".into(),
            ..ClusterInfo::default()
        }
    }

    fn plan(protected: &[&str]) -> HostPlan {
        HostPlan {
            namespace: "shop".into(),
            protected: protected
                .iter()
                .map(|text| text.parse::<IpAddr>().unwrap())
                .collect(),
            ..HostPlan::default()
        }
    }

    #[test]
    fn search_domains_are_those_of_a_pod() {
        assert_eq!(
            plan(&[]).network(&cluster()).search_domains,
            [
                "shop.svc.cluster.local",
                "svc.cluster.local",
                "cluster.local"
            ]
        );
    }

    #[test]
    fn an_unknown_domain_completes_nothing() {
        let network = plan(&[]).network(&ClusterInfo::default());
        assert!(network.search_domains.is_empty());
        assert!(network.domains.is_empty());
    }

    #[test]
    fn domains_are_those_that_the_cluster_answers_for() {
        let list = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        let names = NameRules::new(
            &list(&["corp.example"]),
            &list(&["dev"]),
            &list(&["db.example.com=db"]),
            "shop",
        );
        let plan = HostPlan {
            names: names.unwrap(),
            ..plan(&[])
        };
        let cluster = ClusterInfo {
            pod_subnets: vec!["10.244.0.0/16".parse().unwrap()],
            service_subnets: vec![],
            namespaces: ["dev".to_owned(), "shop".to_owned()].into(),
            headless: [("store".to_owned(), "shop".to_owned())].into(),
            ..cluster()
        };
        assert_eq!(
            plan.network(&cluster).domains,
            [
                "corp.example",
                "db.example.com",
                "cluster.local",
                "svc",
                "244.10.in-addr.arpa",
                "shop",
                "store",
            ]
        );
    }

    #[test]
    fn routes_leave_out_what_is_protected_and_nothing_else() {
        let routes = plan(&["10.96.0.1"]).network(&cluster()).subnets;
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
    fn what_is_protected_elsewhere_changes_nothing() {
        assert_eq!(
            plan(&["192.0.2.1"]).network(&cluster()),
            plan(&[]).network(&cluster())
        );
    }
}
