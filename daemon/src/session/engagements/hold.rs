//! Engagements that end with their call: a client that is gone, however it went, leaves none.

use std::time::Duration;

use kvpn_proto::{Failure, Reason};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Engagements;
use super::intercept::{Events, fail};
use super::outcome::{Observed, Progress};
use super::table::Key;

/// How soon it is tried again to end an engagement whose client is gone: at first, and at last.
const OUTLIVE_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_OUTLIVE_PAUSE: Duration = Duration::from_secs(30);

impl Engagements {
    /// Stays with an engagement for as long as its client does. The client is told when
    /// somebody else ends it.
    pub(super) async fn hold(
        &self,
        key: &Key,
        observed: &mut watch::Receiver<Observed>,
        events: &Events,
    ) {
        tokio::select! {
            revoked = revoked(key, observed) => if let Some(failure) = revoked {
                fail(events, failure).await;
            },
            () = events.closed() => self.outlive(key).await,
        }
    }

    /// Ends an engagement whose client is gone; however long that takes, since nobody else
    /// would.
    async fn outlive(&self, key: &Key) {
        info!(engagement = %key, "The client of the engagement is gone");
        let mut pause = OUTLIVE_PAUSE;
        // Each time in full, as it is out of the table meanwhile.
        while let Err(failure) = self.end(key).await {
            warn!(engagement = %key, %failure, "Engagement outlives its client for now");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_OUTLIVE_PAUSE);
        }
    }
}

/// Waits until an engagement is over; tells it where that was somebody else's doing.
async fn revoked(key: &Key, observed: &mut watch::Receiver<Observed>) -> Option<Failure> {
    loop {
        if let Progress::Gone { by } = &observed.borrow_and_update().progress {
            let by = by.as_deref();
            let by = by.map(|by| format!(" by {by}")).unwrap_or_default();
            return Some(Failure::new(
                Reason::NoSuchEngagement,
                format!("engagement {key} was deleted{by}"),
                "engage it again, unless it was deleted for a reason",
            ));
        }
        // The sender goes with the engagement.
        if observed.changed().await.is_err() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn client_that_stays_is_told_who_deleted_the_engagement() {
        let key = Key::new("shop", "web-alice-1");
        let (tx, mut rx) = watch::channel(Observed::default());
        let task = tokio::spawn(async move { revoked(&key, &mut rx).await });
        tx.send_replace(Observed::default());
        tx.send_replace(Observed::gone(Some("bob".into())));
        // As it goes out of the table.
        drop(tx);
        let failure = task.await.unwrap().unwrap();
        assert_eq!(failure.reason, Reason::NoSuchEngagement);
        assert_eq!(
            failure.message,
            "engagement shop/web-alice-1 was deleted by bob"
        );
    }

    #[tokio::test]
    async fn client_that_stays_is_told_of_no_end_that_the_user_wanted() {
        let key = Key::new("shop", "web-alice-1");
        let (tx, mut rx) = watch::channel(Observed::default());
        drop(tx);
        assert_eq!(revoked(&key, &mut rx).await, None);
    }
}
