//! The state of one TCP flow, behind its lock.

use std::io;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;
use smoltcp::time::Instant as SmolInstant;

use super::Delivery;
use crate::flow::FiveTuple;
use crate::netstack::Shared;
use crate::netstack::stack::Stack;
use crate::packet::Segment;

/// How soon a stack is looked at again that says "now" but has nothing to send.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) struct Connection {
    phase: Phase,
    /// The application ends its direction; the FIN goes when TCP is ready for it.
    fin_wanted: bool,
    fin_received: bool,
    reset: bool,
    /// No segment belongs to it any more. Received bytes may still be read.
    over: bool,
    /// The sequence number after the host's FIN.
    host_end: u32,
    /// The earliest deadline that the timers hold for it.
    timer: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum Phase {
    /// The newest copy of the SYN that waits for an answer.
    Pending(Vec<u8>),
    Open(Box<Stack>),
}

impl Connection {
    pub(super) fn pending(syn: &[u8]) -> Self {
        Self {
            phase: Phase::Pending(syn.to_vec()),
            fin_wanted: false,
            fin_received: false,
            reset: false,
            over: false,
            host_end: 0,
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
            Phase::Open(_) => None,
        }
    }

    pub(super) fn handle_segment(
        &mut self,
        shared: &Shared,
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
                }
            }
            Phase::Open(stack) => {
                if stack.state() == State::TimeWait
                    && segment.opens()
                    && is_after(segment.sequence, self.host_end)
                {
                    // RFC 9293 section 3.10.7.4: a SYN beyond the old
                    // connection may open a new one.
                    self.over = true;
                    return Delivery::Over;
                }
                if segment.fin {
                    self.host_end = segment.end();
                }
                stack.ingress(shared, packet, now);
                if segment.rst && matches!(stack.state(), State::Closed | State::Listen) {
                    self.reset = true;
                }
            }
        }
        Delivery::Taken
    }

    pub(super) fn read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if let Phase::Open(stack) = &mut self.phase
            && stack.can_recv()
        {
            let received = stack.socket().recv_slice(buffer);
            return Poll::Ready(received.map_err(io::Error::other));
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
        if let Phase::Open(stack) = &mut self.phase
            && stack.state() != State::TimeWait
        {
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
        }
    }

    /// Sends what is to be sent and looks at what has changed; `true` when the
    /// flow has just ended.
    pub(super) fn advance(&mut self, shared: &Shared, now: SmolInstant) -> bool {
        let Phase::Open(stack) = &mut self.phase else {
            return self.over;
        };
        if self.over {
            return true;
        }
        if self.fin_wanted && matches!(stack.state(), State::Established | State::CloseWait) {
            stack.socket().close();
        }
        stack.egress(shared, now);
        match stack.state() {
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait => {
                self.fin_received = true;
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
        let Phase::Open(stack) = &mut self.phase else {
            return None;
        };
        let mut at = stack.poll_at(now)?;
        if at <= now {
            at = now + PAUSE.into();
        }
        let at = shared.clock.instant(at)?;
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
            Phase::Pending(_) => (false, false),
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
        };
        f.debug_struct("Connection")
            .field("state", &state)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// Compares sequence numbers (RFC 9293 section 3.4).
fn is_after(sequence: u32, other: u32) -> bool {
    sequence.wrapping_sub(other).cast_signed() > 0
}
