//! Who answers for a name, why, and what the answer is: for people.

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use kvpn_proto::v1::{Answerer, ExplainResponse};

use super::names::{Because, Route, explain};
use super::rewrite;
use super::rules::NameRules;
use crate::session::cluster_info::ClusterInfo;
use crate::session::manager::Manager;
use crate::session::vnat::Vnat;

/// Codes of answers (RFC 8499 section 3).
const NO_ERROR: &str = "NOERROR";
const NO_SUCH_NAME: &str = "NXDOMAIN";

/// Explains names, by what the name server goes by.
pub(crate) struct Explainer {
    pub(crate) manager: Manager,
    pub(crate) rules: NameRules,
    pub(crate) vnat: Vnat,
}

impl Explainer {
    /// Explains a name as a program asks for it; of the names that the search domains
    /// make of it, the first that has an answer.
    pub(crate) async fn explain(&self, asked: &str, search_domains: &[String]) -> ExplainResponse {
        let cluster = self.manager.cluster().borrow().clone();
        let mut first = None;
        for (name, domain) in candidates(asked, search_domains) {
            let mut explained = self.explain_full(&name, &cluster).await;
            if let Some(domain) = domain {
                explained.because += &format!("; the search domain {domain} completes it");
            }
            // Who has no answer to one name has none to the others.
            let is_known = [NO_SUCH_NAME, NO_ERROR, ""].contains(&explained.code.as_str());
            if !explained.records.is_empty() || !is_known {
                return explained;
            }
            first.get_or_insert(explained);
        }
        first.unwrap_or_default()
    }

    async fn explain_full(&self, asked: &Name, cluster: &ClusterInfo) -> ExplainResponse {
        let own = self.rules.own(asked);
        let is_own = own.is_some();
        let alias = own.or_else(|| self.rules.alias(asked).cloned());
        let name = alias.as_ref().unwrap_or(asked);
        let (route, because) = explain(name, cluster, &self.rules);
        let mut because = text(&because);
        if alias.is_some() {
            because = format!("it stands for {} (--name or --dns-mapping)", bare(name));
        }
        let (answerer, in_cluster) = match route {
            Route::Cluster => (Answerer::Cluster, vec![name.clone()]),
            Route::Completed(names) => (Answerer::Cluster, names),
            Route::Upstream if !is_own => (Answerer::Host, Vec::new()),
            Route::Upstream | Route::Nowhere => (Answerer::Nobody, Vec::new()),
        };
        let mut explained = ExplainResponse {
            answerer: answerer.into(),
            because,
            ..ExplainResponse::default()
        };
        for full in in_cluster {
            self.ask_both(&full, &mut explained).await;
            if explained.code != NO_SUCH_NAME {
                break;
            }
        }
        explained
    }

    /// Adds what the cluster says of a name.
    async fn ask_both(&self, full: &Name, explained: &mut ExplainResponse) {
        explained.full_name = bare(full);
        let (v4, v6) = tokio::join!(
            self.ask(full, RecordType::A),
            self.ask(full, RecordType::AAAA)
        );
        for answer in [v4, v6] {
            match answer {
                Ok((code, records)) => {
                    // Both say the same of whether the name is there.
                    explained.code = code;
                    for record in records {
                        if !explained.records.contains(&record) {
                            explained.records.push(record);
                        }
                    }
                }
                Err(error) => explained.code = error,
            }
        }
    }

    /// The code and the records of the cluster's answer.
    async fn ask(
        &self,
        name: &Name,
        record_type: RecordType,
    ) -> Result<(String, Vec<String>), String> {
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name.clone(), record_type));
        let question = question.to_vec().map_err(|error| error.to_string())?;
        let answer = self.manager.lookup(question).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let mut answer = Message::from_vec(&answer).map_err(|error| error.to_string())?;
        rewrite::addresses(&mut answer, |address| self.vnat.shown(address));
        let records = answer.answers.iter();
        let records = records
            .map(|it| format!("{} {} {}", bare(&it.name), it.record_type(), it.data))
            .collect();
        Ok((code(answer.metadata.response_code), records))
    }
}

/// What a resolver asks for in turn, each with the search domain that made it
/// (resolv.conf(5), with `ndots:1`).
fn candidates(asked: &str, search_domains: &[String]) -> Vec<(Name, Option<String>)> {
    let absolute = |text: &str| {
        let mut name = Name::from_ascii(text).ok()?;
        name.set_fqdn(true);
        Some(name)
    };
    let as_it_is = absolute(asked).map(|name| (name, None));
    if asked.ends_with('.') {
        return as_it_is.into_iter().collect();
    }
    let completed = search_domains.iter().filter_map(|domain| {
        let name = absolute(&format!("{asked}.{domain}"))?;
        Some((name, Some(domain.clone())))
    });
    if asked.contains('.') {
        as_it_is.into_iter().chain(completed).collect()
    } else {
        completed.chain(as_it_is).collect()
    }
}

fn text(because: &Because) -> String {
    match because {
        Because::Domain(domain) => format!("it lies under the cluster's domain {domain}"),
        Because::Namespace(namespace) => format!("{namespace} is one of its namespaces"),
        Because::Headless(service) => {
            format!("{service} is a headless Service of the session's namespace")
        }
        Because::Reverse(address) => format!("{address} is an address of the cluster"),
        Because::Rule(suffix) => format!("of the rule for {}", bare(suffix)),
        Because::Discovery => "by such names programs look for their own network's services".into(),
        Because::Foreign => "nothing says that it is the cluster's".into(),
        Because::NoDomain => "the cluster's domain is not known".into(),
    }
}

/// As RFC 8499 names them.
fn code(code: ResponseCode) -> String {
    const COMMON: [(ResponseCode, &str); 4] = [
        (ResponseCode::NoError, NO_ERROR),
        (ResponseCode::NXDomain, NO_SUCH_NAME),
        (ResponseCode::ServFail, "SERVFAIL"),
        (ResponseCode::Refused, "REFUSED"),
    ];
    let found = COMMON.iter().find(|(common, _)| *common == code);
    found.map_or(code.to_str(), |(_, name)| name).to_owned()
}

fn bare(name: &Name) -> String {
    name.to_string().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(asked: &str) -> Vec<String> {
        let search = ["shop.svc.x".to_owned(), "x".to_owned()];
        let names = candidates(asked, &search).into_iter();
        names.map(|(name, _)| bare(&name)).collect()
    }

    #[test]
    fn names_are_completed_as_resolvers_do() {
        assert_eq!(names("web"), ["web.shop.svc.x", "web.x", "web"]);
        assert_eq!(
            names("web.shop"),
            ["web.shop", "web.shop.shop.svc.x", "web.shop.x"]
        );
        assert_eq!(names("web."), ["web"]);
        assert_eq!(names("a..b"), [] as [&str; 0]);
    }

    #[tokio::test]
    async fn answerer_is_told_with_the_reason() {
        let cluster = ClusterInfo {
            domain: "cluster.local".into(),
            namespaces: ["shop".to_owned()].into(),
            ..ClusterInfo::default()
        };
        let explainer = Explainer {
            manager: Manager::down(cluster),
            rules: NameRules::default().of_connection("staging", "shop"),
            vnat: Vnat::default(),
        };
        for (asked, answerer, because, full) in [
            (
                "web.shop",
                Answerer::Cluster,
                "shop is one of its namespaces",
                "web.shop.svc.cluster.local",
            ),
            (
                "web.staging.kvpn",
                Answerer::Cluster,
                "it stands for web.shop",
                "web.shop.svc.cluster.local",
            ),
            (
                "web.typo.staging.kvpn",
                Answerer::Nobody,
                "it stands for",
                "",
            ),
            ("example.com", Answerer::Host, "nothing says", ""),
            ("wpad.shop", Answerer::Nobody, "by such names", ""),
        ] {
            let explained = explainer.explain(asked, &[]).await;
            assert_eq!(explained.answerer(), answerer, "{asked}");
            assert!(explained.because.starts_with(because), "{explained:?}");
            assert_eq!(explained.full_name, full);
        }
    }
}
