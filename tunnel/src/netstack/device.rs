//! The wire between one flow's stack and the host: at most one packet in,
//! packets out through the sink.

use std::cell::Cell;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::PacketSink;

thread_local! {
    /// Where the next packet is built, so that each needs no allocation.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lives as long as one call into the stack.
pub(super) struct HostDevice<'a> {
    mtu: u16,
    incoming: Option<&'a [u8]>,
    sink: &'a dyn PacketSink,
}

impl<'a> HostDevice<'a> {
    pub(super) fn new(mtu: u16, incoming: Option<&'a [u8]>, sink: &'a dyn PacketSink) -> Self {
        Self {
            mtu,
            incoming,
            sink,
        }
    }
}

impl Device for HostDevice<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = ToSink<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, ToSink<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming { packet }, ToSink { sink: self.sink }))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSink<'_>> {
        Some(ToSink { sink: self.sink })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu.into();
        // Incoming checksums have been verified before the flow was looked up.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

pub(super) struct Incoming<'a> {
    packet: &'a [u8],
}

impl RxToken for Incoming<'_> {
    fn consume<R, F>(self, f: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        f(self.packet)
    }
}

pub(super) struct ToSink<'a> {
    sink: &'a dyn PacketSink,
}

impl TxToken for ToSink<'_> {
    fn consume<R, F>(self, length: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        let mut scratch = SCRATCH.take();
        if scratch.len() < length {
            scratch.resize(length, 0);
        }
        let result = f(&mut scratch[..length]);
        self.sink.send(&scratch[..length]);
        SCRATCH.set(scratch);
        result
    }
}
