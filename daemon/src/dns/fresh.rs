//! Hears from the traffic manager which names may lead elsewhere than before.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use kvpn_proto::v1::WatchNamesRequest;
use tonic::Status;
use tracing::debug;

use super::cache::Cache;
use crate::session::manager::{Client, Manager};

/// How soon a watch is tried again that has ended.
const PAUSE: Duration = Duration::from_secs(1);

/// Drops answers from the cache as their Services change. Never returns.
pub(super) async fn keep_fresh(manager: Manager, cache: Cache) -> Infallible {
    loop {
        let client = manager.wait_for_client().await;
        if let Err(status) = follow(client, &cache).await {
            debug!(%status, "Changes of names are not heard of");
        }
        cache.set_live(false, Instant::now());
        tokio::time::sleep(PAUSE).await;
    }
}

async fn follow(mut client: Client, cache: &Cache) -> Result<(), Status> {
    let changes = client.watch_names(WatchNamesRequest {}).await?;
    let mut changes = changes.into_inner();
    if changes.message().await?.is_none() {
        return Ok(());
    }
    cache.set_live(true, Instant::now());
    while let Some(change) = changes.message().await? {
        let now = Instant::now();
        if change.all {
            cache.forget_all(now);
        }
        for service in change.changed {
            cache.forget(service, now);
        }
    }
    Ok(())
}
