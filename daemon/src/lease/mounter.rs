//! How engagements have something mounted: the lease is in one task's hands.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use kvpn_proto::{Failure, Reason};
use tokio::sync::{mpsc, oneshot};

use super::client::Lease;

/// How many wait for the lease at once.
const QUEUE: usize = 16;

/// Asks whoever has the lease. Clones ask the same.
#[derive(Clone)]
pub(crate) struct Mounter(mpsc::Sender<Call>);

/// Something that is to be done with the lease.
pub(crate) enum Call {
    Open(bool, oneshot::Sender<Result<(u64, OwnedFd), Failure>>),
    Attach(u64, PathBuf, oneshot::Sender<Result<(), Failure>>),
    Close(u64, oneshot::Sender<Result<(), Failure>>),
}

impl Mounter {
    /// What is asked comes out of the receiver.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Call>) {
        let (calls, receiver) = mpsc::channel(QUEUE);
        (Self(calls), receiver)
    }

    /// As [`Lease::open_mount`].
    pub(crate) async fn open(&self, read_only: bool) -> Result<(u64, OwnedFd), Failure> {
        self.call(|answer| Call::Open(read_only, answer)).await
    }

    /// As [`Lease::attach_mount`].
    pub(crate) async fn attach(&self, id: u64, path: &Path) -> Result<(), Failure> {
        self.call(|answer| Call::Attach(id, path.to_owned(), answer))
            .await
    }

    /// As [`Lease::close_mount`].
    pub(crate) async fn close(&self, id: u64) -> Result<(), Failure> {
        self.call(|answer| Call::Close(id, answer)).await
    }

    async fn call<T>(
        &self,
        call: impl FnOnce(oneshot::Sender<Result<T, Failure>>) -> Call,
    ) -> Result<T, Failure> {
        let (answer_tx, answer_rx) = oneshot::channel();
        self.0.send(call(answer_tx)).await.map_err(|_| ending())?;
        answer_rx.await.map_err(|_| ending())?
    }
}

impl Call {
    /// Does it.
    pub(crate) async fn serve(self, lease: &mut Lease) {
        // Who has asked may be gone; what that has left open ends with the lease.
        match self {
            Self::Open(read_only, answer) => {
                let opened = lease.open_mount(read_only).await;
                if let Err(Ok((id, _))) = answer.send(opened) {
                    let _ = lease.close_mount(id).await;
                }
            }
            Self::Attach(id, path, answer) => {
                let _ = answer.send(lease.attach_mount(id, &path).await);
            }
            Self::Close(id, answer) => {
                let _ = answer.send(lease.close_mount(id).await);
            }
        }
    }
}

/// Mounts end with the lease.
fn ending() -> Failure {
    Failure::new(
        Reason::NotConnected,
        "the session is ending",
        "run `kvpn connect` again",
    )
}
