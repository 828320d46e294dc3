//! An accepted connection, as its holder sees it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::Tcp;
use crate::flow::FiveTuple;
use crate::netstack::Shared;

/// A byte stream from and to the host, whose directions end one by one.
///
/// Dropping it resets the connection unless both directions have ended; what
/// is then still under way, TIME-WAIT included, goes on in the netstack.
pub struct TcpFlow {
    tcp: Arc<Tcp>,
    shared: Arc<Shared>,
}

impl TcpFlow {
    pub(super) fn new(tcp: Arc<Tcp>, shared: Arc<Shared>) -> Self {
        Self { tcp, shared }
    }

    pub fn five_tuple(&self) -> FiveTuple {
        self.tcp.five_tuple
    }

    /// Gives what the host has sent to `take`, which says how much of it it has
    /// taken, and may be called twice; 0 taken in all is the host's FIN.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionReset`] when either side has reset.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        take: impl FnMut(&[u8]) -> usize,
        now: Instant,
    ) -> Poll<io::Result<usize>> {
        let now = self.shared.clock.advance(now);
        let mut connection = self.tcp.lock();
        let result = connection.read(cx, take);
        if let Poll::Ready(Ok(length @ 1..)) = result {
            self.shared.count_to_cluster(length);
            // The window has grown, and smoltcp tells nobody by itself.
            self.tcp.settle(&self.shared, connection, now);
        }
        result
    }

    /// Sends to the host as much as fits.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionReset`] when either side has reset,
    /// [`io::ErrorKind::BrokenPipe`] after [`Self::shutdown_write`].
    pub fn poll_write(
        &self,
        cx: &mut Context<'_>,
        data: &[u8],
        now: Instant,
    ) -> Poll<io::Result<usize>> {
        let now = self.shared.clock.advance(now);
        let mut connection = self.tcp.lock();
        let result = connection.write(cx, data);
        if let Poll::Ready(Ok(length @ 1..)) = result {
            self.shared.count_from_cluster(length);
            self.tcp.settle(&self.shared, connection, now);
        }
        result
    }

    /// Sends FIN after what has been written.
    pub fn shutdown_write(&self, now: Instant) {
        let now = self.shared.clock.advance(now);
        let mut connection = self.tcp.lock();
        connection.shutdown_write();
        self.tcp.settle(&self.shared, connection, now);
    }

    /// Sends RST.
    pub fn reset(&self, now: Instant) {
        let now = self.shared.clock.advance(now);
        let mut connection = self.tcp.lock();
        connection.reset();
        self.tcp.settle(&self.shared, connection, now);
    }
}

impl Drop for TcpFlow {
    fn drop(&mut self) {
        let Some(now) = self.shared.clock.latest() else {
            return;
        };
        let now = self.shared.clock.advance(now);
        let mut connection = self.tcp.lock();
        connection.release();
        self.tcp.settle(&self.shared, connection, now);
    }
}

impl fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpFlow({})", self.tcp.five_tuple)
    }
}
