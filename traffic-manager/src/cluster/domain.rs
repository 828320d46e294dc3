//! The cluster's DNS domain.

/// The domain when nothing says another.
const DEFAULT: &str = "cluster.local";

/// Finds the cluster's domain in the search list that the kubelet gives a pod:
/// `<namespace>.svc.<domain>` comes first in it.
/// <https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/>
pub(crate) fn cluster_domain(search: &[String], namespace: &str) -> String {
    let own = format!("{namespace}.svc.");
    search
        .iter()
        .find_map(|domain| domain.strip_prefix(&own))
        .or_else(|| search.iter().find_map(|domain| domain.strip_prefix("svc.")))
        .map(|domain| domain.trim_matches('.').to_ascii_lowercase())
        .filter(|domain| !domain.is_empty())
        .unwrap_or_else(|| DEFAULT.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(search: &[&str]) -> String {
        let search: Vec<String> = search.iter().map(|domain| (*domain).to_owned()).collect();
        cluster_domain(&search, "kvpn")
    }

    #[test]
    fn the_domain_follows_the_namespace_in_the_search_list() {
        let search = [
            "kvpn.svc.k8s.example.com",
            "svc.k8s.example.com",
            "example.com",
        ];
        assert_eq!(domain(&search), "k8s.example.com");
        assert_eq!(domain(&["kvpn.svc.Cluster.Local."]), "cluster.local");
    }

    #[test]
    fn other_search_domains_are_not_taken_for_it() {
        assert_eq!(domain(&[]), "cluster.local");
        assert_eq!(
            domain(&["example.com", "other.svc.example.com"]),
            "cluster.local"
        );
    }
}
