//! What the verbs have in common: a workload is engaged, and a command may run meanwhile.

mod environment;
mod mount;

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use kvpn_proto::v1::intercept_response::Event;
use kvpn_proto::v1::{EngagementStatus, InterceptRequest, InterceptResponse, LeaveRequest};
use kvpn_proto::{Failure, Reason};
use tokio::time::{Instant, timeout_at};
use tonic::Streaming;

pub(crate) use environment::{ENVIRONMENT, EnvironmentArgs, ExcludeArgs, fetch, own_variables};
pub(crate) use mount::{MountArgs, root};

use crate::args::Flags;
use crate::child::watched;
use crate::ended::Ended;
use crate::environment::pairs;
use crate::interrupts::Interrupts;
use crate::output::{self, Engagement, Format, Intercepted, Output};
use crate::progress::Progress;
use crate::session::Session;
use crate::{child, report};

/// How much longer than the session to wait; its own failure says more.
const GRACE: Duration = Duration::from_secs(10);

/// Engages a workload, unless the user interrupts it, and runs a command meanwhile if there
/// is one.
pub(super) async fn engage(
    flags: &Flags,
    environment: &EnvironmentArgs,
    request: InterceptRequest,
) -> Result<ExitCode, Ended> {
    environment.check()?;
    let mut interrupts = Interrupts::listen()?;
    let request = InterceptRequest {
        // Whatever becomes of this process.
        ends_with_call: !environment.command.is_empty(),
        ..with_files(environment, request)?
    };
    let Engaged {
        session,
        status,
        warnings,
        mut events,
    } = tokio::select! {
        outcome = start(flags, request) => outcome?,
        // Dropping the call cancels the intercept.
        signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
    };
    if !environment.is_wanted() {
        output::print(&intercepted(status, warnings), flags.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let left = leave_request(&status);
    let used = use_environment(
        flags,
        environment,
        &session,
        intercepted(status.clone(), warnings),
        &status,
        &mut events,
        &mut interrupts,
    );
    let outcome = used.await;
    // Without what was asked for, it is of no use.
    if (outcome.is_err() || !environment.command.is_empty())
        && let Err(failure) = leave(&session, left).await
    {
        match outcome {
            Ok(0) => return Err(failure.into()),
            // What went wrong before comes first.
            Ok(_) | Err(_) => report::failure(&failure, flags.output),
        }
    }
    Ok(ExitCode::from(outcome?))
}

/// The same with the files that are wanted, such as for a command.
pub(super) fn with_files(
    environment: &EnvironmentArgs,
    request: InterceptRequest,
) -> Result<InterceptRequest, Failure> {
    let mount = environment.mount.wanted(!environment.command.is_empty())?;
    Ok(InterceptRequest { mount, ..request })
}

/// Writes the files, and runs the command if there is one; gives its exit code.
async fn use_environment(
    flags: &Flags,
    args: &EnvironmentArgs,
    session: &Session,
    mut intercepted: Intercepted,
    status: &EngagementStatus,
    events: &mut Events,
    interrupts: &mut Interrupts,
) -> Result<u8, Ended> {
    let mut watch = args.watch()?;
    let (variables, mut warnings) = tokio::select! {
        fetched = fetch(session, status, &args.exclude) => fetched?,
        signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
    };
    warnings.extend(args.write_files(&variables)?);
    for warning in warnings {
        // A document has them in it, but for one that a command's output takes the place of.
        if flags.output == Format::Text || !args.command.is_empty() {
            report::warning(&warning);
        }
        intercepted.warnings.push(warning);
    }
    let Some((program, arguments)) = args.command.split_first() else {
        output::print(&intercepted, flags.output)?;
        return Ok(0);
    };
    // Standard output is the command's alone.
    if flags.output == Format::Text {
        report::note(intercepted.text().trim_end());
    }
    let own = own_variables(status);
    let variables = pairs(variables).chain(root(status)).chain(own);
    let running = async {
        match &mut watch {
            Some(watch) => watched::run(program, arguments, variables, watch, interrupts).await,
            None => child::run(program, arguments, variables, interrupts).await,
        }
    };
    let mut running = pin!(running);
    tokio::select! {
        ended = &mut running => return ended,
        () = tell_end(session, events) => {}
    }
    running.await
}

/// Waits until an engagement is over, and tells the user where somebody else has ended it.
async fn tell_end(session: &Session, events: &mut Events) {
    loop {
        match events.message().await {
            // Of a later version.
            Ok(Some(_)) => {}
            // By `kvpn leave`, or the session is of an older version.
            Ok(None) => return,
            // Or the session has broken off.
            Err(status) => return report::warning(&session.failure(status).message),
        }
    }
}

pub(super) fn leave_request(status: &EngagementStatus) -> LeaveRequest {
    LeaveRequest {
        namespace: status.namespace.clone(),
        target: status.name.clone(),
        all: false,
    }
}

/// Ends an engagement, which somebody may have ended before, with its session or without.
pub(super) async fn leave(session: &Session, request: LeaveRequest) -> Result<(), Failure> {
    match session.leave(request).await {
        Ok(_) => Ok(()),
        Err(failure) if failure.reason == Reason::NoSuchEngagement => Ok(()),
        // Such as by `kvpn quit` of the command.
        Err(_) if session.is_gone().await => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// How an engagement goes on.
pub(super) type Events = Streaming<InterceptResponse>;

/// A workload that is engaged.
pub(super) struct Engaged {
    pub(super) session: Session,
    pub(super) status: EngagementStatus,
    pub(super) warnings: Vec<String>,
    /// Dropping it ends an engagement that ends with its call.
    pub(super) events: Events,
}

/// Has a workload engaged. Dropping it before the end cancels that.
pub(super) async fn start(flags: &Flags, request: InterceptRequest) -> Result<Engaged, Failure> {
    let (doing, target) = (output::doing(&request.verb), request.target.clone());
    let progress = Progress::start(format!("{doing} {target}"));
    let session = Session::require(flags).await?;
    let limit = Duration::from_secs(request.timeout_seconds.into());
    let patience = limit + GRACE;
    let deadline = Instant::now() + patience;
    let wanted = request.clone();
    let mut events = session.intercept(request, patience).await?;
    let mut warnings = Vec::new();
    loop {
        let response = timeout_at(deadline, events.message())
            .await
            .map_err(|_| late(&target, limit))?
            .map_err(|status| session.failure(status))?;
        match response.map(|response| response.event) {
            Some(Some(Event::Progress(message))) => progress.step(message),
            Some(Some(Event::Warning(message))) => {
                // A document has them in it.
                if flags.output == Format::Text {
                    progress.warning(&message);
                }
                warnings.push(message);
            }
            Some(Some(Event::Active(status))) => {
                if let Some(flag) = not_understood(&wanted, &status) {
                    return Err(unknown(&session, status, flag).await);
                }
                return Ok(Engaged {
                    session,
                    status,
                    warnings,
                    events,
                });
            }
            // An event of a later version.
            Some(None) => {}
            None => {
                return Err(Failure::internal(
                    "the session did not say how the intercept ended",
                ));
            }
        }
    }
}

/// The flag that a session of an older version has passed over.
fn not_understood(wanted: &InterceptRequest, got: &EngagementStatus) -> Option<&'static str> {
    let terminates_tls = wanted.tls.is_some() || !wanted.tls_secret.is_empty();
    if wanted.fails_closed && !got.fails_closed {
        Some("--on-failure")
    } else if terminates_tls && !got.terminates_tls {
        Some("--tls-cert and --tls-secret")
    } else if wanted.to_pod != got.to_pod {
        Some("--to-pod")
    } else if !wanted.container.is_empty() && wanted.container != got.container {
        Some("--container")
    } else if wanted.environment && !got.environment {
        Some("--env-file and commands after `--`")
    } else if wanted.mount.as_ref().is_some_and(|it| !it.is_optional) && got.mounted_at.is_empty() {
        Some("--mount and --root-fs")
    } else {
        None
    }
}

/// Leaves what a session of an older version has engaged, without what a flag is for.
async fn unknown(session: &Session, status: EngagementStatus, flag: &str) -> Failure {
    let left = session.leave(leave_request(&status));
    left.await.err().unwrap_or_else(|| {
        Failure::new(
            Reason::VersionMismatch,
            format!("the running session does not know {flag}"),
            "run `kvpn quit`, then `kvpn connect`",
        )
    })
}

fn intercepted(status: EngagementStatus, warnings: Vec<String>) -> Intercepted {
    Intercepted {
        engagement: Engagement::from(status),
        warnings,
    }
}

fn late(target: &str, limit: Duration) -> Failure {
    Failure::new(
        Reason::TimedOut,
        format!("{target} is not engaged after {} s", limit.as_secs()),
        "run `kvpn status` to see why, or give it longer with --timeout",
    )
}

#[cfg(test)]
mod tests {
    use kvpn_proto::v1::{Mount, ToPod};

    use super::*;

    #[test]
    fn what_a_session_has_passed_over_is_noticed() {
        let to_pod = ToPod {
            local: 9901,
            port: 9901,
        };
        let wanted = InterceptRequest {
            to_pod: vec![to_pod],
            container: "app".into(),
            ..InterceptRequest::default()
        };
        let older = EngagementStatus::default();
        assert_eq!(not_understood(&wanted, &older), Some("--to-pod"));
        let mut got = EngagementStatus {
            to_pod: wanted.to_pod.clone(),
            ..older
        };
        assert_eq!(not_understood(&wanted, &got), Some("--container"));
        got.container = "app".into();
        assert_eq!(not_understood(&wanted, &got), None);
        let wanted = InterceptRequest {
            environment: true,
            ..wanted
        };
        let flag = not_understood(&wanted, &got);
        assert!(flag.unwrap().starts_with("--env-file"));
        let with = |is_optional| InterceptRequest {
            environment: false,
            mount: Some(Mount {
                is_optional,
                ..Mount::default()
            }),
            ..wanted.clone()
        };
        assert_eq!(not_understood(&with(true), &got), None);
        let flag = not_understood(&with(false), &got);
        assert!(flag.unwrap().starts_with("--mount"));
    }
}
