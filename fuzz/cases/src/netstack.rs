//! A netstack in the hands of a host and of flow holders that do anything.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use kvpn_tunnel::netstack::{
    EchoFlow, Netstack, NetstackConfig, NewFlow, PacketSink, PendingTcp, TcpFlow, UdpFlow,
};
use kvpn_tunnel::packet::{self, Checksum, Ignored, Transport};

use crate::input::{Input, dial_error};
use crate::packets::{self, Segment};

/// More than any timer of a flow that nobody holds.
const END: Duration = Duration::from_secs(600);

/// More deadlines than honest timers need in that time.
const MOST_DEADLINES: usize = 100_000;

/// Feeds a netstack with packets, times and calls of its flows' holders. What
/// it sends must be well-formed, and when all flows are let go of, it must come
/// to rest.
pub fn netstack(input: &[u8]) {
    let mut world = World::new(&mut Input(input));
    let mut input = Input(input.get(1..).unwrap_or_default());
    while !input.is_empty() {
        world.step(&mut input);
        world.look_at_what_was_sent();
    }
    world.end();
}

type Sent = (Vec<u8>, Checksum);

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Sent>>>);

impl PacketSink for Sink {
    fn send(&self, packet: &[u8], checksum: Checksum) {
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sent.push((packet.to_vec(), checksum));
    }
}

/// One connection as the host sees it.
struct Place {
    host: SocketAddr,
    cluster: SocketAddr,
    /// What the host sends next.
    sequence: u32,
    /// What it expects next.
    expected: u32,
}

struct World {
    netstack: Netstack,
    sink: Sink,
    mtu: usize,
    now: Instant,
    places: Vec<Place>,
    last: Vec<u8>,
    pending: Vec<PendingTcp>,
    tcp: Vec<TcpFlow>,
    udp: Vec<UdpFlow>,
    echo: Vec<EchoFlow>,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let settings = input.byte();
        let config = NetstackConfig {
            mtu: [1_280, 1_500, 9_000, u16::MAX][usize::from(settings & 3)],
            tcp_buffer: [4_096, 65_536][usize::from(settings >> 2 & 1)],
            max_flows: [4, 1_024][usize::from(settings >> 3 & 1)],
            partial_checksums: settings & 16 != 0,
            seed: 7,
            ..NetstackConfig::default()
        };
        let places = (0..8).map(|number: u16| {
            let (host, cluster) = if number & 1 == 0 {
                ([198, 18, 0, 1].into(), [10, 1, 2, 3].into())
            } else {
                let host = [0xfd6b, 0x7670, 0x6e, 0, 0, 0, 0, 1].into();
                (host, [0xfd00, 0x10, 0, 0, 0, 0, 0, 3].into())
            };
            Place {
                host: SocketAddr::new(host, 40_000 + number / 4),
                cluster: SocketAddr::new(cluster, [80, 53][usize::from(number / 2 % 2)]),
                // So that it soon wraps.
                sequence: u32::MAX - 300,
                expected: 0,
            }
        });
        let sink = Sink::default();
        Self {
            mtu: config.mtu.into(),
            netstack: Netstack::new(config, sink.clone()),
            sink,
            now: Instant::now(),
            places: places.collect(),
            last: Vec::new(),
            pending: Vec::new(),
            tcp: Vec::new(),
            udp: Vec::new(),
            echo: Vec::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 20 {
            0 => {
                let bytes = input.some(255).to_vec();
                self.hand_over(bytes, input.checksum());
            }
            1..=5 => self.segment(input),
            6 => self.datagram(input),
            7 => self.repeat_damaged(input),
            8 => self.fragment(input),
            9 => self.other_protocol(input),
            10 => self.pass(Duration::from_millis(1 << (input.byte() % 17))),
            11 | 12 => self.answer(input),
            13 | 14 => self.read(input),
            15 | 16 => self.write(input),
            17 => self.end_flow(input),
            18 => {
                self.use_udp(input);
                self.use_echo(input);
            }
            _ => self.let_go(input),
        }
    }

    fn hand_over(&mut self, bytes: Vec<u8>, checksum: Checksum) {
        match self.netstack.handle_tun_packet(&bytes, checksum, self.now) {
            Some(NewFlow::Tcp(pending)) => self.pending.push(pending),
            Some(NewFlow::Udp(flow)) => self.udp.push(flow),
            Some(NewFlow::Echo(flow)) => self.echo.push(flow),
            None => {}
        }
        self.last = bytes;
    }

    /// A segment of a connection: by default the one that is due.
    fn segment(&mut self, input: &mut Input<'_>) {
        let Some(place) = input.index(self.places.len()) else {
            return;
        };
        let place = &mut self.places[place];
        let kind = input.byte();
        let flags = match kind & 7 {
            0 | 1 => 0x02,
            2 | 3 => 0x10,
            4 => 0x18,
            5 => 0x11,
            6 => 0x04,
            _ => input.byte(),
        };
        let mut sequence = place.sequence;
        let mut acknowledgement = place.expected;
        if kind & 8 != 0 {
            sequence = sequence.wrapping_add_signed(i32::from(input.byte().cast_signed()));
        }
        if kind & 16 != 0 {
            acknowledgement =
                acknowledgement.wrapping_add_signed(i32::from(input.byte().cast_signed()));
        }
        if kind & 32 != 0 {
            (sequence, acknowledgement) = (input.long(), input.long());
        }
        let segment = Segment {
            sequence,
            acknowledgement,
            flags,
            window: if kind & 64 != 0 { input.word() } else { 8_192 },
            options: if kind & 128 != 0 { input.some(40) } else { &[] },
            payload: if flags == 0x18 { input.some(255) } else { &[] },
        };
        place.sequence = sequence.wrapping_add(segment.length());
        let bytes = segment.packet(place.host, place.cluster);
        self.hand_over(bytes, Checksum::Complete);
    }

    fn datagram(&mut self, input: &mut Input<'_>) {
        if let Some(place) = input.index(self.places.len()) {
            let place = &self.places[place];
            let payload = input.some(255);
            let bytes = packets::datagram(place.host, place.cluster, payload);
            self.hand_over(bytes, Checksum::Complete);
        }
    }

    fn repeat_damaged(&mut self, input: &mut Input<'_>) {
        let mut bytes = std::mem::take(&mut self.last);
        for _ in 0..input.byte() % 4 {
            if let Some(at) = input.index(bytes.len()) {
                bytes[at] = input.byte();
            }
        }
        if input.byte() & 1 != 0 {
            bytes.truncate(input.byte().into());
        }
        packets::fill_v4_checksum(&mut bytes);
        self.hand_over(bytes, input.checksum());
    }

    /// The two halves of the last packet, one, or both in some order.
    fn fragment(&mut self, input: &mut Input<'_>) {
        let (at, kind) = (input.byte().into(), input.byte());
        let whole = std::mem::take(&mut self.last);
        if let Some([first, second]) = packets::fragments(&whole, at, kind >> 4 & 3) {
            if kind & 1 != 0 {
                self.hand_over(second.clone(), Checksum::Complete);
            }
            if kind & 2 != 0 {
                self.hand_over(first, Checksum::Complete);
            }
            if kind & 4 != 0 {
                self.hand_over(second, Checksum::Complete);
            }
        }
        self.last = whole;
    }

    fn other_protocol(&mut self, input: &mut Input<'_>) {
        let Some(place) = input.index(self.places.len()) else {
            return;
        };
        let (from, to) = (
            self.places[place].host.ip(),
            self.places[place].cluster.ip(),
        );
        let protocol = match (input.byte() % 8, from.is_ipv4()) {
            (0..4, true) => 1,
            (0..4, false) => 58,
            (4, _) => packets::TCP,
            (5, _) => packets::UDP,
            _ => input.byte(),
        };
        let payload = input.some(255).to_vec();
        self.hand_over(
            packets::packet(from, to, protocol, payload),
            input.checksum(),
        );
    }

    fn answer(&mut self, input: &mut Input<'_>) {
        let Some(index) = input.index(self.pending.len()) else {
            return;
        };
        let pending = self.pending.swap_remove(index);
        match input.byte() {
            0..128 => self.tcp.push(pending.accept(self.now)),
            kind @ 128..250 => {
                pending.refuse(dial_error(kind), self.now);
            }
            250.. => drop(pending),
        }
    }

    fn read(&mut self, input: &mut Input<'_>) {
        let Some(index) = input.index(self.tcp.len()) else {
            return;
        };
        let most = usize::from(input.word());
        let mut read = 0;
        let take = |data: &[u8]| {
            let taken = data.len().min(most - read);
            read += taken;
            taken
        };
        let mut cx = Context::from_waker(Waker::noop());
        let outcome = self.tcp[index].poll_read(&mut cx, take, self.now);
        if let Poll::Ready(Ok(length)) = outcome {
            assert_eq!(length, read, "what was taken is what is told");
        }
    }

    fn write(&mut self, input: &mut Input<'_>) {
        let Some(index) = input.index(self.tcp.len()) else {
            return;
        };
        let data = vec![7; input.word().into()];
        let mut cx = Context::from_waker(Waker::noop());
        let outcome = self.tcp[index].poll_write(&mut cx, &data, self.now);
        if let Poll::Ready(Ok(length)) = outcome {
            assert!(length <= data.len(), "{length} of {} written", data.len());
        }
    }

    fn end_flow(&mut self, input: &mut Input<'_>) {
        let Some(index) = input.index(self.tcp.len()) else {
            return;
        };
        match input.byte() % 4 {
            0 | 1 => self.tcp[index].shutdown_write(self.now),
            2 => self.tcp[index].reset(self.now),
            _ => drop(self.tcp.swap_remove(index)),
        }
    }

    fn use_udp(&mut self, input: &mut Input<'_>) {
        let Some(index) = input.index(self.udp.len()) else {
            return;
        };
        let flow = &self.udp[index];
        match input.byte() {
            0..128 => {
                let mut cx = Context::from_waker(Waker::noop());
                let _ = flow.poll_recv(&mut cx);
            }
            128..224 => flow.send(&vec![9; input.word().into()], self.now),
            kind @ 224.. => {
                flow.unreachable(dial_error(kind), self.now);
            }
        }
    }

    fn use_echo(&mut self, input: &mut Input<'_>) {
        let Some(index) = input.index(self.echo.len()) else {
            return;
        };
        let flow = &self.echo[index];
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(request) = flow.poll_recv(&mut cx) {
            match input.byte() {
                0..192 => flow.reply(&request.payload),
                kind @ 192.. => flow.unreachable(dial_error(kind), self.now),
            }
        }
    }

    fn let_go(&mut self, input: &mut Input<'_>) {
        if let Some(index) = input.index(self.udp.len()) {
            self.udp.swap_remove(index);
        }
        if let Some(index) = input.index(self.echo.len()) {
            self.echo.swap_remove(index);
        }
    }

    /// Lets time pass, from deadline to deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for turn in 0.. {
            assert!(turn < MOST_DEADLINES, "the timers never rest");
            match self.netstack.poll_timeout() {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.netstack.handle_timeout(self.now);
                }
                Some(_) | None => break,
            }
        }
        self.now = end;
    }

    fn look_at_what_was_sent(&mut self) {
        let sent = {
            let mut sent = self.sink.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *sent)
        };
        for (bytes, checksum) in sent {
            assert!(bytes.len() <= self.mtu, "{} bytes", bytes.len());
            let packet = match packet::parse(&bytes, checksum) {
                Ok(packet) => packet,
                Err(Ignored::Protocol | Ignored::Fragment) => continue,
                Err(error) => panic!("{error}: {bytes:02x?}"),
            };
            assert_eq!(packet.bytes.len(), bytes.len(), "{bytes:02x?}");
            let ends = packet.five_tuple;
            if let Transport::Tcp(segment) = packet.transport
                && let Some(place) = self
                    .places
                    .iter_mut()
                    .find(|place| (place.host, place.cluster) == (ends.cluster, ends.host))
            {
                place.expected = segment.end();
            }
        }
    }

    fn end(mut self) {
        self.pending.clear();
        self.tcp.clear();
        self.udp.clear();
        self.echo.clear();
        self.pass(END);
        self.look_at_what_was_sent();
        let counters = self.netstack.counters();
        assert_eq!(counters.open_flows, 0, "flows are left over");
        assert_eq!(self.netstack.poll_timeout(), None, "timers are left over");
    }
}
