//! One connection's TCP/IP: an interface that takes any address, and a socket.

use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpListenEndpoint};

use super::buffers::Buffers;
use super::device::{Acknowledged, HostDevice};
use super::{Shared, clock};
use crate::flow::FiveTuple;

/// How long the host may acknowledge nothing: neither our SYN, nor what is left
/// of a connection that nobody holds any more.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    acknowledged: Acknowledged,
    /// The last to be dropped: the socket's rings lie in it.
    _buffers: Buffers,
}

impl Stack {
    /// Makes a stack that waits for the flow's SYN.
    pub(super) fn new(shared: &Shared, five_tuple: &FiveTuple, now: SmolInstant) -> Self {
        let (mut socket, buffers) = Buffers::socket(shared.config.tcp_buffer);
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_tsval_generator(Some(clock::timestamp));
        socket.set_timeout(Some(SILENCE_LIMIT.into()));
        let endpoint = IpListenEndpoint::from(five_tuple.cluster);
        if let Err(error) = socket.listen(endpoint) {
            // Only for port 0, which no packet comes through with.
            tracing::warn!(%error, %endpoint, "cannot listen");
        }

        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = shared.table.seed(five_tuple);
        let acknowledged = Acknowledged::default();
        let mut device = HostDevice::new(shared, &acknowledged, None);
        let mut interface = Interface::new(config, &mut device, now);
        interface.set_any_ip(true);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            interface,
            sockets,
            handle,
            acknowledged,
            _buffers: buffers,
        }
    }

    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(super) fn state(&self) -> State {
        self.sockets.get::<Socket>(self.handle).state()
    }

    /// Tells whether the host has acknowledged everything but our FIN.
    pub(super) fn waits_for_fin(&self) -> bool {
        let socket = self.sockets.get::<Socket>(self.handle);
        let has_closed = matches!(
            socket.state(),
            State::FinWait1 | State::Closing | State::LastAck
        );
        has_closed && socket.send_queue() == 0
    }

    /// Tells whether the ring for what is received has room for a segment's bytes
    /// and its FIN.
    pub(super) fn has_room_for(&self, length: u32) -> bool {
        let socket = self.sockets.get::<Socket>(self.handle);
        let room = socket.recv_capacity() - socket.recv_queue();
        length as usize <= room + 1
    }

    /// The sequence number up to which the host was last told that all has come.
    pub(super) fn acknowledged(&self) -> Option<u32> {
        self.acknowledged.get()
    }

    pub(super) fn can_recv(&self) -> bool {
        self.sockets.get::<Socket>(self.handle).can_recv()
    }

    pub(super) fn can_send(&self) -> bool {
        self.sockets.get::<Socket>(self.handle).can_send()
    }

    /// Takes one packet of the host; what answers at once goes out.
    pub(super) fn ingress(&mut self, shared: &Shared, packet: &[u8], now: SmolInstant) {
        let is_opening = self.state() == State::SynReceived;
        let mut device = HostDevice::new(shared, &self.acknowledged, Some(packet));
        self.interface
            .poll_ingress_single(now, &mut device, &mut self.sockets);
        if is_opening && self.state() != State::SynReceived {
            // smoltcp's timeout would end a connection that is merely idle.
            self.socket().set_timeout(None);
        }
    }

    /// Sends all that may be sent.
    pub(super) fn egress(&mut self, shared: &Shared, now: SmolInstant) {
        let mut device = HostDevice::new(shared, &self.acknowledged, None);
        while self
            .interface
            .poll_egress(now, &mut device, &mut self.sockets)
            == PollResult::SocketStateChanged
        {}
    }

    /// When [`Self::egress`] has more to do.
    pub(super) fn poll_at(&mut self, now: SmolInstant) -> Option<SmolInstant> {
        self.interface.poll_at(now, &self.sockets)
    }

    /// Gives up on a silent host from now on.
    pub(super) fn orphan(&mut self) {
        self.socket().set_timeout(Some(SILENCE_LIMIT.into()));
    }
}
