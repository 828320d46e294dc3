//! Engagements that are there before `kvpn up`.

use kvpn_proto::crd::WorkloadKind;
use kvpn_proto::v1::{EngagementStatus, InterceptRequest, StatusResponse};
use kvpn_proto::{Failure, Reason};

/// The engagement of a session that is just what is wanted.
pub(super) fn find<'a>(
    wanted: &InterceptRequest,
    session: &'a StatusResponse,
) -> Option<&'a EngagementStatus> {
    let mut same = session
        .engagements
        .iter()
        .filter(|status| is_of(wanted, session, status) && differences(wanted, status).is_empty())
        .filter(|status| status.active);
    same.next()
}

/// Refuses one that is there for a command that somebody runs, and ends with it.
pub(super) fn check_stays(status: &EngagementStatus) -> Result<(), Failure> {
    if !status.asked.as_ref().is_some_and(|it| it.ends_with_call) {
        return Ok(());
    }
    let workload = &status.workload;
    Err(Failure::new(
        Reason::AlreadyEngaged,
        format!("{workload} is engaged already, for as long as another command of kvpn runs"),
        format!("end that command, or run `kvpn leave {}`", status.name),
    ))
}

/// Adds to why a workload cannot be engaged what is there in its place.
pub(super) fn explain(
    mut failure: Failure,
    wanted: &InterceptRequest,
    before: Option<&StatusResponse>,
) -> Failure {
    let there = before.and_then(|session| {
        let mut engagements = session.engagements.iter();
        engagements.find(|it| is_of(wanted, session, it))
    });
    if let Some(status) = there.filter(|_| failure.reason == Reason::AlreadyEngaged) {
        let differences = differences(wanted, status);
        if !differences.is_empty() {
            let differences = differences.join(" and ");
            failure.message += &format!("; what differs is {differences}");
        }
    }
    failure
}

/// Whether an engagement is of the workload that is wanted.
fn is_of(wanted: &InterceptRequest, session: &StatusResponse, status: &EngagementStatus) -> bool {
    let namespace = match wanted.namespace.as_str() {
        "" => &session.namespace,
        namespace => namespace,
    };
    let name = |target: &str| target.rsplit('/').next().map(str::to_owned);
    // A Service's name may be another than its workload's.
    let asked = status.asked.as_ref();
    let is_asked = asked.is_some_and(|it| it.target == wanted.target);
    let kind = |target: &str| WorkloadKind::parse(target.split_once('/')?.0);
    let kinds = kind(&status.workload).zip(kind(&wanted.target));
    let is_kind = kinds.is_none_or(|(own, wanted)| own == wanted);
    let is_named = is_kind && name(&status.workload) == name(&wanted.target);
    status.namespace == namespace && (is_asked || is_named)
}

/// In what an engagement is not as it is wanted, in the words of the file.
fn differences(wanted: &InterceptRequest, status: &EngagementStatus) -> Vec<&'static str> {
    let Some(asked) = &status.asked else {
        return vec!["what a session of an older version does not tell"];
    };
    // The target and the time it may take decide nothing any more.
    let terminates_tls = wanted.tls.is_some() || !wanted.tls_secret.is_empty();
    let is_tls_same =
        wanted.tls_secret == asked.tls_secret && terminates_tls == status.terminates_tls;
    let mut mount = wanted.mount.iter().filter(|it| !it.is_optional);
    let is_mount_same = mount.all(|it| asked.mount.as_ref() == Some(it));
    let same = [
        ("the verb", wanted.verb == asked.verb),
        ("ports", wanted.ports == asked.ports),
        ("filter", wanted.http == asked.http),
        ("tls", is_tls_same),
        ("onFailure", wanted.fails_closed == asked.fails_closed),
        ("container", wanted.container == asked.container),
        ("toPod", wanted.to_pod == asked.to_pod),
        // More than is wanted is no harm.
        ("mount", is_mount_same),
        ("env", !wanted.environment || status.environment),
    ];
    let differing = same.into_iter().filter(|(_, is_same)| !is_same);
    differing.map(|(what, _)| what).collect()
}

#[cfg(test)]
mod tests {
    use kvpn_proto::v1::RequestedPort;

    use super::*;

    fn wanted() -> InterceptRequest {
        InterceptRequest {
            target: "deploy/web".into(),
            verb: "intercept".into(),
            ports: vec![RequestedPort {
                local: "127.0.0.1:8080".into(),
                remote: "http".into(),
            }],
            timeout_seconds: 60,
            ..InterceptRequest::default()
        }
    }

    fn session(asked: Option<InterceptRequest>) -> StatusResponse {
        let status = EngagementStatus {
            name: "web-x".into(),
            namespace: "shop".into(),
            workload: "Deployment/web".into(),
            active: true,
            environment: asked.as_ref().is_some_and(|it| it.environment),
            asked,
            ..EngagementStatus::default()
        };
        StatusResponse {
            namespace: "shop".into(),
            engagements: vec![status],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn what_is_there_just_so_is_found() {
        let asked = InterceptRequest {
            namespace: "shop".into(),
            target: "web".into(),
            timeout_seconds: 5,
            environment: true,
            ..wanted()
        };
        let mut session = session(Some(asked));
        assert!(find(&wanted(), &session).is_some());
        let elsewhere = InterceptRequest {
            namespace: "bank".into(),
            ..wanted()
        };
        assert!(find(&elsewhere, &session).is_none());
        let of_another_kind = InterceptRequest {
            target: "sts/web".into(),
            ..wanted()
        };
        assert!(find(&of_another_kind, &session).is_none());
        session.engagements[0].active = false;
        assert!(find(&wanted(), &session).is_none(), "it may never come");
    }

    #[test]
    fn what_is_there_otherwise_is_told() {
        let asked = InterceptRequest {
            ports: Vec::new(),
            container: "app".into(),
            ..wanted()
        };
        let session = session(Some(asked));
        let wanted = InterceptRequest {
            environment: true,
            ..wanted()
        };
        assert!(find(&wanted, &session).is_none());
        let taken = Failure::new(Reason::AlreadyEngaged, "it is taken", "leave it");
        assert_eq!(
            explain(taken, &wanted, Some(&session)).message,
            "it is taken; what differs is ports and container and env"
        );
    }

    #[test]
    fn one_that_ends_with_a_command_is_not_for_others() {
        let asked = InterceptRequest {
            ends_with_call: true,
            ..wanted()
        };
        let session = session(Some(asked));
        let found = find(&wanted(), &session).unwrap();
        let refused = check_stays(found).unwrap_err();
        assert_eq!(refused.reason, Reason::AlreadyEngaged);
    }

    #[test]
    fn older_sessions_tell_too_little() {
        assert!(find(&wanted(), &session(None)).is_none());
    }
}
