//! A host, a wire, a netstack, and a clock that only tests move.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};

use crate::netstack::{
    EchoFlow, Netstack, NetstackConfig, NewFlow, PacketSink, PendingTcp, TcpFlow, UdpFlow,
};
use crate::packet::Checksum;

pub(crate) use crate::seeds::{Rng, pattern};

pub(crate) const HOST_V4: &str = "198.18.0.1";
pub(crate) const HOST_V6: &str = "fd6b:7670:6e::1";
pub(crate) const HOP_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);
pub(crate) const HOP_V6: Ipv6Addr = Ipv6Addr::new(0xfd6b, 0x7670, 0x6e, 7, 0, 0, 0, 2);
pub(crate) const POD_V4: &str = "10.1.2.3:80";
pub(crate) const POD_V6: &str = "[fd00:10::3]:80";

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Packets on their way to the host.
#[derive(Clone, Default)]
pub(crate) struct Wire(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl PacketSink for Wire {
    fn send(&self, packet: &[u8], _: Checksum) {
        self.0.lock().unwrap().push_back(packet.to_vec());
    }
}

impl Wire {
    pub(crate) fn take(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().drain(..).collect()
    }
}

/// What a wire does to packets of one direction; returns those that arrive now.
pub(crate) type Meddler = Box<dyn FnMut(Vec<Vec<u8>>) -> Vec<Vec<u8>>>;

pub(crate) struct Lab {
    pub(crate) netstack: Netstack,
    pub(crate) wire: Wire,
    pub(crate) now: Instant,
    pub(crate) new_flows: Vec<NewFlow>,
    to_host: Meddler,
    to_netstack: Meddler,
    start: Instant,
    host: Host,
}

struct Host {
    interface: Interface,
    device: HostEnd,
    sockets: SocketSet<'static>,
    next_port: u16,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(NetstackConfig {
            seed: 7,
            hop_v4: HOP_V4,
            hop_v6: HOP_V6,
            ..NetstackConfig::default()
        })
    }

    pub(crate) fn with(config: NetstackConfig) -> Self {
        let wire = Wire::default();
        let mut device = HostEnd::default();
        let mut interface = Interface::new(
            Config::new(HardwareAddress::Ip),
            &mut device,
            SmolInstant::ZERO,
        );
        interface.update_ip_addrs(|addresses| {
            for (ip, length) in [(HOST_V4, 32), (HOST_V6, 128)] {
                let ip: IpAddr = ip.parse().unwrap();
                addresses.push(IpCidr::new(ip.into(), length)).unwrap();
            }
        });
        let start = Instant::now();
        Self {
            netstack: Netstack::new(config, wire.clone()),
            wire,
            now: start,
            new_flows: Vec::new(),
            to_host: Box::new(|packets| packets),
            to_netstack: Box::new(|packets| packets),
            start,
            host: Host {
                interface,
                device,
                sockets: SocketSet::new(Vec::new()),
                next_port: 40_000,
            },
        }
    }

    pub(crate) fn meddle(&mut self, to_host: Meddler, to_netstack: Meddler) {
        self.to_host = to_host;
        self.to_netstack = to_netstack;
    }

    /// From now on nothing arrives.
    pub(crate) fn cut(&mut self) {
        self.meddle(Box::new(|_| Vec::new()), Box::new(|_| Vec::new()));
    }

    /// From now on everything arrives.
    pub(crate) fn mend(&mut self) {
        self.meddle(Box::new(|packets| packets), Box::new(|packets| packets));
    }

    /// Starts a connection of the host.
    pub(crate) fn connect(&mut self, to: &str) -> SocketHandle {
        self.host.next_port += 1;
        self.connect_from(to, self.host.next_port)
    }

    pub(crate) fn connect_from(&mut self, to: &str, port: u16) -> SocketHandle {
        let to = address(to);
        let from: IpAddr = match to {
            SocketAddr::V4(_) => HOST_V4.parse().unwrap(),
            SocketAddr::V6(_) => HOST_V6.parse().unwrap(),
        };
        let buffer = || SocketBuffer::new(vec![0; 128 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_tsval_generator(Some(|| 1));
        socket
            .connect(
                self.host.interface.context(),
                IpEndpoint::from(to),
                IpEndpoint::from(SocketAddr::new(from, port)),
            )
            .unwrap();
        let handle = self.host.sockets.add(socket);
        self.settle();
        handle
    }

    /// A connection that the netstack has accepted.
    pub(crate) fn established(&mut self, to: &str) -> (SocketHandle, TcpFlow) {
        let handle = self.connect(to);
        let flow = self.pending().accept(self.now);
        self.settle();
        assert_eq!(self.socket(handle).state(), State::Established);
        (handle, flow)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.host.sockets.get_mut(handle)
    }

    pub(crate) fn forget(&mut self, handle: SocketHandle) {
        self.host.sockets.remove(handle);
    }

    /// The only new flow.
    pub(crate) fn pending(&mut self) -> PendingTcp {
        assert_eq!(self.new_flows.len(), 1, "{:?}", self.new_flows);
        match self.new_flows.pop().unwrap() {
            NewFlow::Tcp(pending) => pending,
            NewFlow::Udp(flow) => panic!("{flow:?}"),
            NewFlow::Echo(flow) => panic!("{flow:?}"),
        }
    }

    /// The only new flow.
    pub(crate) fn udp(&mut self) -> UdpFlow {
        assert_eq!(self.new_flows.len(), 1, "{:?}", self.new_flows);
        match self.new_flows.pop().unwrap() {
            NewFlow::Udp(flow) => flow,
            NewFlow::Tcp(pending) => panic!("{pending:?}"),
            NewFlow::Echo(flow) => panic!("{flow:?}"),
        }
    }

    /// The only new flow.
    pub(crate) fn echo(&mut self) -> EchoFlow {
        assert_eq!(self.new_flows.len(), 1, "{:?}", self.new_flows);
        match self.new_flows.pop().unwrap() {
            NewFlow::Echo(flow) => flow,
            NewFlow::Tcp(pending) => panic!("{pending:?}"),
            NewFlow::Udp(flow) => panic!("{flow:?}"),
        }
    }

    /// Gives the netstack a packet that no socket of the host made.
    pub(crate) fn inject(&mut self, packet: &[u8]) {
        let flow = self
            .netstack
            .handle_tun_packet(packet, Checksum::Complete, self.now);
        self.new_flows.extend(flow);
    }

    /// Moves packets until none is under way. Takes no time.
    pub(crate) fn settle(&mut self) {
        while self.exchange() {}
    }

    fn exchange(&mut self) -> bool {
        if self
            .netstack
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            self.netstack.handle_timeout(self.now);
        }
        let to_host = (self.to_host)(self.wire.take());
        let mut moved = !to_host.is_empty();
        self.host.device.arriving.extend(to_host);
        let now = self.host_now();
        self.host
            .interface
            .poll(now, &mut self.host.device, &mut self.host.sockets);
        let to_netstack = (self.to_netstack)(std::mem::take(&mut self.host.device.leaving));
        moved |= !to_netstack.is_empty();
        for packet in to_netstack {
            self.inject(&packet);
        }
        moved
    }

    /// Lets time pass, from deadline to deadline.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some(at) = self.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// Lets time pass until the next deadline of either side.
    pub(crate) fn skip(&mut self) {
        let at = self.next_deadline().expect("something is under way");
        self.now = self.now.max(at);
        self.settle();
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        let now = self.host_now();
        // A host that wants to be polled "now" has just been.
        let host = self
            .host
            .interface
            .poll_at(now, &self.host.sockets)
            .map(|at| at.max(now + smoltcp::time::Duration::from_millis(1)))
            .map(|at| self.start + Duration::from_micros(at.total_micros().cast_unsigned()));
        host.into_iter().chain(self.netstack.poll_timeout()).min()
    }

    fn host_now(&self) -> SmolInstant {
        let elapsed = self.now.duration_since(self.start);
        SmolInstant::from_micros(i64::try_from(elapsed.as_micros()).unwrap())
    }
}

/// The host's end of the wire.
#[derive(Default)]
pub(crate) struct HostEnd {
    pub(crate) arriving: VecDeque<Vec<u8>>,
    pub(crate) leaving: Vec<Vec<u8>>,
}

impl Device for HostEnd {
    type RxToken<'a> = Arriving;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Arriving, Leaving<'_>)> {
        let packet = self.arriving.pop_front()?;
        Some((Arriving(packet), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 65_535;
        capabilities
    }
}

pub(crate) struct Arriving(Vec<u8>);

impl RxToken for Arriving {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(crate) struct Leaving<'a>(&'a mut Vec<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push(packet);
        result
    }
}

/// Counts how often a task was woken.
#[derive(Debug, Default)]
pub(crate) struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    pub(crate) fn new() -> (Arc<Self>, Waker) {
        let woken = Arc::new(Self::default());
        (woken.clone(), woken.into())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Reads once; `None` when there is nothing to read yet.
pub(crate) fn read(lab: &Lab, flow: &TcpFlow, buffer: &mut [u8]) -> Option<std::io::Result<usize>> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut read = 0;
    let take = |data: &[u8]| {
        let length = data.len().min(buffer.len() - read);
        buffer[read..read + length].copy_from_slice(&data[..length]);
        read += length;
        length
    };
    match flow.poll_read(&mut cx, take, lab.now) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

/// Writes once; `None` when there is no room.
pub(crate) fn write(lab: &Lab, flow: &TcpFlow, data: &[u8]) -> Option<std::io::Result<usize>> {
    let mut cx = Context::from_waker(Waker::noop());
    match flow.poll_write(&mut cx, data, lab.now) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

/// Sends both ways at once until all has arrived; both must arrive unchanged.
pub(crate) fn exchange_bytes(lab: &mut Lab, host: SocketHandle, flow: &TcpFlow, length: usize) {
    let (up, down) = (pattern(length, 3), pattern(length, 5));
    let (mut up_sent, mut down_sent) = (0, 0);
    let (mut up_read, mut down_read) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    let deadline = lab.now + Duration::from_secs(3_600);
    while up_read.len() < length || down_read.len() < length {
        let before = (up_sent, down_sent, up_read.len(), down_read.len());
        up_sent += lab.socket(host).send_slice(&up[up_sent..]).unwrap();
        if let Some(count) = write(lab, flow, &down[down_sent..]) {
            down_sent += count.unwrap();
        }
        lab.settle();
        while let Some(count) = read(lab, flow, &mut buffer) {
            up_read.extend_from_slice(&buffer[..count.unwrap()]);
        }
        let count = lab.socket(host).recv_slice(&mut buffer).unwrap();
        down_read.extend_from_slice(&buffer[..count]);
        lab.settle();
        if before == (up_sent, down_sent, up_read.len(), down_read.len()) {
            lab.skip();
        }
        assert!(lab.now < deadline, "stalled");
    }
    assert!(up_read == up, "bytes of the host have changed");
    assert!(down_read == down, "bytes of the cluster have changed");
}
