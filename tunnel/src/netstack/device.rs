//! The wire between one flow's stack and the host: at most one packet in,
//! packets out through the sink.

use std::cell::Cell;

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

use super::{PacketSink, Shared};
use crate::packet;

/// What a stack has last acknowledged; nothing before it has sent anything.
pub(super) type Acknowledged = Cell<Option<u32>>;

thread_local! {
    /// Where the next packet is built, so that each needs no allocation.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Lives as long as one call into the stack.
pub(super) struct HostDevice<'a> {
    mtu: u16,
    incoming: Option<&'a [u8]>,
    out: ToSink<'a>,
}

impl<'a> HostDevice<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        acknowledged: &'a Acknowledged,
        incoming: Option<&'a [u8]>,
    ) -> Self {
        let checksum = if shared.config.partial_checksums {
            packet::Checksum::Partial
        } else {
            packet::Checksum::Complete
        };
        Self {
            mtu: shared.config.mtu,
            incoming,
            out: ToSink {
                sink: &*shared.sink,
                acknowledged,
                checksum,
            },
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
        Some((Incoming { packet }, self.out))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSink<'_>> {
        Some(self.out)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu.into();
        // Incoming checksums have been verified before the flow was looked up.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = match self.out.checksum {
            packet::Checksum::Complete => Checksum::Tx,
            packet::Checksum::Partial => Checksum::None,
        };
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

/// Takes the TCP packets that a stack makes.
#[derive(Clone, Copy)]
pub(super) struct ToSink<'a> {
    sink: &'a dyn PacketSink,
    acknowledged: &'a Acknowledged,
    checksum: packet::Checksum,
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
        let packet = &mut scratch[..length];
        let result = f(packet);
        self.acknowledged.set(packet::acknowledged(packet));
        if self.checksum == packet::Checksum::Partial {
            packet::fill_partial_checksum(packet);
        }
        self.sink.send(packet, self.checksum);
        SCRATCH.set(scratch);
        result
    }
}
