//! The whole file system of a container, for as long as a command takes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvpn_proto::v1::{InterceptRequest, Mount};
use kvpn_proto::{Failure, Reason};
use tokio::task::spawn_blocking;

use super::engage::{self, Engaged};
use crate::ended::Ended;
use crate::files::Stop;
use crate::interrupts::Interrupts;

/// Has an ingest mount a container's files, and something done with them; then leaves it. What
/// is done is told to stop where the user interrupts it.
pub(super) async fn with_files<T: Send + 'static>(
    flags: &crate::args::Flags,
    request: InterceptRequest,
    writable: bool,
    work: impl FnOnce(PathBuf, &AtomicBool) -> Result<T, Stop> + Send + 'static,
) -> Result<T, Ended> {
    let mut interrupts = Interrupts::listen()?;
    let request = InterceptRequest {
        ends_with_call: true,
        mount: Some(Mount {
            root: true,
            writable,
            ..Mount::default()
        }),
        ..request
    };
    let Engaged {
        session,
        status,
        // Open until it is left.
        events: _events,
        ..
    } = tokio::select! {
        outcome = engage::start(flags, request) => outcome?,
        // Dropping the call cancels it.
        signal = interrupts.next() => return Err(Ended::Interrupted(signal)),
    };
    let outcome = match writable && status.mounted_read_only {
        true => Err(Ended::from(too_old())),
        false => {
            let stop = Arc::new(AtomicBool::new(false));
            let (at, stopped) = (PathBuf::from(&status.mounted_at), stop.clone());
            let mut working = spawn_blocking(move || work(at, &stopped));
            let (done, signal) = tokio::select! {
                done = &mut working => (done, None),
                signal = interrupts.next() => {
                    stop.store(true, Ordering::Relaxed);
                    (working.await, Some(signal))
                }
            };
            match (done.map_err(Failure::internal)?, signal) {
                (Ok(done), _) => Ok(done),
                (Err(_), Some(signal)) => Err(Ended::Interrupted(signal)),
                (Err(Stop::Failed(failure)), None) => Err(failure.into()),
                (Err(Stop::Told), None) => Err(Failure::internal("stopped by nobody").into()),
            }
        }
    };
    let left = engage::leave(&session, engage::leave_request(&status)).await;
    let done = outcome?;
    left?;
    Ok(done)
}

fn too_old() -> Failure {
    Failure::new(
        Reason::VersionMismatch,
        "the running session does not know how to copy files into pods",
        "run `kvpn quit`, then `kvpn connect`",
    )
}
