//! What a lease may not ask for.

use kvpn_proto::{Failure, Reason, v1};

/// The most search domains of a lease. Each costs a question for every name
/// that the host looks up.
const MAX_SEARCH_DOMAINS: usize = 16;

/// Refuses what would become another line of resolv.conf, or another word.
pub(super) fn domains(network: &v1::Network) -> Result<(), Failure> {
    let is_domain = |domain: &String| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        (1..=253).contains(&domain.len())
            && domain.chars().all(is_letter)
            && domain.split('.').all(|label| !label.is_empty())
    };
    let search = &network.search_domains;
    if search.len() > MAX_SEARCH_DOMAINS {
        return Err(Failure::new(
            Reason::Usage,
            format!(
                "{} search domains are more than {MAX_SEARCH_DOMAINS}",
                search.len()
            ),
            "name fewer",
        ));
    }
    match search
        .iter()
        .chain(&network.domains)
        .find(|domain| !is_domain(domain))
    {
        None => Ok(()),
        Some(domain) => Err(Failure::new(
            Reason::Usage,
            format!("{domain:?} is not a domain"),
            "use letters, digits, hyphens and dots only",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domain_cannot_smuggle_lines_or_words() {
        let check = |domain: &str| {
            domains(&v1::Network {
                domains: vec![domain.to_owned()],
                ..search(&[domain])
            })
        };
        assert!(check("shop.svc.cluster.local").is_ok());
        for domain in [
            "",
            ".",
            "a..b",
            "a b",
            "a\nnameserver 10.0.0.1",
            "a\tb",
            "a#b",
            &"a".repeat(254),
        ] {
            assert_eq!(
                check(domain).unwrap_err().reason,
                Reason::Usage,
                "{domain:?}"
            );
        }
    }

    #[test]
    fn search_domains_cannot_be_many() {
        let many = ["svc.x"; MAX_SEARCH_DOMAINS + 1];
        assert!(domains(&search(&many[1..])).is_ok());
        let failure = domains(&search(&many)).unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
    }

    fn search(domains: &[&str]) -> v1::Network {
        v1::Network {
            search_domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
            ..v1::Network::default()
        }
    }
}
