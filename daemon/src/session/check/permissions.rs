//! Whether the user may do what the ClusterRole `kvpn-user` allows.

use futures::future::try_join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use kvpn_proto::check::Check;
use kvpn_proto::{Failure, Reason};

use crate::session::cluster::Cluster;

const READ: &[&str] = &["get", "list", "watch"];
const OWN: &[&str] = &["create", "get", "list", "watch", "delete"];

/// A rule of the role.
struct Rule {
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
}

/// What connecting needs, in the traffic manager's namespace. The ways to the
/// traffic manager are checked by themselves: one of them is enough.
const TO_CONNECT: &[Rule] = &[
    Rule {
        group: "kvpn.dev",
        resource: "sessions",
        verbs: OWN,
    },
    Rule {
        group: "",
        resource: "services",
        verbs: READ,
    },
];

/// What engaging workloads needs, in their namespace.
const TO_ENGAGE: &[Rule] = &[
    Rule {
        group: "kvpn.dev",
        resource: "engagements",
        verbs: OWN,
    },
    Rule {
        group: "",
        resource: "services",
        verbs: READ,
    },
    Rule {
        group: "",
        resource: "pods",
        verbs: READ,
    },
    Rule {
        group: "apps",
        resource: "deployments",
        verbs: READ,
    },
    Rule {
        group: "apps",
        resource: "statefulsets",
        verbs: READ,
    },
    Rule {
        group: "apps",
        resource: "daemonsets",
        verbs: READ,
    },
    Rule {
        group: "apps",
        resource: "replicasets",
        verbs: READ,
    },
    // Not Rollouts, which few clusters have; without them, the rest can be engaged.
    Rule {
        group: "batch",
        resource: "jobs",
        verbs: &["list"],
    },
];

/// Asks the API server for every right.
pub(super) async fn check(
    cluster: &Cluster,
    user: &str,
    manager_namespace: &str,
    namespace: &str,
) -> [Check; 2] {
    let (connect, engage) = tokio::join!(
        missing(cluster, manager_namespace, TO_CONNECT),
        missing(cluster, namespace, TO_ENGAGE)
    );
    // Whoever only wants to reach services need not intercept.
    [
        finding(connect, user, manager_namespace).check("Permission to connect"),
        finding(engage, user, namespace).check_wanted("Permission to intercept"),
    ]
}

/// What was found out about the rights in a namespace.
enum Outcome {
    Granted(String),
    Missing(Failure),
    Unknown(Failure),
}

impl Outcome {
    fn check(self, name: &str) -> Check {
        match self {
            Self::Granted(message) => Check::ok(name, message),
            Self::Missing(failure) | Self::Unknown(failure) => Check::failure(name, failure),
        }
    }

    /// As [`Self::check`], of rights that not everybody needs.
    fn check_wanted(self, name: &str) -> Check {
        match self {
            Self::Missing(failure) => Check::warning(name, failure.message, failure.next_step),
            Self::Granted(_) | Self::Unknown(_) => self.check(name),
        }
    }
}

fn finding(missing: Result<Vec<String>, Failure>, user: &str, namespace: &str) -> Outcome {
    match missing {
        Err(failure) => Outcome::Unknown(failure),
        Ok(missing) if missing.is_empty() => {
            Outcome::Granted(format!("{user} has all of it in namespace {namespace}"))
        }
        Ok(missing) => Outcome::Missing(Failure::new(
            Reason::Forbidden,
            format!(
                "{user} may not {} in namespace {namespace}",
                missing.join(", ")
            ),
            format!(
                "ask an administrator: `kubectl create rolebinding kvpn-{} \
                 --clusterrole=kvpn-user --user={user} -n {namespace}`",
                crate::session::identity::label(user)
            ),
        )),
    }
}

/// The rights that the user lacks, such as `create sessions.kvpn.dev`.
async fn missing(
    cluster: &Cluster,
    namespace: &str,
    rules: &[Rule],
) -> Result<Vec<String>, Failure> {
    let rights = rules
        .iter()
        .flat_map(|rule| rule.verbs.iter().map(move |verb| (rule, *verb)));
    let reviews = rights.map(|(rule, verb)| async move {
        let allowed = may(cluster, namespace, rule, verb).await?;
        Ok::<_, Failure>((!allowed).then(|| right(rule, verb)))
    });
    let missing = try_join_all(reviews).await?;
    Ok(missing.into_iter().flatten().collect())
}

fn right(rule: &Rule, verb: &str) -> String {
    let dot = if rule.group.is_empty() { "" } else { "." };
    format!("{verb} {}{dot}{}", rule.resource, rule.group)
}

async fn may(cluster: &Cluster, namespace: &str, rule: &Rule, verb: &str) -> Result<bool, Failure> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some(verb.to_owned()),
                group: Some(rule.group.to_owned()),
                resource: Some(rule.resource.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let answer = cluster
        .call(api.create(&PostParams::default(), &review))
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_are_named_with_the_command_that_gives_them() {
        let missing = TO_CONNECT.iter().map(|rule| right(rule, rule.verbs[0]));
        let outcome = finding(Ok(missing.collect()), "alice@example.com", "kvpn");
        let Outcome::Missing(failure) = outcome else {
            panic!("nothing is missing");
        };
        assert_eq!(
            failure.message,
            "alice@example.com may not create sessions.kvpn.dev, get services in namespace kvpn"
        );
        assert!(
            failure
                .next_step
                .contains("rolebinding kvpn-alice-example-com "),
            "{failure:?}"
        );
    }

    #[test]
    fn nothing_missing_is_well() {
        let outcome = finding(Ok(Vec::new()), "alice", "kvpn");
        assert!(matches!(outcome, Outcome::Granted(_)));
    }
}
