//! Writes statuses: for one object one after the other, and of those that
//! wait only the latest.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{debug, warn};

/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(10);

/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Writes statuses.
#[derive(Clone, Debug, Default)]
pub(crate) struct StatusWriter {
    /// UIDs of the objects that are being written, each with the status to
    /// write next.
    waiting: Arc<Mutex<HashMap<String, Option<Value>>>>,
}

impl StatusWriter {
    /// Writes a status now, or after the one that is being written.
    pub(crate) fn write<K>(&self, api: Api<K>, name: String, uid: String, status: Value)
    where
        K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut waiting = self.lock();
        if let Some(next) = waiting.get_mut(&uid) {
            *next = Some(status);
            return;
        }
        waiting.insert(uid.clone(), None);
        drop(waiting);
        let writer = self.clone();
        tokio::spawn(async move {
            let mut next = Some(status);
            while let Some(status) = next {
                writer.write_until_done(&api, &name, &uid, status).await;
                let mut waiting = writer.lock();
                next = waiting.get_mut(&uid).and_then(Option::take);
                if next.is_none() {
                    waiting.remove(&uid);
                }
            }
        });
    }

    /// Tries until the status, or a later one, is written or cannot be.
    async fn write_until_done<K>(&self, api: &Api<K>, name: &str, uid: &str, mut status: Value)
    where
        K: Clone + DeserializeOwned + Debug,
    {
        let mut pause = PAUSE.0;
        loop {
            match patch(api, name, uid, &status).await {
                Ok(()) => return,
                Err(error) if is_gone(&error) => {
                    debug!(name, "the object is gone, and its status with it");
                    return;
                }
                Err(error) => warn!(name, %error, "a status could not be written"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            if let Some(next) = self.lock().get_mut(uid).and_then(Option::take) {
                status = next;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Value>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server did not answer in time")]
    TimedOut,
    #[error("the patch is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
}

async fn patch<K>(api: &Api<K>, name: &str, uid: &str, status: &Value) -> Result<(), WriteError>
where
    K: Clone + DeserializeOwned + Debug,
{
    // The test spares an object that was made anew under the same name.
    let operations = json!([
        { "op": "test", "path": "/metadata/uid", "value": uid },
        { "op": "add", "path": "/status", "value": status },
    ]);
    let patch = Patch::Json::<()>(serde_json::from_value(operations)?);
    let request = PatchParams::default();
    timeout(REQUEST, api.patch_status(name, &request, &patch))
        .await
        .map_err(|_| WriteError::TimedOut)??;
    Ok(())
}

/// Whether there is no such object, or another one of that name. The API server
/// answers a patch whose test fails with 422 and no particulars, while a status
/// that breaks the schema "is invalid".
fn is_gone(error: &WriteError) -> bool {
    match error {
        WriteError::Api(kube::Error::Api(status)) => match status.code {
            404 => true,
            422 => !status.message.contains("is invalid"),
            _ => false,
        },
        WriteError::Api(_) | WriteError::TimedOut | WriteError::Malformed(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn answer(code: u16, message: &str) -> WriteError {
        let status = serde_json::from_value::<Status>(json!({
            "status": "Failure",
            "code": code,
            "message": message,
        }));
        WriteError::Api(kube::Error::Api(Box::new(status.unwrap())))
    }

    #[test]
    fn an_object_that_is_gone_or_made_anew_is_told_from_other_troubles() {
        let failed_test = "the server rejected our request due to an error in our request";
        let broken = "Engagement.kvpn.dev \"web\" is invalid: status.podsCovered: Invalid value";
        assert!(is_gone(&answer(404, "")));
        assert!(is_gone(&answer(422, failed_test)));
        assert!(!is_gone(&answer(422, broken)));
        assert!(!is_gone(&answer(403, "")));
        assert!(!is_gone(&answer(500, "")));
        assert!(!is_gone(&WriteError::TimedOut));
    }
}
