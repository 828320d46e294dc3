//! Who holds leases. Several may be held at once, by one user, each under a name of
//! its own.

use std::sync::Arc;
use std::time::Duration;

use kvpn_proto::v1::Holder;
use kvpn_proto::{Failure, Reason};
use tokio::sync::watch;
use tokio::time::timeout;

use super::access;

/// How long a lease that is just ending may keep the next one waiting.
const HANDOVER: Duration = Duration::from_millis(500);

/// The holders, in the order of their leases.
#[derive(Clone, Debug)]
pub(super) struct Holders(Arc<watch::Sender<Vec<Holder>>>);

/// A holder's place among them, until dropped.
pub(super) struct Place {
    holders: Holders,
    uid: u32,
    name: String,
}

impl Default for Holders {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }
}

impl Holders {
    pub(super) fn all(&self) -> Vec<Holder> {
        self.0.borrow().clone()
    }

    /// Takes a place for a user's lease of this name, once nobody is in the way.
    ///
    /// # Errors
    /// `AlreadyConnected` when somebody stays: another user, or the same one with a
    /// lease of this name.
    pub(super) async fn enter(&self, holder: Holder) -> Result<Place, Failure> {
        let (uid, name) = (holder.uid, holder.name.clone());
        let mut changes = self.0.subscribe();
        let entered = async {
            loop {
                let is_entered = self.0.send_if_modified(|holders| {
                    let is_free = in_the_way(holders, uid, &name).is_none();
                    if is_free {
                        holders.push(holder.clone());
                    }
                    is_free
                });
                if is_entered {
                    return;
                }
                // The sender is ours.
                let _ = changes.changed().await;
            }
        };
        if timeout(HANDOVER, entered).await.is_ok() {
            return Ok(Place {
                holders: self.clone(),
                uid,
                name,
            });
        }
        Err(refusal(in_the_way(&self.0.borrow(), uid, &name), uid))
    }
}

impl Place {
    /// Notes what the holder has.
    pub(super) fn note(&self, device: &str, subnets: Vec<String>) {
        self.holders.0.send_modify(|holders| {
            let mut holders = holders.iter_mut();
            if let Some(holder) = holders.find(|holder| self.is_of(holder)) {
                device.clone_into(&mut holder.device);
                holder.subnets = subnets;
            }
        });
    }

    fn is_of(&self, holder: &Holder) -> bool {
        holder.uid == self.uid && holder.name == self.name
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let holders = &self.holders.0;
        holders.send_modify(|holders| holders.retain(|holder| !self.is_of(holder)));
    }
}

fn in_the_way<'a>(holders: &'a [Holder], uid: u32, name: &str) -> Option<&'a Holder> {
    let mut holders = holders.iter();
    holders.find(|holder| holder.uid != uid || holder.name == name)
}

fn refusal(holder: Option<&Holder>, uid: u32) -> Failure {
    let Some(holder) = holder.filter(|holder| !holder.device.is_empty()) else {
        return Failure::new(
            Reason::AlreadyConnected,
            "another session is connecting right now",
            "try again in a moment",
        );
    };
    let next_step = if holder.uid == uid {
        "end that connection first with `kvpn quit`, or connect beside it with `--name NAME`"
    } else {
        "ask them to end it with `kvpn quit`"
    };
    Failure::new(
        Reason::AlreadyConnected,
        format!(
            "user {} is connected to {} on this host",
            access::user(holder.uid),
            holder.description
        ),
        next_step,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(uid: u32, name: &str) -> Holder {
        Holder {
            uid,
            name: name.into(),
            ..Holder::default()
        }
    }

    #[tokio::test]
    async fn one_user_may_hold_several_under_names_of_their_own() {
        let holders = Holders::default();
        let first = holders.enter(holder(7, "")).await.unwrap();
        first.note("kvpn0", vec!["10.96.0.0/16".into()]);
        let second = holders.enter(holder(7, "staging")).await.unwrap();
        assert_eq!(holders.all().len(), 2);
        for (uid, name) in [(7, "staging"), (8, "other")] {
            let refused = holders.enter(holder(uid, name)).await.err().unwrap();
            assert_eq!(refused.reason, Reason::AlreadyConnected);
        }
        drop(second);
        drop(holders.enter(holder(7, "staging")).await.unwrap());
        drop(first);
        assert!(holders.all().is_empty());
    }

    #[tokio::test]
    async fn lease_that_is_just_ending_is_waited_for() {
        let holders = Holders::default();
        let first = holders.enter(holder(7, "")).await.unwrap();
        let next = holders.enter(holder(8, ""));
        let (next, ()) = tokio::join!(next, async { drop(first) });
        next.unwrap();
    }
}
