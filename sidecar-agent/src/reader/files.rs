//! The files of the other container, for a session that asks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvpn_files::server::{self, Exports, Volume};
use kvpn_proto::flow::{DialError, DialFailure, Frame, OpenTarget};
use kvpn_proto::v1::watch_reads_response::Files;
use kvpn_tunnel::grpc::TunnelClient;
use kvpn_tunnel::relay;
use tokio::io::duplex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{debug, info};

use crate::holder::processes::FIRST;

/// How many bytes wait between the stream and the server, each way.
const WAITING: usize = 1 << 20;

/// How long the traffic manager may take to take a refusal.
const DEADLINE: Duration = Duration::from_secs(10);

/// Answers with a stream, and serves files over it for as long as that lasts.
pub(super) async fn serve(tunnel: TunnelClient, asked: Files, volumes: Arc<[Volume]>) {
    let frames = tunnel.carry(Frame::Open(OpenTarget::Dial(asked.dial_id)));
    let (root, writable) = (asked.root, asked.writable);
    let exports = spawn_blocking(move || exports(root, writable, &volumes)).await;
    let exports = exports.unwrap_or_else(|error| Err(error.to_string()));
    let answer = match &exports {
        Ok(_) => Frame::Opened,
        Err(why) => Frame::Failed(DialFailure::new(DialError::Prohibited, why.clone())),
    };
    if let Err(error) = frames.sender.send(answer).await {
        debug!(%error, "Nobody waits for files any more");
        return;
    }
    match exports {
        Ok(exports) => {
            info!(root, writable, "Files are served");
            let (near, far) = duplex(WAITING);
            tokio::select! {
                ended = relay::splice(far, frames) => debug!(?ended, "Files are served no more"),
                ended = server::serve(near, Arc::new(exports)) => {
                    debug!(?ended, "Files are served no more");
                }
            }
        }
        Err(why) => {
            debug!(why, "Files cannot be served");
            // Until the refusal has arrived.
            let _ = timeout(DEADLINE, frames.finish()).await;
        }
    }
}

/// What may be seen; why nothing can be, for people.
fn exports(root: bool, writable: bool, volumes: &[Volume]) -> Result<Exports, String> {
    let at = format!("/proc/{FIRST}/root");
    let at = Path::new(&at);
    let failed = |error: std::io::Error| {
        format!("the kernel does not let the container's file system be looked into: {error}")
    };
    if root {
        return Exports::whole(at, !writable).map_err(failed);
    }
    let mut volumes = volumes.to_vec();
    for volume in &mut volumes {
        volume.read_only |= !writable;
    }
    let (exports, refused) = Exports::volumes(at, &volumes).map_err(failed)?;
    for refused in refused {
        info!(%refused, "A volume is left out");
    }
    Ok(exports)
}
