//! Standard output of a starting session: one event a line, until it is ready
//! or has failed.

use std::io::Write;

use kvpn_proto::Failure;
use kvpn_proto::connect::ConnectEvent;
use tracing::debug;

/// Tells what is being waited for; nobody need listen.
pub(crate) fn progress(message: &str) {
    let message = message.to_owned();
    if let Err(error) = print(&ConnectEvent::Progress { message }) {
        debug!(%error, "Nobody reads the events");
    }
}

/// Tells that the session is ready. The last event: whoever started the session
/// need not wait any longer.
///
/// # Errors
/// When nobody listens any more, so that nobody knows of the session.
pub(crate) fn ready(context: &str, namespace: &str, server: &str) -> std::io::Result<()> {
    print(&ConnectEvent::Ready {
        context: context.to_owned(),
        namespace: namespace.to_owned(),
        server: server.to_owned(),
    })?;
    close()
}

/// Tells why there will be no session. The last event.
pub(crate) fn failed(failure: Failure) {
    if let Err(error) = print(&ConnectEvent::Failed(failure)).and_then(|()| close()) {
        debug!(%error, "Nobody reads the events");
    }
}

fn print(event: &ConnectEvent) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

/// Gives up the pipe but keeps the descriptor's number taken.
fn close() -> std::io::Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(null)?;
    Ok(())
}
