//! The environment of a container of an engaged pod: read when it is asked for, and kept
//! nowhere.

use std::time::Duration;

use kvpn_proto::{Failure, Reason, v1};
use tokio::time::{Instant, sleep, timeout_at};
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
        let (uid, container) = self.table.read_by(&key).ok_or_else(|| {
            Failure::new(
                Reason::NoSuchEngagement,
                format!("this session has no engagement {key} that reads an environment"),
                "see those that there are with `kvpn status`",
            )
        })?;
        let deadline = Instant::now() + DEADLINE;
        let mut last = None;
        loop {
            let read = async {
                let mut client = self.manager.wait_for_client().await;
                let request = v1::ReadEnvironmentRequest { uid: uid.clone() };
                client.read_environment(request).await
            };
            match timeout_at(deadline, read).await {
                Ok(Ok(read)) => {
                    let v1::ReadEnvironmentResponse { environment, pod } = read.into_inner();
                    return Ok(v1::GetEnvironmentResponse {
                        environment,
                        pod,
                        container,
                    });
                }
                Ok(Err(status)) => {
                    debug!(engagement = %key, %status, "The environment is not read");
                    last = Some(Failure::from(status));
                }
                Err(_) => return Err(last.unwrap_or_else(|| late(&key))),
            }
            if let Some(failure) = last.take_if(|it| it.reason == Reason::NoSuchEngagement) {
                return Err(failure);
            }
            sleep(AGAIN).await;
        }
    }
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
