//! Following a kind of object at the API server, for as long as the process runs.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::api::ListParams;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::state::Change;

/// The first and the longest pause after a watch has failed.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long one watch lasts, in seconds. Not much longer than this goes unseen
/// that the way to the API server has become a dead end.
const WATCH_SECONDS: u32 = 60;

/// How long the API server may take for one request.
const REQUEST: Duration = Duration::from_secs(10);

/// Passes a watch's events on, for ever. `listed` is called after the first
/// list.
pub(super) async fn follow<K>(
    api: Api<K>,
    namespace: Option<String>,
    emit: impl FnMut(Change<K>) + Send,
    listed: impl FnMut() + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    follow_as(api, watcher::Config::default(), namespace, emit, listed).await;
}

/// As `follow`, of the objects that `config` selects.
pub(super) async fn follow_as<K>(
    api: Api<K>,
    config: watcher::Config,
    namespace: Option<String>,
    mut emit: impl FnMut(Change<K>) + Send,
    mut listed: impl FnMut() + Send,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let config = config.timeout(WATCH_SECONDS);
    let mut events = pin!(watcher(api, config).backoff(Pauses::default()));
    let mut items = Vec::new();
    let mut first = true;
    let mut last_error = String::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => items.clear(),
            Ok(watcher::Event::InitApply(object)) => items.push(object),
            Ok(watcher::Event::InitDone) => {
                emit(Change::Listed {
                    namespace: namespace.clone(),
                    items: std::mem::take(&mut items),
                });
                if std::mem::take(&mut first) {
                    listed();
                }
                last_error.clear();
            }
            Ok(watcher::Event::Apply(object)) => emit(Change::Applied(object)),
            Ok(watcher::Event::Delete(object)) => emit(Change::Deleted(object)),
            Err(error) => {
                let error = error.to_string();
                if error == last_error {
                    debug!(kind, error, "watch failed again");
                } else {
                    warn!(kind, error, "watch failed");
                    last_error = error;
                }
            }
        }
    }
}

/// Whether a kind exists and may be read. Waits while that cannot be told.
pub(super) async fn is_readable<K>(api: &Api<K>) -> bool
where
    K: Resource + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let one = ListParams::default().limit(1);
    let mut pauses = Pauses::default();
    loop {
        match timeout(REQUEST, api.list(&one)).await {
            Ok(Ok(_)) => return true,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                warn!(kind, message = status.message, "going on without this kind");
                return false;
            }
            Ok(Err(error)) => debug!(kind, %error, "cannot be listed yet"),
            Err(_) => debug!(kind, "the API server did not answer in time"),
        }
        tokio::time::sleep(pauses.step()).await;
    }
}

/// Pauses that double.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE.0)
    }
}

impl Pauses {
    fn step(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE.1);
        pause
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.step())
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_start_over() {
        let mut pauses = Pauses::default();
        let seen: Vec<u128> = (&mut pauses)
            .take(8)
            .map(|pause| pause.as_millis())
            .collect();
        assert_eq!(seen, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        pauses.reset();
        assert_eq!(pauses.next(), Some(PAUSE.0));
    }
}
