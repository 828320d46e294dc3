//! The kernel's network configuration, over rtnetlink(7).

use std::future::Future;
use std::io;
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::LinkAttribute;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long the kernel may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// A conversation with the kernel.
pub(crate) struct Netlink {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            driver: tokio::spawn(connection),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Deletes the link when both its name and its index are these.
    pub(crate) async fn delete_link(&self, name: &str, index: u32) -> io::Result<()> {
        let found = run(self
            .handle
            .link()
            .get()
            .match_index(index)
            .execute()
            .try_next())
        .await;
        let link = match found {
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
            Ok(None) => return Ok(()),
            Ok(Some(link)) => link,
        };
        let is_named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(found) if found == name);
        if !link.attributes.iter().any(is_named) {
            return Ok(());
        }
        match run(self.handle.link().del(index).execute()).await {
            Err(error) if is_gone(&error) => Ok(()),
            outcome => outcome,
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Waits for a request, and turns its error into one with the kernel's number.
pub(crate) async fn run<T>(
    request: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> io::Result<T> {
    match timeout(DEADLINE, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(rtnetlink::Error::NetlinkError(message))) => Err(message.to_io()),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ENODEV)
}
