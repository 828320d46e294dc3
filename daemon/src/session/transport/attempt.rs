//! One attempt to reach the traffic manager, and what its failure says of the
//! other ways there.

use std::time::Duration;

use http::StatusCode;
use kube::core::Status;
use kvpn_proto::{Failure, Reason, names};

use crate::session::cluster::Cluster;

/// How long the API server and the traffic manager may take to answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(6);

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    pub(super) blame: Blame,
}

/// What an attempt failed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// The way that was tried; another may do.
    Way,
    /// Something that every way needs.
    Everything,
}

impl Failed {
    pub(super) fn by_way(failure: Failure) -> Self {
        Self {
            failure,
            blame: Blame::Way,
        }
    }

    pub(super) fn by_everything(failure: Failure) -> Self {
        Self {
            failure,
            blame: Blame::Everything,
        }
    }
}

/// Keeps an attempt from taking too long.
pub(super) async fn in_time<T>(
    namespace: &str,
    attempt: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    tokio::time::timeout(DEADLINE, attempt)
        .await
        .unwrap_or_else(|_| Err(no_answer(namespace, "no answer in time")))
}

/// Explains an answer of the API server other than "switching protocols".
pub(super) fn refused(
    cluster: &Cluster,
    namespace: &str,
    code: StatusCode,
    status: Option<Status>,
    body: &[u8],
) -> Failed {
    match (code.as_u16(), status) {
        (401, Some(status)) => {
            Failed::by_everything(cluster.status_failure(&status.with_code(401)))
        }
        (403, Some(status)) => Failed::by_way(cluster.status_failure(&status.with_code(403))),
        // Without a Status it is not the API server that does not know the path.
        (404, Some(_)) => Failed::by_everything(cluster.not_installed()),
        (503, Some(status)) if status.message.contains("no endpoints") => no_ready_pod(namespace),
        (_, Some(status)) => no_answer(namespace, &status.message),
        (_, None) => {
            let text = String::from_utf8_lossy(body);
            let first = text.lines().next().unwrap_or_default().trim();
            no_answer(namespace, format!("{code} {first}").trim_end())
        }
    }
}

pub(super) fn no_ready_pod(namespace: &str) -> Failed {
    Failed::by_everything(Failure::new(
        Reason::ManagerUnreachable,
        format!("the traffic manager in namespace {namespace} has no ready pod"),
        format!(
            "look at it with `kubectl -n {namespace} get pods` and `kubectl -n {namespace} describe deployment {}`",
            names::MANAGER_SERVICE
        ),
    ))
}

pub(super) fn no_answer(namespace: &str, detail: &str) -> Failed {
    Failed::by_way(Failure::new(
        Reason::ManagerUnreachable,
        format!("the traffic manager in namespace {namespace} does not answer: {detail}"),
        format!(
            "look at it with `kubectl -n {namespace} get pods` and `kubectl -n {namespace} logs deployment/{}`",
            names::MANAGER_SERVICE
        ),
    ))
}
