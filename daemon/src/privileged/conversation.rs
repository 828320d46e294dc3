//! What one peer asks of the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use kvpn_proto::v1::lease_reply::Reply;
use kvpn_proto::v1::lease_request::Request;
use kvpn_proto::{Failure, Reason, v1, version};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::access::{self, Peer};
use super::host::Applied;
use super::server::Shared;
use crate::lease::wire::Connection;

/// How long a peer may be silent without a lease, or take to read an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long a lease that is just ending may keep the next one waiting.
const HANDOVER: Duration = Duration::from_millis(500);

/// The longest text of a peer's that is kept or logged, in characters.
const MAX_TEXT: usize = 200;

/// A connection and what is granted on it.
pub(super) struct Conversation {
    shared: Arc<Shared>,
    peer: Peer,
    connection: Connection,
    lease: Option<(Applied, OwnedSemaphorePermit)>,
}

impl Conversation {
    pub(super) fn new(shared: Arc<Shared>, peer: Peer, stream: UnixStream) -> Self {
        Self {
            shared,
            peer,
            connection: Connection::without_descriptors(stream),
            lease: None,
        }
    }

    /// Answers until the peer is gone or the daemon ends, then undoes the
    /// lease.
    pub(super) async fn run(mut self, end: &CancellationToken) {
        loop {
            let request = tokio::select! {
                () = end.cancelled() => break,
                request = Self::receive(&mut self.connection, self.lease.is_some()) => request,
                () = touched(self.lease.as_ref()) => {
                    if let Some((applied, _)) = &mut self.lease {
                        self.shared.host.follow(applied);
                    }
                    continue;
                }
            };
            let answered = match request {
                Ok(Some(request)) => self.answer(request).await,
                Ok(None) => break,
                Err(error) => Err(error),
            };
            if let Err(error) = answered {
                debug!(%error, pid = self.peer.pid, "The conversation is broken");
                break;
            }
        }
        if let Some((applied, permit)) = self.lease.take() {
            self.shared.host.undo(applied).await;
            self.shared.set_holder(None);
            drop(permit);
            info!(user = self.peer.user(), pid = self.peer.pid, "Lease ended");
        }
    }

    async fn receive(connection: &mut Connection, has_lease: bool) -> io::Result<Option<Request>> {
        let received = connection.receive::<v1::LeaseRequest>();
        let received = if has_lease {
            received.await
        } else {
            timeout(DEADLINE, received).await?
        };
        match received? {
            None => Ok(None),
            Some((message, _)) => match message.request {
                Some(request) => Ok(Some(request)),
                None => Err(io::Error::other(
                    "a request that this version does not know",
                )),
            },
        }
    }

    async fn answer(&mut self, request: Request) -> io::Result<()> {
        let outcome = match request {
            Request::Describe(_) => Ok((self.describe(), Vec::new())),
            Request::Acquire(wanted) => self.acquire(wanted).await,
            Request::SetNetwork(wanted) => {
                self.set_network(&wanted.network.unwrap_or_default()).await
            }
        };
        let (reply, descriptors) = outcome.unwrap_or_else(|failure| {
            info!(
                user = self.peer.user(),
                reason = %failure.reason,
                "Refused: {}",
                // It may quote the peer.
                printable(&failure.message)
            );
            (refused(failure), Vec::new())
        });
        let reply = v1::LeaseReply { reply: Some(reply) };
        timeout(DEADLINE, self.connection.send(&reply, &descriptors)).await?
    }

    /// Everybody may know the version; who is connected, only those who may
    /// connect themselves.
    fn describe(&self) -> Reply {
        let allowed = self.shared.access.check(&self.peer).is_ok();
        Reply::Described(v1::Described {
            version: version::VERSION.into(),
            holder: self.shared.holder().filter(|_| allowed),
        })
    }

    async fn acquire(&mut self, wanted: v1::Acquire) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        self.shared.access.check(&self.peer)?;
        let slot = self.shared.slot.clone().acquire_owned();
        let permit = match timeout(HANDOVER, slot).await {
            Ok(permit) => permit.map_err(Failure::internal)?,
            Err(_) => return Err(self.connected_already()),
        };
        let (applied, grant) = self
            .shared
            .host
            .apply(&wanted.network.unwrap_or_default())
            .await?;
        let holder = v1::Holder {
            uid: self.peer.uid,
            pid: self.peer.pid,
            description: described(&wanted.description),
            device: grant.message.device.clone(),
            subnets: applied.subnets(),
        };
        info!(
            user = self.peer.user(),
            pid = self.peer.pid,
            device = holder.device,
            subnets = holder.subnets.join(" "),
            "Lease granted"
        );
        self.shared.set_holder(Some(holder));
        self.lease = Some((applied, permit));
        Ok((Reply::Granted(grant.message), grant.descriptors))
    }

    async fn set_network(
        &mut self,
        wanted: &v1::Network,
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let Some((applied, _)) = &mut self.lease else {
            return Err(Failure::new(
                Reason::NotConnected,
                "no lease is held on this connection",
                "acquire one first",
            ));
        };
        applied.set_network(wanted).await?;
        let holder = self.shared.holder().map(|holder| v1::Holder {
            subnets: applied.subnets(),
            ..holder
        });
        self.shared.set_holder(holder);
        Ok((Reply::NetworkSet(v1::NetworkSet {}), Vec::new()))
    }

    fn connected_already(&self) -> Failure {
        let Some(holder) = self.shared.holder() else {
            return Failure::new(
                Reason::AlreadyConnected,
                "another session is connecting right now",
                "try again in a moment",
            );
        };
        let next_step = if holder.uid == self.peer.uid {
            "end that connection first with `kvpn quit`"
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
}

async fn touched(lease: Option<&(Applied, OwnedSemaphorePermit)>) {
    match lease {
        Some((applied, _)) => applied.touched().await,
        None => std::future::pending().await,
    }
}

fn refused(failure: Failure) -> Reply {
    Reply::Refused(v1::LeaseRefused {
        reason: failure.reason.as_str().into(),
        message: failure.message,
        next_step: failure.next_step,
    })
}

/// What the holder of a lease is connected to, for others.
fn described(description: &str) -> String {
    match printable(description) {
        text if text.is_empty() => "a cluster".into(),
        text => text,
    }
}

/// A text of a user's that a log or another user's terminal can show.
fn printable(text: &str) -> String {
    let visible = text.chars().filter(|c| !c.is_control());
    visible.take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_cannot_steer_a_terminal() {
        assert_eq!(described("kind\x1b[2J-dev\n"), "kind[2J-dev");
        assert_eq!(described("\n"), "a cluster");
        assert_eq!(described(&"x".repeat(300)).len(), MAX_TEXT);
    }
}
