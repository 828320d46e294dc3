//! The settings of resolv.conf(5).

use std::net::IpAddr;

/// What a resolv.conf says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// In the order of the file.
    pub name_servers: Vec<IpAddr>,
    /// Search domains, without the dots at their ends.
    pub search: Vec<String>,
    /// Such as `ndots:5`.
    pub options: Vec<String>,
}

/// Reads the text of a resolv.conf. Lines that make no sense are skipped, as
/// the C library does; of several `search` or `domain` lines the last counts.
/// Link-local name servers (`fe80::1%eth0`) are skipped.
pub fn parse_resolv_conf(text: &str) -> ResolvConf {
    let mut conf = ResolvConf::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                conf.name_servers.extend(server);
            }
            Some("search") => conf.search = words.filter_map(domain).collect(),
            Some("domain") => conf.search = words.take(1).filter_map(domain).collect(),
            Some("options") => conf.options.extend(words.map(str::to_owned)),
            Some(_) | None => {}
        }
    }
    conf
}

fn domain(word: &str) -> Option<String> {
    let domain = word.trim_end_matches('.');
    (!domain.is_empty()).then(|| domain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_resolv_conf_is_read() {
        let conf = parse_resolv_conf(
            "search shop.svc.cluster.local svc.cluster.local cluster.local\n\
             nameserver 10.96.0.10\n\
             nameserver fd00:96::a\n\
             options ndots:5 edns0\n",
        );
        assert_eq!(
            conf,
            ResolvConf {
                name_servers: vec!["10.96.0.10".parse().unwrap(), "fd00:96::a".parse().unwrap()],
                search: vec![
                    "shop.svc.cluster.local".into(),
                    "svc.cluster.local".into(),
                    "cluster.local".into()
                ],
                options: vec!["ndots:5".into(), "edns0".into()],
            }
        );
    }

    #[test]
    fn comments_and_nonsense_are_skipped() {
        let conf = parse_resolv_conf(
            "# nameserver 1.1.1.1\n; search nowhere\nnameserver\nnameserver x\n\
             nameserver fe80::1%eth0\nsortlist 1.2.3.4\n\nnameserver\t9.9.9.9 trailing\n",
        );
        assert_eq!(
            conf.name_servers,
            vec!["9.9.9.9".parse::<IpAddr>().unwrap()]
        );
        assert!(conf.search.is_empty());
    }

    #[test]
    fn the_last_of_search_and_domain_counts() {
        let conf = parse_resolv_conf("search a.example b.example\ndomain c.example. x\n");
        assert_eq!(conf.search, vec!["c.example".to_owned()]);
        let conf = parse_resolv_conf("domain c.example\nsearch a.example . b.example\n");
        assert_eq!(
            conf.search,
            vec!["a.example".to_owned(), "b.example".to_owned()]
        );
    }
}
