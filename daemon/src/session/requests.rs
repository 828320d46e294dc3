//! What becomes of the requests of this session's engagements.

use std::time::Duration;

use kvpn_proto::v1::{self, EngagementStatus, RequestCounts};
use kvpn_proto::{Failure, Reason};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::manager::Manager;

/// How long the traffic manager may take to say something.
const DEADLINE: Duration = Duration::from_secs(2);

/// How long agents may take to tell of requests of late, after the one before.
const QUIET: Duration = Duration::from_millis(700);

/// Adds to each engagement what became of its requests, if the traffic manager says so.
pub(crate) async fn add_counts(manager: &Manager, engagements: &mut [EngagementStatus]) {
    let Some(mut client) = manager.client().filter(|_| !engagements.is_empty()) else {
        return;
    };
    let call = client.count_requests(v1::CountRequestsRequest {});
    let Ok(Ok(response)) = timeout(DEADLINE, call).await else {
        return;
    };
    let counted = response.into_inner().engagements;
    for engagement in engagements {
        let mut counted = counted.iter();
        let its =
            counted.find(|it| it.name == engagement.name && it.namespace == engagement.namespace);
        engagement.counts = its.map(|it| it.counts.unwrap_or_else(RequestCounts::default));
    }
}

/// Tells what becomes of each request at an engagement's ports: of those of late, then of
/// those that come, for as long as somebody listens.
pub(crate) async fn follow(
    manager: &Manager,
    namespace: String,
    name: String,
    goes_on: bool,
    lines: mpsc::Sender<Result<v1::LogResponse, Status>>,
) {
    let followed = tokio::select! {
        followed = try_follow(manager, namespace, name, goes_on, &lines) => followed,
        () = lines.closed() => return,
    };
    if let Err(status) = followed {
        // Who is gone need not be told.
        let _ = lines.send(Err(status)).await;
    }
}

async fn try_follow(
    manager: &Manager,
    namespace: String,
    name: String,
    goes_on: bool,
    lines: &mpsc::Sender<Result<v1::LogResponse, Status>>,
) -> Result<(), Status> {
    let mut client = manager.client().ok_or_else(|| {
        Failure::new(
            Reason::TimedOut,
            "the connection to the traffic manager is down at the moment",
            "try again once `kvpn status` says that the link is up",
        )
    })?;
    let call = client.watch_requests(v1::WatchRequestsRequest {
        namespace,
        name,
        earlier_only: !goes_on,
    });
    let response = timeout(DEADLINE, call)
        .await
        .map_err(|_| Status::deadline_exceeded("the traffic manager does not answer"))?;
    let mut requests = response.map_err(known)?.into_inner();
    loop {
        let next = requests.message();
        let next = match goes_on {
            true => next.await?,
            false => match timeout(QUIET, next).await {
                Ok(next) => next?,
                Err(_) => return Ok(()),
            },
        };
        let Some(request) = next else {
            return Err(Status::unavailable("the traffic manager has ended the log"));
        };
        let line = v1::LogResponse {
            decision: request.decision,
            pod: request.pod,
            engagement: request.engagement,
            user: request.user,
            left_out: request.left_out,
        };
        if lines.send(Ok(line)).await.is_err() {
            return Ok(());
        }
    }
}

/// A failure that a user can act on where the traffic manager does not know the call.
fn known(status: Status) -> Status {
    if status.code() != Code::Unimplemented {
        return status;
    }
    let failure = Failure::new(
        Reason::VersionMismatch,
        "the traffic manager is older, and tells nothing of requests",
        "have an administrator run `helm upgrade` with the chart of this version",
    );
    failure.into()
}
