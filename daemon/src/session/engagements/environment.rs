//! The environment of a container of an engaged pod: read when it is asked for, and kept
//! nowhere.

use std::time::Duration;

use kvpn_proto::{Failure, Reason, v1};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status};
use tracing::debug;

use super::Engagements;
use super::table::Key;

/// How long it may take, also while the traffic manager starts again.
const DEADLINE: Duration = Duration::from_secs(10);

/// How soon it is tried again.
const AGAIN: Duration = Duration::from_millis(200);

impl Engagements {
    /// Reads the environment that an engagement may read.
    pub(crate) async fn environment(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<v1::GetEnvironmentResponse, Failure> {
        let key = Key::new(namespace, name);
        let deadline = Instant::now() + DEADLINE;
        let mut last = None;
        loop {
            // A traffic manager that starts again has not heard of it yet; what counts is
            // whether it is still here.
            let (uid, container) = self.table.read_by(&key).ok_or_else(|| unknown(&key))?;
            let read = async {
                let mut client = self.manager.wait_for_client().await;
                let request = v1::ReadEnvironmentRequest { uid };
                client.read_environment(request).await
            };
            let failure = match timeout_at(deadline, read).await {
                Ok(Ok(read)) => {
                    let v1::ReadEnvironmentResponse { environment, pod } = read.into_inner();
                    return Ok(v1::GetEnvironmentResponse {
                        environment,
                        pod,
                        container,
                    });
                }
                Ok(Err(status)) => explained(status),
                Err(_) => return Err(last.unwrap_or_else(|| late(&key))),
            };
            debug!(engagement = %key, %failure, "The environment is not read");
            if is_lasting(&failure) {
                return Err(failure);
            }
            // The reader has told the traffic manager why, or cannot be had.
            let obstacle = self.table.unreadable(&key);
            if let Some(obstacle) = obstacle.filter(is_lasting) {
                return Err(obstacle);
            }
            last = Some(failure);
            sleep(AGAIN).await;
        }
    }
}

/// Whether trying again within seconds is in vain.
fn is_lasting(failure: &Failure) -> bool {
    [
        Reason::AgentRefused,
        Reason::Forbidden,
        Reason::NotSupported,
        Reason::SessionRevoked,
        Reason::VersionMismatch,
    ]
    .contains(&failure.reason)
}

/// A failure that a user can act on also where the traffic manager does not know the call.
fn explained(status: Status) -> Failure {
    if status.code() == Code::Unimplemented && status.details().is_empty() {
        return Failure::new(
            Reason::VersionMismatch,
            "the traffic manager is older, and reads no environment",
            "have an administrator run `helm upgrade` with the chart of this version",
        );
    }
    Failure::from(status)
}

fn unknown(key: &Key) -> Failure {
    Failure::new(
        Reason::NoSuchEngagement,
        format!("this session has no engagement {key} that reads an environment"),
        "see those that there are with `kvpn status`",
    )
}

fn late(key: &Key) -> Failure {
    Failure::new(
        Reason::TimedOut,
        format!(
            "the environment for {key} was not read within {} s",
            DEADLINE.as_secs()
        ),
        "try again; `kvpn status` says whether the traffic manager is there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_tried_again_and_what_lasts_is_told_at_once() {
        let of = |reason| Failure::new(reason, "no", "do");
        // As of a traffic manager that has just started, and of a reader that is coming.
        for reason in [Reason::NoSuchEngagement, Reason::AgentNotReady] {
            assert!(!is_lasting(&explained(of(reason).into())), "{reason}");
        }
        assert!(!is_lasting(&explained(Status::unavailable("gone"))));
        let lasting = explained(of(Reason::NotSupported).into());
        assert_eq!(lasting, of(Reason::NotSupported));
        assert!(is_lasting(&lasting));
    }

    #[test]
    fn traffic_manager_that_does_not_know_the_call_is_older() {
        let failure = explained(Status::unimplemented(""));
        assert_eq!(failure.reason, Reason::VersionMismatch);
        assert!(is_lasting(&failure));
    }
}
