//! Holds the app back until the first claims are in force. Where the agent is a sidecar,
//! the kubelet starts the app when `sidecar-agent await-settled` has ended
//! (<https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/>).

use std::io::Read;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tracing::debug;

/// Name of the abstract socket, of which each pod has its own.
const SOCKET: &str = "kvpn-agent-settled";

/// How long the app is held back at most.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long until the agent is asked again that does not listen yet.
const AGAIN: Duration = Duration::from_millis(10);

/// Tells those who wait.
pub(crate) struct Settled(watch::Sender<bool>);

impl Settled {
    /// Nobody waits.
    pub(crate) fn unawaited() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Listens for those who wait.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let listener = UnixListener::bind_addr(&address()?).context("listen for who waits")?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let sender = watch::Sender::new(false);
        let settled = sender.subscribe();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut settled = settled.clone();
                tokio::spawn(async move {
                    if settled.wait_for(|settled| *settled).await.is_ok() {
                        // Who has gone waits no more.
                        let _ = stream.write_all(b".").await;
                    }
                });
            }
            debug!("Nobody is told any more that claims are in force");
        });
        Ok(Self(sender))
    }

    /// The claims are in force, as far as they can be.
    pub(crate) fn tell(&self) {
        self.0
            .send_if_modified(|settled| !std::mem::replace(settled, true));
    }
}

/// Waits until the agent of this pod has settled, but not for ever. It hardly fails, as
/// the kubelet would end the agent, and with it keep the app from starting.
pub(crate) fn wait() -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let address = address()?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // The app is not to suffer from it.
            return Ok(());
        }
        if let Ok(mut stream) = UnixStream::connect_addr(&address) {
            let is_told = stream.set_read_timeout(Some(left)).is_ok()
                && stream.read(&mut [0]).is_ok_and(|read| read > 0);
            if is_told {
                return Ok(());
            }
        }
        sleep(AGAIN);
    }
}

fn address() -> anyhow::Result<SocketAddr> {
    SocketAddr::from_abstract_name(SOCKET).context("name a socket")
}
