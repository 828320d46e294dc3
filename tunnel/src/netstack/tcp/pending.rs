//! A SYN that waits until the far side has answered.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use kvpn_proto::flow::DialError;

use super::{Tcp, TcpFlow};
use crate::flow::FiveTuple;
use crate::netstack::Shared;
use crate::packet::{self, Checksum, Transport};

/// A connection that the host wants to open. The host waits, and repeats its
/// SYN, until it is accepted or refused; when this is dropped, until the
/// repeated SYN opens another.
pub struct PendingTcp {
    tcp: Arc<Tcp>,
    shared: Arc<Shared>,
    answered: bool,
}

impl PendingTcp {
    pub(in crate::netstack) fn new(tcp: Arc<Tcp>, shared: Arc<Shared>) -> Self {
        Self {
            tcp,
            shared,
            answered: false,
        }
    }

    pub fn five_tuple(&self) -> FiveTuple {
        self.tcp.five_tuple
    }

    /// Releases the SYN-ACK.
    pub fn accept(mut self, now: Instant) -> TcpFlow {
        self.answered = true;
        let now = self.shared.clock.advance(now);
        let mut connection = self.tcp.lock();
        connection.accept(&self.shared, &self.tcp.five_tuple, now);
        self.tcp.settle(&self.shared, connection, now);
        TcpFlow::new(self.tcp.clone(), self.shared.clone())
    }

    /// Lets the host's `connect` fail as the dial did: with RST when it was
    /// refused, with ICMP "destination unreachable" otherwise.
    pub fn refuse(mut self, error: DialError, now: Instant) {
        self.shared.clock.advance(now);
        let Some(syn) = self.end() else { return };
        let Ok(offending) = packet::parse(&syn, Checksum::Partial) else {
            return;
        };
        match (error, offending.transport) {
            (DialError::Refused, Transport::Tcp(segment)) => {
                if let Some(reset) = packet::reset(&offending.five_tuple, &segment) {
                    self.shared.send(&reset);
                }
            }
            (_, Transport::Tcp(_) | Transport::Udp(_)) => self.shared.send_unreachable(
                offending.five_tuple.cluster.ip(),
                offending.five_tuple.host.ip(),
                error,
                offending.bytes,
                now,
            ),
        }
    }

    fn end(&mut self) -> Option<Vec<u8>> {
        self.answered = true;
        let syn = self.tcp.lock().refuse();
        self.shared.table.remove_tcp(&self.tcp);
        syn
    }
}

impl Drop for PendingTcp {
    fn drop(&mut self) {
        if !self.answered {
            self.end();
        }
    }
}

impl fmt::Debug for PendingTcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingTcp({})", self.tcp.five_tuple)
    }
}
