//! What one peer asks of the daemon.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvpn_proto::v1::lease_reply::Reply;
use kvpn_proto::v1::lease_request::Request;
use kvpn_proto::{Failure, Reason, v1, version};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::access::Peer;
use super::holders::Place;
use super::mounts::Mounts;
use super::server::Shared;
use crate::lease::slot::Slot;
use crate::lease::wire::Connection;

/// How long a peer may be silent without a lease, or take to read an answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// The longest text of a peer's that is kept or logged, in characters.
const MAX_TEXT: usize = 200;

/// A connection and what is granted on it.
pub(super) struct Conversation {
    shared: Arc<Shared>,
    peer: Peer,
    connection: Connection,
    lease: Option<(Slot, Place)>,
    mounts: Mounts,
}

impl Conversation {
    pub(super) fn new(shared: Arc<Shared>, peer: Peer, stream: UnixStream) -> Self {
        Self {
            shared,
            peer,
            connection: Connection::without_descriptors(stream),
            lease: None,
            mounts: Mounts::default(),
        }
    }

    /// Answers until the peer is gone or the daemon ends, then undoes the
    /// lease.
    pub(super) async fn run(mut self, end: &CancellationToken) {
        loop {
            let request = tokio::select! {
                () = end.cancelled() => break,
                request = Self::receive(&mut self.connection, self.lease.is_some()) => request,
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
        self.mounts.close_all(&self.shared.host).await;
        if let Some((slot, place)) = self.lease.take() {
            self.shared.host.undo(slot).await;
            drop(place);
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
            Request::OpenMount(wanted) => self.open_mount(&wanted),
            Request::AttachMount(wanted) => self.attach_mount(&wanted).await,
            Request::CloseMount(wanted) => {
                let closed = self.mounts.close(wanted.id, &self.shared.host).await;
                closed.map(|()| (Reply::MountClosed(v1::MountClosed {}), Vec::new()))
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
            holders: if allowed {
                self.shared.holders.all()
            } else {
                Vec::new()
            },
        })
    }

    async fn acquire(&mut self, wanted: v1::Acquire) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        self.shared.access.check(&self.peer)?;
        if self.lease.is_some() {
            return Err(Failure::new(
                Reason::AlreadyConnected,
                "this connection holds a lease already",
                "acquire another one on a connection of its own",
            ));
        }
        let holder = v1::Holder {
            uid: self.peer.uid,
            pid: self.peer.pid,
            description: described(&wanted.description),
            name: printable(&wanted.name),
            device: String::new(),
            subnets: Vec::new(),
        };
        let place = self.shared.holders.enter(holder).await?;
        let network = wanted.network.unwrap_or_default();
        let (slot, grant) = self.shared.host.apply(&network).await?;
        info!(
            user = self.peer.user(),
            pid = self.peer.pid,
            device = grant.message.device,
            subnets = grant.subnets.join(" "),
            "Lease granted"
        );
        place.note(&grant.message.device, grant.subnets);
        self.lease = Some((slot, place));
        Ok((Reply::Granted(grant.message), grant.descriptors))
    }

    async fn set_network(
        &mut self,
        wanted: &v1::Network,
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let (slot, place) = self.lease.as_ref().ok_or_else(no_lease)?;
        let subnets = self.shared.host.set_network(*slot, wanted).await?;
        place.note(&slot.device(), subnets);
        Ok((Reply::NetworkSet(v1::NetworkSet {}), Vec::new()))
    }

    fn open_mount(&mut self, wanted: &v1::OpenMount) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        // The guard is there with a lease.
        self.lease.as_ref().ok_or_else(no_lease)?;
        let (id, device) = self.mounts.open(&self.peer, wanted.read_only)?;
        let opened = v1::MountOpened { id };
        Ok((Reply::MountOpened(opened), vec![device]))
    }

    async fn attach_mount(
        &mut self,
        wanted: &v1::AttachMount,
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let path = PathBuf::from(OsString::from_vec(wanted.path.to_vec()));
        let host = &self.shared.host;
        self.mounts
            .attach(wanted.id, path.clone(), &self.peer, host)
            .await?;
        let path = printable(&path.to_string_lossy());
        info!(
            user = self.peer.user(),
            pid = self.peer.pid,
            path,
            "Mounted"
        );
        Ok((Reply::MountAttached(v1::MountAttached {}), Vec::new()))
    }
}

fn no_lease() -> Failure {
    Failure::new(
        Reason::NotConnected,
        "no lease is held on this connection",
        "acquire one first",
    )
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
