//! Flows of the host, as the packets of a TUN.
//!
//! Every TCP flow has a small TCP/IP stack of its own behind a lock of its
//! own; packets find their flow by five-tuple. The netstack does no I/O and
//! reads no clock: packets and times come in as arguments, packets go out
//! through [`PacketSink`].
//!
//! Locks are taken in the order flow, timers; those of the table of flows, of the
//! pings, of fragments and of the budget for errors alone. Tasks are woken without
//! any.

mod buffers;
mod clock;
mod device;
mod icmp;
mod stack;
mod table;
mod tcp;
mod timers;
mod udp;

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::flow::FiveTuple;
use crate::packet::{self, Checksum, Ignored, Packet, Reassembler, Segment, Transport};
use clock::Clock;
use icmp::{Echoes, ErrorBudget};
use table::{Entry, Table};
use tcp::{Delivery, Tcp};
use timers::Timers;
use udp::Udp;

pub use icmp::EchoFlow;
pub use tcp::{PendingTcp, TcpFlow};
pub use udp::{Datagram, UdpFlow};

/// Settings of a [`Netstack`].
#[derive(Clone, Debug)]
pub struct NetstackConfig {
    /// The largest packet that goes to the host, in bytes.
    pub mtu: u16,
    /// How much each direction of a TCP flow buffers, in bytes.
    pub tcp_buffer: usize,
    /// How long a silent UDP flow lives.
    pub udp_idle: Duration,
    /// How long a silent UDP flow to port 53 lives.
    pub dns_idle: Duration,
    /// How many flows there may be; what would open another is dropped.
    pub max_flows: usize,
    /// Where TCP's initial sequence numbers come from. Must not be guessable.
    pub seed: u64,
    /// Whether the sink takes TCP packets whose checksum is left to the kernel.
    pub partial_checksums: bool,
    /// Whom a host sees that asks for the way to the cluster: the netstack, which
    /// is the first hop. The host must have a route to it, or it may take what
    /// comes from there for forged.
    pub hop_v4: Ipv4Addr,
    /// The same over IPv6.
    pub hop_v6: Ipv6Addr,
}

impl Default for NetstackConfig {
    fn default() -> Self {
        Self {
            mtu: u16::MAX,
            tcp_buffer: 256 << 10,
            udp_idle: Duration::from_secs(60),
            dns_idle: Duration::from_secs(10),
            max_flows: 65_536,
            seed: RandomState::new().hash_one("seed"),
            partial_checksums: false,
            hop_v4: Ipv4Addr::new(198, 18, 0, 2),
            hop_v6: Ipv6Addr::new(0xfd6b, 0x7670, 0x6e, 0, 0, 0, 0, 2),
        }
    }
}

/// Where packets for the host go. Called under a flow's lock: must not block,
/// and drops the packet when there is no room.
pub trait PacketSink: Send + Sync + 'static {
    /// `checksum` is [`Checksum::Partial`] for TCP only, and only when
    /// [`NetstackConfig::partial_checksums`] allows it.
    fn send(&self, packet: &[u8], checksum: Checksum);
}

/// A flow that the host has just opened.
#[derive(Debug)]
pub enum NewFlow {
    Tcp(PendingTcp),
    /// Its first datagram is there to be received.
    Udp(UdpFlow),
    /// Its first request is there to be received.
    Echo(EchoFlow),
}

/// How much there is and was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Flows that are open now; connections in TIME-WAIT count.
    pub open_flows: u64,
    /// Payload that flows have received from the host.
    pub bytes_to_cluster: u64,
    /// Payload that flows have sent to the host.
    pub bytes_from_cluster: u64,
    /// Datagrams of the host that were lost because their flow's holder did not
    /// take them in time.
    pub datagrams_dropped: u64,
}

/// The flows of one TUN.
pub struct Netstack {
    shared: Arc<Shared>,
}

/// What flows and the netstack share.
struct Shared {
    config: NetstackConfig,
    sink: Box<dyn PacketSink>,
    clock: Clock,
    table: Table,
    timers: Timers,
    echoes: Echoes,
    errors: ErrorBudget,
    fragments: Mutex<Reassembler>,
    /// Of the packets that go to the host in fragments.
    identification: AtomicU32,
    bytes_to_cluster: AtomicU64,
    bytes_from_cluster: AtomicU64,
    datagrams_dropped: AtomicU64,
}

impl Netstack {
    pub fn new(config: NetstackConfig, sink: impl PacketSink) -> Self {
        Self {
            shared: Arc::new(Shared {
                table: Table::new(config.max_flows, config.seed),
                config,
                sink: Box::new(sink),
                clock: Clock::default(),
                timers: Timers::default(),
                echoes: Echoes::default(),
                errors: ErrorBudget::default(),
                fragments: Mutex::default(),
                identification: AtomicU32::new(0),
                bytes_to_cluster: AtomicU64::new(0),
                bytes_from_cluster: AtomicU64::new(0),
                datagrams_dropped: AtomicU64::new(0),
            }),
        }
    }

    /// Takes a packet that the host sent into the TUN; returns the flow that it
    /// opens, if it does. What cannot be a flow's is ignored.
    pub fn handle_tun_packet(
        &self,
        packet: &[u8],
        checksum: Checksum,
        now: Instant,
    ) -> Option<NewFlow> {
        self.shared.clock.advance(now);
        match packet::without_extensions(packet) {
            Some(plain) => self.handle_plain_packet(&plain, checksum, false, now),
            None => self.handle_plain_packet(packet, checksum, false, now),
        }
    }

    fn handle_plain_packet(
        &self,
        packet: &[u8],
        checksum: Checksum,
        is_reassembled: bool,
        now: Instant,
    ) -> Option<NewFlow> {
        match packet::parse(packet, checksum) {
            Ok(packet) if packet.hop_limit <= 1 => {
                let host = packet.five_tuple.host.ip();
                self.shared.send_time_exceeded(host, packet.bytes, now);
                None
            }
            Ok(mut packet) => {
                // What the host has cut may be cut again.
                packet.dont_fragment &= !is_reassembled;
                match packet.transport {
                    Transport::Tcp(segment) => self.handle_segment(&packet, &segment, now),
                    Transport::Udp(payload) => self.handle_datagram(&packet, payload, now),
                }
            }
            Err(Ignored::Fragment) if !is_reassembled => {
                let packet = self.shared.reassemble(packet, now)?;
                let plain = packet::without_extensions(&packet).unwrap_or(packet);
                self.handle_plain_packet(&plain, Checksum::Complete, true, now)
            }
            Err(Ignored::Protocol) => self.handle_echo(packet, is_reassembled, now),
            Err(reason) => {
                tracing::trace!(%reason, "packet ignored");
                None
            }
        }
    }

    /// When [`Self::handle_timeout`] wants to be called next, or earlier.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.shared.timers.next()
    }

    /// Wakes `waker`, once, when [`Self::poll_timeout`] has become earlier:
    /// flows set timers too.
    pub fn register_timeout_waker(&self, waker: &Waker) {
        self.shared.timers.register(waker);
    }

    /// Does what is due: retransmissions, ends of TIME-WAIT, expiry.
    pub fn handle_timeout(&self, now: Instant) {
        self.shared.clock.advance(now);
        for timer in self.shared.timers.take_due(now) {
            match self.shared.table.get(&timer.five_tuple) {
                Some(Entry::Tcp(tcp)) => tcp.handle_timeout(&self.shared, timer.at, now),
                Some(Entry::Udp(udp)) => udp.handle_timeout(&self.shared, timer.at, now),
                None => {}
            }
        }
    }

    /// Connections on which the host has said nothing for `limit`, and which it has
    /// not closed.
    pub fn silent(&self, limit: Duration, now: Instant) -> Vec<FiveTuple> {
        let now = self.shared.clock.advance(now);
        let tcp = self.shared.table.tcp().into_iter();
        tcp.filter(|tcp| tcp.is_silent(limit, now))
            .map(|tcp| tcp.five_tuple)
            .collect()
    }

    /// Asks the host whether it still knows a connection: the device may have
    /// dropped its RST. One that the host knows, or says nothing about, stays.
    pub fn ask(&self, five_tuple: &FiveTuple) {
        if let Some(Entry::Tcp(tcp)) = self.shared.table.get(five_tuple) {
            tcp.ask(&self.shared);
        }
    }

    pub fn counters(&self) -> Counters {
        Counters {
            open_flows: (self.shared.table.len() + self.shared.echoes.len()) as u64,
            bytes_to_cluster: self.shared.bytes_to_cluster.load(Ordering::Relaxed),
            bytes_from_cluster: self.shared.bytes_from_cluster.load(Ordering::Relaxed),
            datagrams_dropped: self.shared.datagrams_dropped.load(Ordering::Relaxed),
        }
    }

    fn handle_segment(
        &self,
        packet: &Packet<'_>,
        segment: &Segment,
        now: Instant,
    ) -> Option<NewFlow> {
        let shared = &self.shared;
        // A flow may turn out to be over, and leaves the table; then the
        // segment belongs to none, or opens one.
        while let Some(Entry::Tcp(tcp)) = shared.table.get(&packet.five_tuple) {
            match tcp.handle_segment(shared, packet.bytes, segment, now) {
                Delivery::Taken => return None,
                Delivery::Over => {}
            }
        }
        if segment.opens() {
            let tcp = Arc::new(Tcp::pending(
                packet.five_tuple,
                packet.bytes,
                segment.sequence,
            ));
            return shared
                .table
                .insert(Entry::Tcp(tcp.clone()))
                .then(|| NewFlow::Tcp(PendingTcp::new(tcp, shared.clone())));
        }
        if let Some(reset) = packet::reset(&packet.five_tuple, segment) {
            shared.sink.send(&reset, Checksum::Complete);
        }
        None
    }

    fn handle_datagram(
        &self,
        packet: &Packet<'_>,
        payload: &[u8],
        now: Instant,
    ) -> Option<NewFlow> {
        let shared = &self.shared;
        while let Some(Entry::Udp(udp)) = shared.table.get(&packet.five_tuple) {
            if udp.handle_datagram(shared, packet, payload, now) {
                return None;
            }
            shared.table.remove_udp(&udp);
        }
        let udp = Arc::new(Udp::new(packet.five_tuple, now));
        udp.handle_datagram(shared, packet, payload, now);
        if !shared.table.insert(Entry::Udp(udp.clone())) {
            return None;
        }
        udp.schedule(shared);
        Some(NewFlow::Udp(UdpFlow::new(udp, shared.clone())))
    }

    fn handle_echo(&self, packet: &[u8], is_reassembled: bool, now: Instant) -> Option<NewFlow> {
        let mut request = match packet::parse_echo(packet) {
            Ok(request) => request,
            Err(reason) => {
                tracing::trace!(%reason, "packet ignored");
                return None;
            }
        };
        if request.hop_limit <= 1 {
            self.shared
                .send_time_exceeded(request.id.host, request.bytes, now);
            return None;
        }
        request.dont_fragment &= !is_reassembled;
        let echo = self.shared.echoes.handle(&request)?;
        Some(NewFlow::Echo(EchoFlow::new(echo, self.shared.clone())))
    }
}

impl Shared {
    fn count_to_cluster(&self, bytes: usize) {
        self.bytes_to_cluster
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_from_cluster(&self, bytes: usize) {
        self.bytes_from_cluster
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn count_dropped_datagram(&self) {
        self.datagrams_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a fragment of the host; returns the packet that it completes.
    fn reassemble(&self, fragment: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.fragments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(fragment, now)
    }

    fn next_identification(&self) -> u32 {
        self.identification.fetch_add(1, Ordering::Relaxed)
    }

    fn idle_limit(&self, five_tuple: &FiveTuple) -> Duration {
        if five_tuple.cluster.port() == 53 {
            self.config.dns_idle
        } else {
            self.config.udp_idle
        }
    }
}

impl std::fmt::Debug for Netstack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netstack")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
