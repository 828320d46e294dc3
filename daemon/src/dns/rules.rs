//! What the user wants of names: which suffixes the cluster answers for, and which
//! names are another's.

use std::collections::BTreeMap;

use hickory_proto::rr::{LowerName, Name};
use kvpn_proto::names::CONNECTIONS_DOMAIN;
use kvpn_proto::{Failure, Reason};

/// The user's wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NameRules {
    /// Suffixes whose names the cluster answers for.
    include: Vec<Name>,
    /// Suffixes whose names the host's own name servers answer for.
    exclude: Vec<Name>,
    /// Names of the user's, and whose answers they get.
    aliases: BTreeMap<LowerName, Name>,
    connection: Option<Connection>,
}

/// The connection's own domain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Connection {
    domain: Name,
    /// That of the session, in which names of one label are looked up.
    namespace: Name,
}

/// A suffix that a name lies under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suffix {
    pub(crate) labels: u8,
    pub(crate) is_included: bool,
}

impl NameRules {
    /// Reads suffixes, and mappings as `NAME=TARGET`. A target of one label is a
    /// Service of the namespace.
    pub(crate) fn new(
        include: &[String],
        exclude: &[String],
        mappings: &[String],
        namespace: &str,
    ) -> Result<Self, Failure> {
        let include = suffixes(include)?;
        let exclude = suffixes(exclude)?;
        if let Some(both) = include.iter().find(|suffix| exclude.contains(suffix)) {
            return Err(usage(
                format!("names under {both} are included and excluded"),
                "name each suffix in one of --dns-include and --dns-exclude",
            ));
        }
        let mut aliases = BTreeMap::new();
        for mapping in mappings {
            let (alias, target) = alias(mapping, namespace)?;
            if aliases.insert(alias, target).is_some() {
                return Err(usage(
                    format!("--dns-mapping {mapping} maps a name a second time"),
                    "map each name once",
                ));
            }
        }
        Ok(Self {
            include,
            exclude,
            aliases,
            connection: None,
        })
    }

    /// Names under the connection's own domain get the answers that its cluster has
    /// for them without it, in a session of this namespace.
    pub(crate) fn of_connection(self, connection: &str, namespace: &str) -> Self {
        let domain = absolute(&format!("{connection}.{CONNECTIONS_DOMAIN}"));
        let connection = match (domain, absolute(namespace)) {
            (Ok(domain), Ok(namespace)) => Some(Connection { domain, namespace }),
            (Err(()), _) | (_, Err(())) => None,
        };
        Self { connection, ..self }
    }

    /// Whose answers a name gets, if another's.
    pub(crate) fn alias(&self, name: &Name) -> Option<&Name> {
        if self.aliases.is_empty() {
            return None;
        }
        self.aliases.get(&LowerName::new(name))
    }

    /// What a name under the connection's own domain is in its cluster.
    pub(crate) fn own(&self, name: &Name) -> Option<Name> {
        self.connection.as_ref()?.service(name)
    }

    /// The longest of the suffixes that a name lies under.
    pub(crate) fn suffix(&self, name: &Name) -> Option<Suffix> {
        let of = |suffixes: &[Name], is_included| {
            let fitting = suffixes.iter().filter(|suffix| suffix.zone_of(name));
            let labels = fitting.map(Name::num_labels).max()?;
            Some(Suffix {
                labels,
                is_included,
            })
        };
        let (included, excluded) = (of(&self.include, true), of(&self.exclude, false));
        included
            .into_iter()
            .chain(excluded)
            .max_by_key(|suffix| suffix.labels)
    }

    /// Suffixes and names whose questions must reach kvpn's name server.
    pub(crate) fn domains(&self) -> impl Iterator<Item = String> {
        let aliases = self.aliases.keys().map(|alias| Name::from(alias.clone()));
        let own = self.connection.iter().map(|it| it.domain.clone());
        let include = self.include.iter().cloned();
        include.chain(aliases).chain(own).map(text)
    }

    /// Tells whether all names under a domain are the host's own.
    pub(crate) fn excludes(&self, domain: &str) -> bool {
        let Ok(name) = absolute(domain) else {
            return false;
        };
        self.suffix(&name).is_some_and(|suffix| !suffix.is_included)
    }
}

impl Connection {
    /// The Service's name of which `name` is the one under this connection's domain:
    /// `SERVICE`, `SERVICE.NAMESPACE` or more.
    fn service(&self, name: &Name) -> Option<Name> {
        let labels = name.num_labels().checked_sub(self.domain.num_labels())?;
        if labels == 0 || !self.domain.zone_of(name) {
            return None;
        }
        let mut service = Name::from_labels(name.iter().take(labels.into())).ok()?;
        service.set_fqdn(labels > 1);
        if labels == 1 {
            service = service.append_domain(&self.namespace).ok()?;
        }
        Some(service)
    }
}

fn suffixes(texts: &[String]) -> Result<Vec<Name>, Failure> {
    let suffix = |text: &String| {
        absolute(text.trim_start_matches("*.")).map_err(|()| not_a_name(text, "a suffix"))
    };
    texts.iter().map(suffix).collect()
}

fn alias(mapping: &str, namespace: &str) -> Result<(LowerName, Name), Failure> {
    let Some((alias, target)) = mapping.split_once('=') else {
        return Err(usage(
            format!("--dns-mapping {mapping} has no `=`"),
            "write it as NAME=TARGET, such as db.example.com=postgres.shop",
        ));
    };
    let alias = absolute(alias).map_err(|()| not_a_name(alias, "a name"))?;
    let mut name = absolute(target).map_err(|()| not_a_name(target, "a name"))?;
    if name.num_labels() == 1 {
        let full = format!("{}.{namespace}", target.trim_end_matches('.'));
        name = absolute(&full).map_err(|()| not_a_name(&full, "a name"))?;
    }
    Ok((LowerName::new(&alias), name))
}

/// Reads a name, with or without the dot at its end.
fn absolute(text: &str) -> Result<Name, ()> {
    let text = text.trim_matches('.');
    if text.is_empty() || text.contains('*') {
        return Err(());
    }
    let mut name = Name::from_ascii(text).map_err(|_| ())?.to_lowercase();
    name.set_fqdn(true);
    Ok(name)
}

/// Without the dot at its end.
fn text(mut name: Name) -> String {
    name.set_fqdn(false);
    name.to_string()
}

fn not_a_name(text: &str, what: &str) -> Failure {
    usage(
        format!("`{text}` is not {what} of DNS"),
        "write it as letters, digits, hyphens and dots, such as internal.example.com",
    )
}

fn usage(message: String, next_step: &str) -> Failure {
    Failure::new(Reason::Usage, message, next_step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(include: &[&str], exclude: &[&str], mappings: &[&str]) -> Result<NameRules, Failure> {
        let owned = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        NameRules::new(&owned(include), &owned(exclude), &owned(mappings), "shop")
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn the_longest_suffix_wins() {
        let rules = rules(
            &["corp.example", "deep.lab.corp.example"],
            &[".lab.corp.example."],
            &[],
        )
        .unwrap();
        let suffix = |text| rules.suffix(&name(text));
        let found = |labels, is_included| {
            Some(Suffix {
                labels,
                is_included,
            })
        };
        assert_eq!(suffix("a.corp.example."), found(2, true));
        assert_eq!(suffix("corp.example."), found(2, true));
        assert_eq!(suffix("A.LAB.corp.example."), found(3, false));
        assert_eq!(suffix("a.deep.lab.corp.example."), found(4, true));
        assert_eq!(suffix("notcorp.example."), None);
        assert!(rules.excludes("lab.corp.example"));
        assert!(!rules.excludes("corp.example"));
    }

    #[test]
    fn aliases_lead_to_services_of_the_namespace_or_to_full_names() {
        let rules = rules(&[], &[], &["db.example.com=postgres", "x=web.other"]).unwrap();
        assert_eq!(
            rules.alias(&name("DB.example.com.")),
            Some(&name("postgres.shop."))
        );
        assert_eq!(rules.alias(&name("x.")), Some(&name("web.other.")));
        assert_eq!(rules.alias(&name("y.")), None);
        let mut domains: Vec<String> = rules.domains().collect();
        domains.sort();
        assert_eq!(domains, ["db.example.com", "x"]);
    }

    #[test]
    fn names_under_the_connections_domain_are_those_of_its_cluster() {
        let rules = NameRules::default().of_connection("staging", "shop");
        for (asked, meant) in [
            ("web.staging.kvpn.", Some("web.shop.")),
            ("web.bank.Staging.KVPN.", Some("web.bank.")),
            ("db-0.db.bank.svc.staging.kvpn.", Some("db-0.db.bank.svc.")),
            ("staging.kvpn.", None),
            ("web.other.kvpn.", None),
            ("kvpn.", None),
        ] {
            assert_eq!(rules.own(&name(asked)), meant.map(name), "{asked}");
        }
        assert_eq!(rules.domains().collect::<Vec<_>>(), ["staging.kvpn"]);
    }

    #[test]
    fn nonsense_is_refused_with_a_way_out() {
        for (include, exclude, mappings) in [
            (&["a..b"][..], &[][..], &[][..]),
            (&[""], &[], &[]),
            (&["a.*.b"], &[], &[]),
            (&["a.b"], &["A.b."], &[]),
            (&[], &[], &["a"]),
            (&[], &[], &["a="]),
            (&[], &[], &["a=b", "A=c"]),
        ] {
            let failure = rules(include, exclude, mappings).unwrap_err();
            assert_eq!(failure.reason, Reason::Usage, "{include:?} {mappings:?}");
            assert!(!failure.next_step.is_empty());
        }
    }
}
