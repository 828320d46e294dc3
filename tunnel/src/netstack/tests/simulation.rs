//! Many flows at once over a bad wire, against a model of what each must see.
//!
//! Beside the netstack runs a second TCP in the part of the host's kernel, with
//! applications that do what their plan says, and holders of flows that do what
//! theirs says: echo, send, read slowly, end either direction first, reset,
//! refuse, answer late or never. Holders act only when they are woken.

mod connection;
mod exchange;
mod kernel;
mod path;
mod plan;
mod reading;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::lab::{HOST_V4, HOST_V6, HostEnd, Rng, Wire};
use crate::netstack::{Netstack, NetstackConfig, NewFlow};
use crate::packet::{self, Checksum, Reassembler, Transport};
use crate::seeds::seeds;
use connection::Connection;
use exchange::Exchange;
use kernel::Said;
use path::{Path, Quality};
use plan::{End, Pace, Plan};
use reading::{segment_of, unreachable_of, whole};

const FIRST_TCP_PORT: u16 = 30_000;
const FIRST_UDP_PORT: u16 = 50_000;

/// In invented time.
const DEADLINE: Duration = Duration::from_secs(900);

/// Many times what honest flows take.
const MOST_STEPS: u32 = 200_000;

/// Longer than anything stays on the wire.
const QUIET: Duration = Duration::from_secs(1);

#[test]
fn every_flow_sees_what_it_must_over_a_bad_wire() {
    for seed in seeds(16) {
        World::new(seed).run();
    }
}

struct World {
    netstack: Netstack,
    wire: Wire,
    start: Instant,
    now: Instant,
    interface: Interface,
    device: HostEnd,
    sockets: SocketSet<'static>,
    to_host: Path,
    to_netstack: Path,
    /// What the host's TCP has said last, by port.
    said: HashMap<u16, Said>,
    /// Puts together what arrives at the host in fragments.
    at_host: Reassembler,
    /// Knows when the netstack has a whole datagram.
    at_netstack: Reassembler,
    /// Not yet started, the first to start last.
    planned: Vec<Plan>,
    running: Vec<Connection>,
    exchanges: Vec<Exchange>,
    /// Bytes that holders of finished connections have received and sent.
    moved: (usize, usize),
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mtu = [1_280, 1_500, 9_000, u16::MAX][rng.below(4) as usize];
        let config = NetstackConfig {
            mtu,
            // As those of the host; see `Connection::connect`.
            tcp_buffer: [4_096, 32_768, 65_535][rng.below(3) as usize],
            seed,
            ..NetstackConfig::default()
        };
        let wire = Wire::default();
        let mut device = HostEnd::default();
        let mut host = Config::new(HardwareAddress::Ip);
        host.random_seed = seed;
        let mut interface = Interface::new(host, &mut device, SmolInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for (ip, length) in [(HOST_V4, 32), (HOST_V6, 128)] {
                let ip: std::net::IpAddr = ip.parse().unwrap();
                addresses.push(IpCidr::new(ip.into(), length)).unwrap();
            }
        });
        let quality = Quality::random(&mut rng);
        // A TUN keeps order. smoltcp 0.14 relies on it: it would believe what an
        // old segment says of the window (RFC 9293 section 3.10.7.4, SND.WL1).
        let in_order = Quality {
            jitter: Duration::ZERO,
            ..quality
        };
        // Few ports, so that connections follow each other on the same one.
        let mut planned: Vec<_> = (0..10 + rng.below(50))
            .map(|_| {
                let port = FIRST_TCP_PORT + rng.below(30) as u16;
                let mut plan = Plan::random(&mut rng, port);
                if !quality.is_good() {
                    // In smoltcp 0.14 the timer that probes a closed window takes
                    // the place of the one that repeats what was lost.
                    plan.host_pace = Pace::QUICK;
                }
                plan
            })
            .collect();
        planned.sort_by_key(|plan| std::cmp::Reverse(plan.start));
        let start = Instant::now();
        let exchanges = (0..rng.below(6) as u16)
            .map(|number| Exchange::random(&mut rng, FIRST_UDP_PORT + number, start))
            .collect();
        Self {
            netstack: Netstack::new(config, wire.clone()),
            wire,
            start,
            now: start,
            interface,
            device,
            sockets: SocketSet::new(Vec::new()),
            to_host: Path::new(quality, rng.next()),
            to_netstack: Path::new(in_order, rng.next()),
            said: HashMap::new(),
            at_host: Reassembler::default(),
            at_netstack: Reassembler::default(),
            planned,
            running: Vec::new(),
            exchanges,
            moved: (0, 0),
        }
    }

    fn run(mut self) {
        for turn in 0.. {
            self.step();
            if self.is_over() {
                break;
            }
            let next = self.next_event();
            let next = next.unwrap_or_else(|| panic!("nothing is under way: {:?}", self.running));
            self.now = self.now.max(next);
            assert!(
                self.now < self.start + DEADLINE && turn < MOST_STEPS,
                "stalled at {:?} in step {turn}: {:?} {:?}",
                self.now - self.start,
                self.netstack,
                self.running
            );
        }
        // Whatever is lost now is not sent again in this life.
        self.to_host.quality = Quality::PERFECT;
        self.to_netstack.quality = Quality::PERFECT;
        while let Some(next) = self.next_event()
            && next < self.now + 2 * DEADLINE
        {
            self.now = self.now.max(next);
            self.step();
        }
        let counters = self.netstack.counters();
        assert_eq!(counters.open_flows, 0, "flows are left over");
        assert_eq!(self.netstack.poll_timeout(), None, "timers are left over");
        let udp = self.exchanges.iter();
        let (received, sent) = udp.fold(self.moved, |(received, sent), exchange| {
            (received + exchange.received, sent + exchange.sent)
        });
        assert_eq!(counters.bytes_to_cluster, received as u64);
        assert_eq!(counters.bytes_from_cluster, sent as u64);
    }

    fn is_over(&self) -> bool {
        let exchanges_are_over = self.exchanges.iter().all(Exchange::is_over);
        self.planned.is_empty() && self.running.is_empty() && exchanges_are_over
    }

    /// Does all that is due.
    fn step(&mut self) {
        self.start_connections();
        self.deliver_to_netstack();
        if self
            .netstack
            .poll_timeout()
            .is_some_and(|at| at <= self.now)
        {
            self.netstack.handle_timeout(self.now);
        }
        self.deliver_to_host();
        self.poll_host();
        for connection in &mut self.running {
            connection.act_as_host(&mut self.sockets, self.now);
        }
        self.poll_host();
        for connection in &mut self.running {
            connection.clean_up(&mut self.sockets);
            connection.act_as_cluster(self.now);
        }
        for exchange in &mut self.exchanges {
            while let Some(packets) = exchange.send(self.now) {
                for packet in packets {
                    self.to_netstack.send(&packet, true, self.now);
                }
            }
            exchange.act(self.now);
        }
        for packet in std::mem::take(&mut self.device.leaving) {
            self.send_to_netstack(&packet);
        }
        for packet in self.wire.take() {
            // Nobody repeats a reset, and who only reads would wait for ever.
            let droppable = !segment_of(&packet).is_some_and(|(_, segment)| segment.rst);
            self.to_host.send(&packet, droppable, self.now);
        }
        let (over, running) = std::mem::take(&mut self.running)
            .into_iter()
            .partition::<Vec<_>, _>(Connection::is_over);
        self.running = running;
        for connection in over {
            connection.check();
            connection.forget(&mut self.sockets);
            self.moved.0 += connection.cluster.received;
            self.moved.1 += connection.cluster.sent;
            // Its port is free again after a while.
            let port = connection.plan.port;
            for plan in self.planned.iter_mut().filter(|plan| plan.port == port) {
                plan.start = plan.start.max(self.now + QUIET - self.start);
            }
        }
    }

    fn send_to_netstack(&mut self, packet: &[u8]) {
        let Some((ends, segment)) = segment_of(packet) else {
            return self.to_netstack.send(packet, true, self.now);
        };
        let port = ends.host.port();
        let packet = self.said.entry(port).or_default().note(packet, &segment);
        // Nobody repeats a reset, and a holder who only reads would wait for ever.
        // A reset counts only where the bytes before it have arrived, and nobody
        // repeats those either.
        let aborts = self.running.iter().any(|connection| {
            connection.plan.port == port && matches!(connection.plan.end, End::HostAborts(_))
        });
        let droppable = !segment.rst && !aborts;
        self.to_netstack.send(&packet, droppable, self.now);
        if segment.rst {
            self.to_netstack.send(&packet, false, self.now + QUIET / 2);
        }
    }

    fn start_connections(&mut self) {
        let now = self.now - self.start;
        let is_free = |running: &[Connection], port| {
            running
                .iter()
                .all(|connection| connection.plan.port != port)
        };
        while let Some(due) = self
            .planned
            .iter()
            .rposition(|plan| plan.start <= now && is_free(&self.running, plan.port))
        {
            let mut connection = Connection::new(self.planned.remove(due));
            connection.connect(&mut self.interface, &mut self.sockets);
            self.running.push(connection);
        }
    }

    fn deliver_to_netstack(&mut self) {
        while let Some(bytes) = self.to_netstack.arrive(self.now) {
            if let Some(whole) = whole(&bytes, &mut self.at_netstack, self.now)
                && let Ok(packet) = packet::parse(&whole, Checksum::Complete)
                && let Transport::Udp(payload) = packet.transport
            {
                let port = packet.five_tuple.host.port();
                exchange_of(&mut self.exchanges, port).handle_arrival(payload);
            }
            let flow = self
                .netstack
                .handle_tun_packet(&bytes, Checksum::Complete, self.now);
            match flow {
                Some(NewFlow::Tcp(pending)) => {
                    let port = pending.five_tuple().host.port();
                    match self
                        .running
                        .iter_mut()
                        .find(|connection| connection.plan.port == port)
                    {
                        Some(connection) => connection.handle_new_flow(pending, self.now),
                        // A late copy of a SYN.
                        None => pending.accept(self.now).reset(self.now),
                    }
                }
                Some(NewFlow::Udp(flow)) => {
                    let port = flow.five_tuple().host.port();
                    exchange_of(&mut self.exchanges, port).handle_new_flow(flow);
                }
                Some(NewFlow::Echo(flow)) => panic!("nobody sent {flow:?}"),
                None => {}
            }
        }
    }

    fn deliver_to_host(&mut self) {
        while let Some(bytes) = self.to_host.arrive(self.now) {
            let Some(bytes) = whole(&bytes, &mut self.at_host, self.now) else {
                continue;
            };
            if let Some((port, code)) = unreachable_of(&bytes) {
                let connection = self
                    .running
                    .iter_mut()
                    .find(|connection| connection.plan.port == port);
                if let Some(connection) = connection {
                    connection.handle_unreachable(code, &mut self.sockets);
                }
                continue;
            }
            let packet = packet::parse(&bytes, Checksum::Complete).expect("a well-formed packet");
            let ends = packet.five_tuple;
            match packet.transport {
                Transport::Udp(payload) => {
                    let exchange = exchange_of(&mut self.exchanges, ends.cluster.port());
                    exchange.handle_answer(ends.host, payload);
                }
                Transport::Tcp(segment) => {
                    let said = self.said.get(&ends.cluster.port());
                    let bytes = match said {
                        Some(said) => said.as_kernels_take_it(bytes, &segment),
                        None => Some(bytes),
                    };
                    self.device.arriving.extend(bytes);
                }
            }
        }
    }

    fn poll_host(&mut self) {
        let now = self.host_now();
        self.interface
            .poll(now, &mut self.device, &mut self.sockets);
    }

    fn next_event(&mut self) -> Option<Instant> {
        let now = self.host_now();
        // A host that wants to be polled "now" has just been.
        let host = self
            .interface
            .poll_at(now, &self.sockets)
            .map(|at| at.max(now + smoltcp::time::Duration::from_millis(1)))
            .map(|at| self.start + Duration::from_micros(at.total_micros().cast_unsigned()));
        let turns = self.running.iter().filter_map(Connection::next_turn);
        let sends = self.exchanges.iter().filter_map(Exchange::next_send);
        let starts = self.planned.iter().map(|plan| self.start + plan.start);
        // A connection whose port is not free yet is not an event.
        let starts = starts.filter(|at| *at > self.now);
        host.into_iter()
            .chain(turns)
            .chain(sends)
            .chain(starts)
            .chain(self.to_host.next())
            .chain(self.to_netstack.next())
            .chain(self.netstack.poll_timeout())
            .min()
    }

    fn host_now(&self) -> SmolInstant {
        let elapsed = self.now.duration_since(self.start);
        SmolInstant::from_micros(i64::try_from(elapsed.as_micros()).unwrap())
    }
}

fn exchange_of(exchanges: &mut [Exchange], port: u16) -> &mut Exchange {
    exchanges
        .iter_mut()
        .find(|exchange| exchange.port == port)
        .expect("a known port")
}
