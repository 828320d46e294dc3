//! Which Services' names may lead elsewhere than before.

use futures::stream::{self, Stream};
use kvpn_proto::v1::{ServiceName, WatchNamesResponse};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{self, Receiver};

use crate::state::Key;

/// How many changes a session may be behind.
const BEHIND: usize = 1_024;

/// How many changes are told at once.
const AT_ONCE: usize = 256;

/// Tells sessions of changes.
#[derive(Debug)]
pub(crate) struct Names(broadcast::Sender<Changed>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Changed {
    Service(Key),
    /// Any of them may have.
    All,
}

impl Names {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }

    /// A Service has changed, or the pods behind it.
    pub(crate) fn change(&self, service: Key) {
        // Nobody need be listening.
        let _ = self.0.send(Changed::Service(service));
    }

    /// What has changed is not known.
    pub(crate) fn change_all(&self) {
        let _ = self.0.send(Changed::All);
    }

    /// All changes from now on, after a message that says so.
    pub(crate) fn watch(&self) -> impl Stream<Item = WatchNamesResponse> + Send + use<> {
        let begin = stream::once(std::future::ready(WatchNamesResponse::default()));
        let changes = stream::unfold(self.0.subscribe(), |mut changes| async {
            let message = next(&mut changes).await?;
            Some((message, changes))
        });
        stream::StreamExt::chain(begin, changes)
    }
}

/// Waits for a change, and takes those that have come with it.
async fn next(changes: &mut Receiver<Changed>) -> Option<WatchNamesResponse> {
    let mut message = WatchNamesResponse::default();
    match changes.recv().await {
        Ok(change) => add(&mut message, change),
        Err(RecvError::Lagged(_)) => message.all = true,
        Err(RecvError::Closed) => return None,
    }
    while message.changed.len() < AT_ONCE {
        match changes.try_recv() {
            Ok(change) => add(&mut message, change),
            Err(TryRecvError::Lagged(_)) => message.all = true,
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    Some(message)
}

fn add(message: &mut WatchNamesResponse, change: Changed) {
    match change {
        Changed::All => message.all = true,
        Changed::Service(Key { namespace, name }) => {
            message.changed.push(ServiceName { namespace, name });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn changes_that_come_together_are_told_together() {
        let names = Names::new();
        names.change(Key::new("shop", "before"));
        let mut watch = pin!(names.watch());
        assert_eq!(watch.next().await.unwrap(), WatchNamesResponse::default());

        names.change(Key::new("shop", "web"));
        names.change(Key::new("bank", "db"));
        let told = watch.next().await.unwrap();
        let changed: Vec<_> = told.changed.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(changed, ["web", "db"]);
        assert!(!told.all);
    }

    #[tokio::test]
    async fn who_is_too_far_behind_hears_that_any_may_have_changed() {
        let names = Names::new();
        let mut watch = pin!(names.watch());
        watch.next().await.unwrap();
        for _ in 0..=BEHIND {
            names.change(Key::new("shop", "web"));
        }
        assert!(watch.next().await.unwrap().all);
    }
}
