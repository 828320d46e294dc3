//! The state of one TCP flow, behind its lock.

use std::io;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant as SmolInstant;

use super::Delivery;
use crate::flow::FiveTuple;
use crate::netstack::Shared;
use crate::netstack::stack::Stack;
use crate::packet::{self, Checksum, Segment};

/// How soon a stack is looked at again that says "now" but has nothing to send.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a connection that the cluster's end closed first is remembered. The
/// device does not reorder, so this is for what the host repeats.
const TIME_WAIT: Duration = Duration::from_secs(10);

pub(super) struct Connection {
    phase: Phase,
    /// The application ends its direction; the FIN goes when TCP is ready for it.
    fin_wanted: bool,
    fin_received: bool,
    reset: bool,
    /// No segment belongs to it any more. Received bytes may still be read.
    over: bool,
    /// The sequence number of the SYN that opened it.
    opened_by: u32,
    /// When the host's last segment came.
    heard: Option<SmolInstant>,
    /// What the host expects next, as it last said.
    expected: Option<u32>,
    /// What a connection in TIME-WAIT has received, and nobody has read yet.
    unread: Bytes,
    /// The earliest deadline that the timers hold for it.
    timer: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Phase {
    /// The newest copy of the SYN that waits for an answer.
    Pending(Vec<u8>),
    Open(Box<Stack>),
    /// Both directions have ended, so that nothing but the deadline is left to
    /// remember.
    TimeWait(Instant),
}

impl Connection {
    pub(super) fn pending(syn: &[u8], sequence: u32) -> Self {
        Self {
            phase: Phase::Pending(syn.to_vec()),
            fin_wanted: false,
            fin_received: false,
            reset: false,
            over: false,
            opened_by: sequence,
            heard: None,
            expected: None,
            unread: Bytes::new(),
            timer: None,
            reader: None,
            writer: None,
        }
    }

    /// Gives the held SYN to a stack, which answers it.
    pub(super) fn accept(&mut self, shared: &Shared, five_tuple: &FiveTuple, now: SmolInstant) {
        if let Phase::Pending(syn) = &self.phase {
            let mut stack = Stack::new(shared, five_tuple, now);
            stack.ingress(shared, syn, now);
            self.phase = Phase::Open(Box::new(stack));
        }
    }

    /// Ends a flow that was not accepted; returns its SYN.
    pub(super) fn refuse(&mut self) -> Option<Vec<u8>> {
        self.over = true;
        match &mut self.phase {
            Phase::Pending(syn) => Some(std::mem::take(syn)),
            Phase::Open(_) | Phase::TimeWait(_) => None,
        }
    }

    pub(super) fn handle_segment(
        &mut self,
        shared: &Shared,
        five_tuple: &FiveTuple,
        packet: &[u8],
        segment: &Segment,
        now: SmolInstant,
    ) -> Delivery {
        if self.over {
            return Delivery::Over;
        }
        match &mut self.phase {
            Phase::Pending(syn) => {
                // The copy has a newer timestamp, from which the host measures
                // the round trip.
                if segment.opens() {
                    packet.clone_into(syn);
                    self.opened_by = segment.sequence;
                }
            }
            Phase::Open(stack) => {
                self.heard = Some(now);
                if segment.opens_another(self.opened_by) {
                    // The host has forgotten the connection. smoltcp would say
                    // nothing; to an acknowledgement the host answers with a RST,
                    // and then repeats its SYN (RFC 9293 section 3.10.7.4).
                    self.ask(shared, five_tuple);
                    return Delivery::Taken;
                }
                let previous = self.expected;
                self.expected = segment.acknowledgement.or(previous);
                if stack.waits_for_fin() && segment.repeats(previous) {
                    // smoltcp would take this for a loss of data, find none to
                    // repeat, and with that forget that the FIN may be lost.
                    return Delivery::Taken;
                }
                if segment.fin && !stack.has_room_for(segment.length) {
                    // smoltcp would cut the bytes, but take the FIN. The host
                    // repeats what it has sent beyond the window.
                    return Delivery::Taken;
                }
                stack.ingress(shared, packet, now);
                if segment.rst && matches!(stack.state(), State::Closed | State::Listen) {
                    self.reset = true;
                }
            }
            Phase::TimeWait(_) => {
                if segment.opens_another(self.opened_by) {
                    self.over = true;
                    return Delivery::Over;
                }
                if segment.rst {
                    self.over = true;
                } else if segment.length > 0
                    && let Some(answer) = packet::acknowledgement(five_tuple, segment)
                {
                    shared.sink.send(&answer, Checksum::Complete);
                }
            }
        }
        Delivery::Taken
    }

    pub(super) fn read(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        if let Phase::Open(stack) = &mut self.phase
            && stack.can_recv()
        {
            return Poll::Ready(receive(stack, &mut take));
        }
        if !self.unread.is_empty() {
            let taken = take(&self.unread);
            self.unread.advance(taken);
            return Poll::Ready(Ok(taken));
        }
        if self.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.fin_received || self.over {
            return Poll::Ready(Ok(0));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.fin_wanted || self.over {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if let Phase::Open(stack) = &mut self.phase
            && stack.can_send()
        {
            let sent = stack.socket().send_slice(data);
            return Poll::Ready(sent.map_err(io::Error::other));
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn shutdown_write(&mut self) {
        self.fin_wanted = true;
    }

    pub(super) fn reset(&mut self) {
        self.reset = true;
        if let Phase::Open(stack) = &mut self.phase {
            stack.socket().abort();
        }
    }

    /// Nobody holds the flow any more. What both sides have ended goes on to
    /// its end; anything else is reset.
    pub(super) fn release(&mut self) {
        match &mut self.phase {
            Phase::Open(stack) if self.fin_wanted && self.fin_received && !stack.can_recv() => {
                stack.orphan();
            }
            Phase::Open(_) | Phase::Pending(_) => self.reset(),
            Phase::TimeWait(_) => {}
        }
    }

    /// Tells whether the host has said nothing for so long, and has not closed:
    /// one that has may forget the connection while the cluster still reads, and
    /// its RST would take away what is on its way.
    pub(super) fn is_silent(&self, limit: Duration, now: SmolInstant) -> bool {
        let is_open = match &self.phase {
            Phase::Open(stack) => matches!(stack.state(), State::Established | State::FinWait2),
            Phase::Pending(_) | Phase::TimeWait(_) => false,
        };
        is_open && self.heard.is_some_and(|at| now >= at + limit.into())
    }

    /// Sends a keep-alive.
    pub(super) fn ask(&self, shared: &Shared, five_tuple: &FiveTuple) {
        if let Phase::Open(stack) = &self.phase
            && let (Some(expected), Some(acknowledged)) = (self.expected, stack.acknowledged())
            && let Some(packet) = packet::keep_alive(five_tuple, expected, acknowledged)
        {
            shared.sink.send(&packet, Checksum::Complete);
        }
    }

    /// Sends what is to be sent and looks at what has changed; `true` when the
    /// flow has just ended.
    pub(super) fn advance(&mut self, shared: &Shared, now: SmolInstant) -> bool {
        let stack = match &mut self.phase {
            Phase::Open(stack) if !self.over => stack,
            Phase::TimeWait(until) => {
                self.over |= shared.clock.instant(now).is_some_and(|now| now >= *until);
                return self.over;
            }
            Phase::Open(_) | Phase::Pending(_) => return self.over,
        };
        if self.fin_wanted && matches!(stack.state(), State::Established | State::CloseWait) {
            stack.socket().close();
        }
        stack.egress(shared, now);
        match stack.state() {
            State::CloseWait | State::Closing | State::LastAck => self.fin_received = true,
            State::TimeWait => {
                self.fin_received = true;
                if let Some(until) = shared.clock.instant(now + TIME_WAIT.into()) {
                    // smoltcp would forget it at the end of TIME-WAIT.
                    self.unread = receive_all(stack);
                    self.phase = Phase::TimeWait(until);
                }
            }
            // Back to listening: the host reset what had not been established.
            State::Closed | State::Listen => {
                self.reset |= !self.fin_received;
                self.over = true;
            }
            State::SynSent
            | State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2 => {}
        }
        self.over
    }

    /// The deadline to set, when there is none as early.
    pub(super) fn next_timer(&mut self, shared: &Shared, now: SmolInstant) -> Option<Instant> {
        if self.over {
            return None;
        }
        let at = match &mut self.phase {
            Phase::Pending(_) => return None,
            Phase::Open(stack) => {
                let at = stack.poll_at(now)?;
                let pause = now + PAUSE.into();
                shared.clock.instant(if at <= now { pause } else { at })?
            }
            Phase::TimeWait(until) => *until,
        };
        if self.timer.is_some_and(|earlier| earlier <= at) {
            return None;
        }
        self.timer = Some(at);
        Some(at)
    }

    /// Tells whether the deadline that has come is the one that was set last.
    pub(super) fn take_timer(&mut self, at: Instant) -> bool {
        self.timer.take_if(|timer| *timer == at).is_some()
    }

    /// Takes those whose wait is over.
    pub(super) fn take_wakers(&mut self) -> [Option<Waker>; 2] {
        let (can_recv, can_send) = match &self.phase {
            Phase::Open(stack) => (stack.can_recv(), stack.can_send()),
            Phase::Pending(_) | Phase::TimeWait(_) => (false, false),
        };
        let ended = self.reset || self.over;
        let readable = can_recv || self.fin_received || ended;
        let writable = can_send || self.fin_wanted || ended;
        [
            self.reader.take_if(|_| readable),
            self.writer.take_if(|_| writable),
        ]
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.phase {
            Phase::Pending(_) => None,
            Phase::Open(stack) => Some(stack.state()),
            Phase::TimeWait(_) => Some(State::TimeWait),
        };
        f.debug_struct("Connection")
            .field("state", &state)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

fn receive_all(stack: &mut Stack) -> Bytes {
    let mut all = Vec::new();
    let mut take = |data: &[u8]| {
        all.extend_from_slice(data);
        data.len()
    };
    while stack.can_recv() && receive(stack, &mut take).is_ok() {}
    all.into()
}

/// The ring's end, where it wraps, divides what it holds in two.
fn receive(stack: &mut Stack, take: &mut impl FnMut(&[u8]) -> usize) -> io::Result<usize> {
    let mut total = 0;
    for _ in 0..2 {
        let (taken, offered) = stack
            .socket()
            .recv(|data| {
                let taken = take(data);
                (taken, (taken, data.len()))
            })
            .map_err(io::Error::other)?;
        total += taken;
        if taken < offered || !stack.can_recv() {
            break;
        }
    }
    Ok(total)
}
