//! Copies of what one client sends, for who has asked for them.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use kvpn_proto::flow::Frame;
use kvpn_tunnel::grpc::TunnelClient;
use kvpn_tunnel::relay::FrameStream;
use tokio::sync::mpsc;
use tracing::debug;

use super::Ends;
use crate::forward::{Shared, hand_over};

/// How many copies wait for one holder.
const MAX_WAITING: usize = 16;

/// The copies of one client's datagrams for one claim.
pub(super) struct Copies {
    claim_id: String,
    /// `None` until the first, and once the holder is gone.
    copies: Option<mpsc::Sender<Bytes>>,
    /// One was not taken, which is counted once.
    has_failed: bool,
}

impl Copies {
    pub(super) fn new(claim_id: &str) -> Self {
        Self {
            claim_id: claim_id.to_owned(),
            copies: None,
            has_failed: false,
        }
    }

    /// Sends a copy, or loses it: who answers does not wait for it.
    pub(super) fn send(
        &mut self,
        payload: &Bytes,
        ends: &Ends,
        tunnel: &TunnelClient,
        shared: &Arc<Shared>,
    ) {
        let is_there = self.copies.as_ref().is_some_and(|it| !it.is_closed());
        if !is_there
            && !shared.has_missed_copies(&self.claim_id)
            && let Ok(permit) = Arc::clone(&shared.datagrams.copying).try_acquire_owned()
        {
            let (copies, taken) = mpsc::channel(MAX_WAITING);
            self.copies = Some(copies);
            let (tunnel, claim_id) = (tunnel.clone(), self.claim_id.clone());
            let carry = carry(taken, tunnel, claim_id, ends.client, Arc::clone(shared));
            shared.flows.spawn(async move {
                carry.await;
                drop(permit);
            });
        }
        let room = &shared.datagrams.copied;
        let copy = room.keep(ends.client.ip(), payload.clone());
        let is_sent = match (&self.copies, copy) {
            (Some(copies), Some(copy)) => copies.try_send(copy).is_ok(),
            (Some(_) | None, _) => false,
        };
        if !is_sent && !std::mem::replace(&mut self.has_failed, true) {
            shared.reports.count_failure(&self.claim_id);
        }
    }
}

/// Opens a stream to the holder of the claim, and sends what comes until nothing does or
/// the stream ends.
async fn carry(
    mut copies: mpsc::Receiver<Bytes>,
    tunnel: TunnelClient,
    claim_id: String,
    source: SocketAddr,
    shared: Arc<Shared>,
) {
    let frames = match hand_over(&tunnel, &claim_id, source).await {
        Ok(frames) => frames,
        Err(why) => {
            debug!(%why, "Datagrams are not copied");
            shared.reports.count_failure(&claim_id);
            return shared.note_missed_copies(claim_id);
        }
    };
    let FrameStream {
        sender,
        mut receiver,
    } = frames;
    loop {
        tokio::select! {
            copy = copies.recv() => match copy {
                // What there is no room for is lost.
                Some(copy) => drop(sender.send(Frame::Data(copy)).now_or_never()),
                None => {
                    drop(sender.send(Frame::Fin).now_or_never());
                    break;
                }
            },
            // Answers are thrown away.
            told = receiver.recv() => match told {
                Some(Ok(Frame::Data(_) | Frame::Whole(_) | Frame::Failed(_))) => {}
                Some(Ok(Frame::Open(_) | Frame::Opened | Frame::Fin | Frame::Reset) | Err(_))
                | None => return,
            },
        }
    }
    FrameStream { sender, receiver }.finish().await;
}
