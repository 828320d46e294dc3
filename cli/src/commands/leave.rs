//! `kvpn leave`: ends intercepts.

use std::process::ExitCode;

use clap::Args;
use kvpn_proto::v1::{EngagementStatus, LeaveRequest};
use kvpn_proto::{Failure, Reason};

use crate::args::Flags;
use crate::ended::Ended;
use crate::output::{self, Engagement, Left};
use crate::progress::Progress;
use crate::session::Session;

/// End an intercept
///
/// The workload's pods then answer all new connections again.
#[derive(Args, Debug)]
pub(crate) struct LeaveArgs {
    /// Workload (NAME or KIND/NAME) or engagement [default: the only one]
    #[arg(value_name = "NAME")]
    pub(crate) target: Option<String>,
    /// End all intercepts of this connection (of one namespace with -n)
    #[arg(long, conflicts_with = "target")]
    pub(crate) all: bool,
}

pub(crate) async fn run(flags: &Flags, args: &LeaveArgs) -> Result<ExitCode, Ended> {
    let ended = leave(flags, args).await?;
    let left = Left {
        ended: ended.into_iter().map(Engagement::from).collect(),
    };
    output::print(&left, flags.output)?;
    Ok(ExitCode::SUCCESS)
}

async fn leave(flags: &Flags, args: &LeaveArgs) -> Result<Vec<EngagementStatus>, Failure> {
    let _progress = Progress::start("ending");
    let session = Session::require(flags).await?;
    let requests = match (&args.target, args.all, &flags.namespace) {
        (Some(target), _, _) => vec![LeaveRequest {
            namespace: flags.request_namespace(),
            target: target.clone(),
            all: false,
        }],
        (None, true, None) => vec![LeaveRequest {
            all: true,
            ..LeaveRequest::default()
        }],
        (None, all, namespace) => {
            let engagements = session.status().await?.engagements;
            select(engagements, namespace.as_deref(), all)?
        }
    };
    let mut ended = Vec::new();
    for request in requests {
        ended.extend(session.leave(request).await?.ended);
    }
    Ok(ended)
}

/// Chooses which engagements of a namespace (or any) to end: all, or the only
/// one.
fn select(
    mut engagements: Vec<EngagementStatus>,
    namespace: Option<&str>,
    all: bool,
) -> Result<Vec<LeaveRequest>, Failure> {
    engagements.retain(|it| namespace.is_none_or(|namespace| it.namespace == namespace));
    if !all && engagements.len() != 1 {
        return Err(not_one(&engagements));
    }
    Ok(engagements
        .into_iter()
        .map(|engagement| LeaveRequest {
            namespace: engagement.namespace,
            target: engagement.name,
            all: false,
        })
        .collect())
}

fn not_one(engagements: &[EngagementStatus]) -> Failure {
    if engagements.is_empty() {
        return Failure::new(
            Reason::NoSuchEngagement,
            "there is no intercept to leave",
            "run `kvpn status` to see what is intercepted",
        );
    }
    let names: Vec<_> = engagements.iter().map(|it| it.workload.as_str()).collect();
    Failure::new(
        Reason::Usage,
        format!("there are {} intercepts", engagements.len()),
        format!("name one of {}, or give --all", names.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engagement(namespace: &str, name: &str) -> EngagementStatus {
        EngagementStatus {
            namespace: namespace.into(),
            name: format!("{name}-x"),
            workload: format!("Deployment/{name}"),
            ..EngagementStatus::default()
        }
    }

    fn targets(requests: Vec<LeaveRequest>) -> Vec<(String, String)> {
        requests
            .into_iter()
            .map(|request| (request.namespace, request.target))
            .collect()
    }

    #[test]
    fn the_only_engagement_needs_no_name() {
        let one = vec![engagement("shop", "web")];
        let selected = targets(select(one, None, false).unwrap());
        assert_eq!(selected, [("shop".into(), "web-x".into())]);
    }

    #[test]
    fn one_of_several_must_be_named() {
        let several = vec![engagement("shop", "web"), engagement("bank", "api")];
        let failure = select(several.clone(), None, false).unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
        assert!(failure.next_step.contains("Deployment/web, Deployment/api"));
        let selected = targets(select(several, Some("bank"), false).unwrap());
        assert_eq!(selected, [("bank".into(), "api-x".into())]);
    }

    #[test]
    fn none_is_an_error_unless_all_are_meant() {
        let failure = select(Vec::new(), None, false).unwrap_err();
        assert_eq!(failure.reason, Reason::NoSuchEngagement);
        assert_eq!(select(Vec::new(), Some("shop"), true), Ok(Vec::new()));
    }
}
