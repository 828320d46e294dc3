//! Who answers for a name, and what comes back.

use std::net::IpAddr;
use std::time::Duration;

use futures::future::join_all;
use kvpn_proto::story::{Place, Step};
use kvpn_proto::v1::{Answerer, ExplainResponse};
use tokio::time::timeout;

use super::sessions::{Session, Sessions};

/// How long this host's resolver may take: twice what resolv.conf(5) allows a name
/// server.
const DEADLINE: Duration = Duration::from_secs(10);

const HOSTS: &str = "/etc/hosts";

/// Looks the name up as programs do; tells who answers, and returns its addresses.
pub(super) async fn resolve(name: &str, sessions: &Sessions, steps: &mut Vec<Step>) -> Vec<IpAddr> {
    let (explained, found) = tokio::join!(explain(name, sessions), look_up(name));
    let explained = choose(explained, found.as_deref().unwrap_or_default());
    let in_hosts = std::fs::read_to_string(HOSTS).is_ok_and(|text| names(&text, name));
    if in_hosts {
        steps.push(Step::on(
            Place::Resolver,
            format!("{name} stands in {HOSTS}, so nobody is asked."),
        ));
    } else {
        steps.push(match &explained {
            None if !sessions.is_empty() => Step::on(
                Place::Resolver,
                format!("Who is asked for {name} the connection does not say in time."),
            ),
            explained => resolver(name, explained.as_ref()),
        });
    }
    let explained = explained.as_ref().filter(|_| !in_hosts);
    let records = match &found {
        Ok(addresses) => Step::on(Place::Records, had(addresses, explained)),
        Err(error) => Step::stop(Place::Records, missing(error, explained)),
    };
    if steps.iter().all(|step| step.ok) {
        steps.push(records);
    }
    found.unwrap_or_default()
}

type Explained<'a> = (&'a Session, ExplainResponse);

/// What the sessions make of it, as far as they say.
async fn explain<'a>(name: &str, sessions: &'a Sessions) -> Vec<Explained<'a>> {
    let explain =
        |session: &'a Session| async move { Some((session, session.explain(name, &[]).await?)) };
    let explained = join_all(sessions.iter().map(explain)).await;
    explained.into_iter().flatten().collect()
}

/// The one whose cluster gave the addresses that were found, else the first whose
/// cluster has the name, else the first that would ask its cluster.
fn choose<T>(
    explained: Vec<(T, ExplainResponse)>,
    found: &[IpAddr],
) -> Option<(T, ExplainResponse)> {
    let gave = |record: &String| {
        let data = record.split_whitespace().next_back();
        let address = data.and_then(|data| data.parse().ok());
        address.is_some_and(|address| found.contains(&address))
    };
    // The last of equals is taken.
    explained.into_iter().rev().max_by_key(|(_, it)| {
        (
            it.records.iter().any(gave),
            !it.records.is_empty(),
            it.answerer() != Answerer::Host,
        )
    })
}

async fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let found = timeout(DEADLINE, tokio::net::lookup_host((name, 0))).await;
    let found = found
        .map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))?
        .map_err(|error| error.to_string())?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    Ok(addresses)
}

fn resolver(name: &str, explained: Option<&Explained<'_>>) -> Step {
    let Some((session, explained)) = explained else {
        return Step::on(
            Place::Resolver,
            format!("{name} is asked of this laptop's own name servers: it is not connected."),
        );
    };
    let because = &explained.because;
    match explained.answerer() {
        Answerer::Cluster => Step::on(
            Place::Resolver,
            format!(
                "{name} is asked of the cluster of context {} as {}, because {because}.",
                session.context(),
                explained.full_name
            ),
        ),
        Answerer::Host | Answerer::Unspecified => Step::on(
            Place::Resolver,
            format!("{name} is asked of this laptop's own name servers, because {because}."),
        ),
        Answerer::Nobody => Step::stop(
            Place::Resolver,
            format!("Nobody is asked for {name}, and there is no such name, because {because}."),
        ),
    }
}

fn had(addresses: &[IpAddr], explained: Option<&Explained<'_>>) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let records = explained.map(|(_, it)| it.records.as_slice());
    let aliases = records.unwrap_or_default().iter();
    let aliases: Vec<&str> = aliases
        .filter(|record| record.contains(" CNAME "))
        .map(String::as_str)
        .collect();
    match aliases[..] {
        [] => format!("It is {}.", addresses.join(" and ")),
        [..] => format!(
            "It is {}, by {}.",
            addresses.join(" and "),
            aliases.join(", ")
        ),
    }
}

fn missing(error: &str, explained: Option<&Explained<'_>>) -> String {
    let Some((_, explained)) = explained.filter(|(_, it)| it.answerer() == Answerer::Cluster)
    else {
        return format!("They have no address for it: {error}.");
    };
    if !explained.records.is_empty() {
        return format!(
            "The cluster answers {}, but programs on this laptop do not get that: {error}. See \
             whether /etc/resolv.conf or systemd-resolved still leads to kvpn: `kvpn doctor`.",
            explained.records.join(", ")
        );
    }
    match explained.code.as_str() {
        "NXDOMAIN" => format!(
            "The cluster has no {} (NXDOMAIN): see `kubectl get services --all-namespaces`.",
            explained.full_name
        ),
        "NOERROR" => "The cluster has the name, but no address for it (NODATA): a headless \
                      Service without ready pods has none."
            .into(),
        other => format!("The cluster does not answer: {other}. See `kvpn doctor`."),
    }
}

/// Tells whether hosts(5) has the name.
fn names(text: &str, name: &str) -> bool {
    let name = name.trim_end_matches('.');
    let line = |line: &str| {
        let entry = line.split('#').next().unwrap_or_default();
        let mut names = entry.split_whitespace().skip(1);
        names.any(|it| it.eq_ignore_ascii_case(name))
    };
    text.lines().any(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_file_is_read_without_its_comments() {
        let text = "127.0.0.1 localhost\n::1 ip6-localhost # web\n10.0.0.1\tdb db.example\n";
        for name in ["localhost", "DB.example", "db."] {
            assert!(names(text, name), "{name}");
        }
        for name in ["web", "10.0.0.1", "example"] {
            assert!(!names(text, name), "{name}");
        }
    }

    #[tokio::test]
    async fn own_name_is_found_without_asking_anybody() {
        let mut steps = Vec::new();
        let sessions = Sessions::find().await;
        let found = resolve("localhost", &sessions, &mut steps).await;
        assert!(found.iter().all(IpAddr::is_loopback) && !found.is_empty());
        assert!(steps.iter().all(|step| step.ok), "{steps:?}");
        assert!(steps[0].text.contains(HOSTS), "{steps:?}");
    }

    #[test]
    fn of_two_clusters_the_one_that_was_heard_is_told() {
        let of = |record: &str, answerer: Answerer| ExplainResponse {
            records: (!record.is_empty())
                .then(|| record.to_owned())
                .into_iter()
                .collect(),
            answerer: answerer.into(),
            ..ExplainResponse::default()
        };
        let all = || {
            vec![
                (0, of("", Answerer::Host)),
                (1, of("", Answerer::Cluster)),
                (2, of("web.svc.x A 10.96.0.1", Answerer::Cluster)),
                (3, of("web.svc.x A 10.96.0.2", Answerer::Cluster)),
            ]
        };
        let chosen = |mut all: Vec<_>, length, found: &str| {
            all.truncate(length);
            choose(all, &[found.parse().unwrap()]).map(|(which, _)| which)
        };
        assert_eq!(chosen(all(), 4, "10.96.0.2"), Some(3));
        assert_eq!(chosen(all(), 4, "192.0.2.1"), Some(2));
        assert_eq!(chosen(all(), 2, "192.0.2.1"), Some(1));
        assert_eq!(chosen(all(), 0, "192.0.2.1"), None);
    }

    #[test]
    fn without_a_connection_the_hosts_name_servers_are_asked() {
        let step = resolver("web.shop", None);
        assert!(
            step.ok && step.text.contains("it is not connected"),
            "{step:?}"
        );
        assert!(missing("no such name", None).contains("no such name"));
    }
}
