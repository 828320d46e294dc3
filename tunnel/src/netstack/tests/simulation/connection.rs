//! One connection, both of its ends, and what each must see of the other.

mod cluster;
mod turn;

use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use kvpn_proto::flow::DialError;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::plan::{Answer, End, Plan};
use crate::netstack::tests::lab::{POD_V4, POD_V6, Woken, address, pattern};
use crate::netstack::tests::packets::host_of;
use crate::netstack::{PendingTcp, TcpFlow};
use turn::Turn;

/// How a stream of bytes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Fin,
    Reset,
    /// The host's application gave up first.
    GivenUp,
}

pub(super) struct Connection {
    pub(super) plan: Plan,
    up: Vec<u8>,
    down: Vec<u8>,
    pub(super) host: Host,
    pub(super) cluster: Cluster,
}

#[derive(Debug)]
pub(super) struct Host {
    socket: Option<SocketHandle>,
    sent: usize,
    received: usize,
    closed: bool,
    has_fin: bool,
    turn: Turn,
    ended: Option<Ended>,
    has_ended: bool,
}

#[derive(Debug)]
pub(super) struct Cluster {
    stage: Stage,
    pub(super) received: usize,
    pub(super) sent: usize,
    ended: Option<Ended>,
    shut_down: bool,
    turn: Turn,
    woken: Arc<Woken>,
    waker: Waker,
    wakes_seen: usize,
}

#[derive(Debug)]
enum Stage {
    /// No SYN has come.
    Waiting,
    Held(PendingTcp, Instant),
    Open(TcpFlow),
    /// There was a flow, and there is none now.
    Over,
}

impl Connection {
    pub(super) fn new(plan: Plan) -> Self {
        let up = pattern(plan.up, plan.seed);
        let down = if plan.echo {
            up.clone()
        } else {
            pattern(plan.down, plan.seed + 1)
        };
        let (woken, waker) = Woken::new();
        Self {
            host: Host {
                socket: None,
                sent: 0,
                received: 0,
                closed: false,
                has_fin: false,
                turn: Turn::new(plan.host_pace),
                ended: None,
                has_ended: false,
            },
            cluster: Cluster {
                stage: Stage::Waiting,
                received: 0,
                sent: 0,
                ended: None,
                shut_down: false,
                turn: Turn::new(plan.cluster_pace),
                woken,
                waker,
                wakes_seen: 0,
            },
            plan,
            up,
            down,
        }
    }

    pub(super) fn connect(&mut self, interface: &mut Interface, sockets: &mut SocketSet<'static>) {
        let pod = address(if self.plan.v6 { POD_V6 } else { POD_V4 });
        // Small enough to need no window scale: rounded, the window would shrink
        // at times, as those of kernels never do.
        let buffer = || SocketBuffer::new(vec![0; 32 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        // It would never hear of a reset that came after lost bytes.
        socket.set_keep_alive(Some(smoltcp::time::Duration::from_secs(5)));
        if self.plan.seed & 1 == 0 {
            socket.set_tsval_generator(Some(|| 1));
        }
        let from = (host_of(pod), self.plan.port);
        socket.connect(interface.context(), pod, from).unwrap();
        self.host.socket = Some(sockets.add(socket));
    }

    pub(super) fn is_over(&self) -> bool {
        let heard = match self.cluster.stage {
            Stage::Over => true,
            Stage::Waiting => matches!(self.plan.answer, Answer::TooLate(_)),
            Stage::Held(..) | Stage::Open(_) => false,
        };
        self.host.has_ended && heard
    }

    pub(super) fn next_turn(&self) -> Option<Instant> {
        let held = match &self.cluster.stage {
            Stage::Held(_, until) => Some(*until),
            Stage::Waiting | Stage::Open(_) | Stage::Over => None,
        };
        let turns = [self.host.turn.next, self.cluster.turn.next, held];
        turns.into_iter().flatten().min()
    }

    /// The host has sent a SYN that no flow knew.
    pub(super) fn handle_new_flow(&mut self, pending: PendingTcp, now: Instant) {
        let is_first = matches!(self.cluster.stage, Stage::Waiting);
        match self.plan.answer {
            _ if is_first => {
                let (Answer::Accept(wait)
                | Answer::Refuse(wait, _)
                | Answer::Forget(wait)
                | Answer::TooLate(wait)) = self.plan.answer;
                self.cluster.stage = Stage::Held(pending, now + wait);
            }
            // A repetition of the SYN, after the answer.
            Answer::Refuse(_, error) => pending.refuse(error, now),
            Answer::Accept(_) | Answer::Forget(_) | Answer::TooLate(_) => {
                pending.accept(now).reset(now);
            }
        }
    }

    /// The host's kernel has got an ICMP error for the connection.
    pub(super) fn handle_unreachable(&mut self, code: u8, sockets: &mut SocketSet<'static>) {
        let Answer::Refuse(_, error) = self.plan.answer else {
            panic!("unreachable, but {:?}", self.plan);
        };
        let expected = match (error, self.plan.v6) {
            (DialError::NetworkUnreachable, _) => 0,
            (DialError::Prohibited, false) => 13,
            (DialError::Prohibited, true) | (_, false) => 1,
            (_, true) => 3,
        };
        assert_eq!(code, expected, "{:?}", self.plan);
        assert_ne!(error, DialError::Refused, "{:?}", self.plan);
        if let Some(socket) = self.host.socket.take() {
            sockets.remove(socket);
            self.host.end(Ended::GivenUp);
        }
    }

    /// Lets the host's application act.
    pub(super) fn act_as_host(&mut self, sockets: &mut SocketSet<'static>, now: Instant) {
        let Some(handle) = self.host.socket.filter(|_| !self.host.has_ended) else {
            return;
        };
        let plan = &self.plan;
        let socket = sockets.get_mut::<Socket>(handle);
        let state = socket.state();
        if matches!(plan.answer, Answer::TooLate(_)) {
            sockets.remove(handle);
            self.host.socket = None;
            return self.host.end(Ended::GivenUp);
        }
        if state == State::SynSent {
            return;
        }
        self.host.turn.call(now);
        let has_turn = self.host.turn.take(now);
        if state == State::TimeWait {
            // smoltcp, unlike a kernel, forgets unread bytes at its end.
            self.host
                .transfer(socket, 1 << 20, &self.up, &self.down, plan);
        } else if has_turn {
            self.host
                .transfer(socket, plan.host_pace.chunk, &self.up, &self.down, plan);
            if !plan.host_pace.every.is_zero() {
                self.host.turn.call(now);
            }
        }
        let host = &mut self.host;
        if let End::HostAborts(at) = plan.end
            && host.sent + host.received >= at
            && state != State::Closed
        {
            socket.abort();
            return host.end(Ended::GivenUp);
        }
        host.has_fin |= matches!(
            state,
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if host.has_fin && !socket.can_recv() && host.ended.is_none() {
            assert_eq!(host.received, self.down.len(), "FIN too early: {plan:?}");
            host.ended = Some(Ended::Fin);
        }
        let may_close =
            (plan.host_first || host.ended.is_some()) && !matches!(plan.end, End::HostAborts(_));
        if has_turn && host.sent == self.up.len() && may_close && !host.closed {
            socket.close();
            host.closed = true;
        }
        if state == State::Closed && !host.has_fin && host.ended.is_none() {
            assert!(self.plan.host_may_be_reset(), "reset: {plan:?}");
            host.ended = Some(Ended::Reset);
        }
        if matches!(state, State::Closed | State::TimeWait)
            && let Some(ended) = host.ended
        {
            host.end(ended);
        }
    }

    /// Removes a socket that has come to its end; the host's kernel answers
    /// for it from then on.
    pub(super) fn clean_up(&mut self, sockets: &mut SocketSet<'static>) {
        if let Some(handle) = self.host.socket
            && self.host.has_ended
            && sockets.get::<Socket>(handle).state() == State::Closed
        {
            sockets.remove(handle);
            self.host.socket = None;
        }
    }

    /// The host's kernel forgets the connection, be it in TIME-WAIT.
    pub(super) fn forget(&self, sockets: &mut SocketSet<'static>) {
        if let Some(handle) = self.host.socket {
            sockets.remove(handle);
        }
    }

    /// What both ends must have seen when the connection is over.
    pub(super) fn check(&self) {
        let plan = &self.plan;
        let (host, cluster) = (&self.host, &self.cluster);
        let seen = (host.ended, cluster.ended);
        match (plan.answer, plan.end) {
            (Answer::TooLate(_), _) => {
                assert_eq!((cluster.received, host.received), (0, 0), "{plan:?}");
                assert_ne!(cluster.ended, Some(Ended::Fin), "{plan:?}");
            }
            (Answer::Refuse(_, error), _) => {
                let expected = if error == DialError::Refused {
                    Ended::Reset
                } else {
                    Ended::GivenUp
                };
                assert_eq!(seen, (Some(expected), None), "{plan:?}");
            }
            (_, End::Orderly) => {
                assert_eq!(seen, (Some(Ended::Fin), Some(Ended::Fin)), "{plan:?}");
                assert_eq!(cluster.received, self.up.len(), "{plan:?}");
                assert_eq!(host.received, self.down.len(), "{plan:?}");
            }
            (_, End::HostAborts(_)) => {
                let expected = (Some(Ended::GivenUp), Some(Ended::Reset));
                assert_eq!(seen, expected, "{plan:?}");
            }
            (_, End::ClusterResets(_) | End::HolderDrops(_)) => {
                let expected = (Some(Ended::Reset), Some(Ended::Reset));
                assert_eq!(seen, expected, "{plan:?}");
            }
        }
    }
}

impl Host {
    fn end(&mut self, ended: Ended) {
        self.ended = Some(ended);
        self.has_ended = true;
        self.turn.next = None;
    }

    fn transfer(
        &mut self,
        socket: &mut Socket<'static>,
        chunk: usize,
        up: &[u8],
        down: &[u8],
        plan: &Plan,
    ) {
        if socket.can_send() && !self.closed {
            let end = up.len().min(self.sent + chunk);
            self.sent += socket.send_slice(&up[self.sent..end]).unwrap();
        }
        let mut buffer = vec![0; chunk];
        if socket.can_recv() {
            let length = socket.recv_slice(&mut buffer).unwrap();
            let expected = down.get(self.received..self.received + length);
            assert!(expected == Some(&buffer[..length]), "other bytes: {plan:?}");
            self.received += length;
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("plan", &self.plan)
            .field("host", &self.host)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Plan {
    fn host_may_be_reset(&self) -> bool {
        matches!(self.answer, Answer::Refuse(..))
            || matches!(self.end, End::ClusterResets(_) | End::HolderDrops(_))
    }

    fn flow_may_be_reset(&self) -> bool {
        matches!(self.answer, Answer::TooLate(_)) || matches!(self.end, End::HostAborts(_))
    }
}
