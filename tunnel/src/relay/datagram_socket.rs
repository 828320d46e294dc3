//! The real sockets of UDP flows and of pings, each speaking to one address.
//!
//! The kernel queues what the network says of sent datagrams (`IP_RECVERR`);
//! without that it would keep to itself what it takes for passing trouble.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use kvpn_proto::flow::{DialError, DialFailure};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{Interest, Ready};
use tokio::net::UdpSocket;

use super::dial::failure;

/// The largest UDP payload: over IPv6 without jumbograms.
pub(super) const MAX_DATAGRAM: usize = 65_527;

/// An ICMP echo message up to its sequence number. Checksum and identifier are
/// the kernel's to fill.
const ECHO_START: usize = 6;

const ICMP_UNREACHABLE: u8 = 3;
const ICMPV6_UNREACHABLE: u8 = 1;

/// A connected socket.
#[derive(Debug)]
pub struct DatagramSocket {
    socket: UdpSocket,
    peer: SocketAddr,
    kind: Kind,
    /// What the kernel has been told last: not to fragment.
    whole: AtomicBool,
}

/// What the kernel has queued about a datagram.
struct Report {
    failure: DialFailure,
    /// The kernel refused to send it; otherwise the network speaks of one that
    /// was sent.
    is_own: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Udp,
    /// Types of an ICMP echo request and its reply.
    Echo {
        request: u8,
        reply: u8,
    },
}

/// Makes a socket that speaks to `address` only.
pub fn dial_udp(address: SocketAddr) -> Result<DatagramSocket, DialFailure> {
    let made = DatagramSocket::new(address, Protocol::UDP, Kind::Udp);
    made.map_err(|error| failure(address, &error))
}

/// Makes a socket that pings `address` only.
///
/// # Errors
/// [`DialError::Prohibited`] when the process may not: its group must be in
/// `net.ipv4.ping_group_range`.
pub fn dial_echo(address: IpAddr) -> Result<DatagramSocket, DialFailure> {
    let (protocol, request, reply) = match address {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128, 129),
    };
    let peer = SocketAddr::new(address, 0);
    let made = DatagramSocket::new(peer, protocol, Kind::Echo { request, reply });
    made.map_err(|error| failure(peer, &error))
}

/// Tells whether this process may ping.
pub fn can_ping() -> bool {
    Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).is_ok()
}

impl DatagramSocket {
    fn new(peer: SocketAddr, protocol: Protocol, kind: Kind) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(protocol))?;
        socket.set_nonblocking(true)?;
        let any: SocketAddr = match peer {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        socket.bind(&any.into())?;
        socket.connect(&peer.into())?;
        match peer {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        set_mtu_discovery(&socket, peer, false)?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into())?,
            peer,
            kind,
            whole: AtomicBool::new(false),
        })
    }

    #[cfg(test)]
    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits until there is a datagram to receive or an error to take.
    pub(super) async fn ready(&self) -> io::Result<Ready> {
        let interest = Interest::READABLE | Interest::ERROR;
        self.socket.ready(interest).await
    }

    /// Receives the next datagram by way of a scratch buffer that has room for
    /// [`MAX_DATAGRAM`]; `None` for one that is not to be passed on.
    pub(super) fn try_recv(&self, scratch: &mut [u8]) -> io::Result<Option<Bytes>> {
        let (length, source) = self.socket.try_recv_from(scratch)?;
        let datagram = &scratch[..length];
        let passed_on = match self.kind {
            Kind::Udp => datagram,
            // The kernel gives a ping socket replies from whomever.
            Kind::Echo { reply, .. }
                if length >= ECHO_START + 2
                    && datagram[0] == reply
                    && source.ip() == self.peer.ip() =>
            {
                &datagram[ECHO_START..]
            }
            Kind::Echo { .. } => return Ok(None),
        };
        Ok(Some(Bytes::copy_from_slice(passed_on)))
    }

    /// Sends a datagram; with `whole` not in fragments.
    pub(super) async fn send(&self, datagram: &[u8], whole: bool) -> io::Result<()> {
        if self.whole.swap(whole, Ordering::Relaxed) != whole {
            set_mtu_discovery(&self.socket, self.peer, whole)?;
        }
        match self.kind {
            Kind::Udp => self.socket.send(datagram).await?,
            Kind::Echo { request, .. } => {
                let start = [request, 0, 0, 0, 0, 0];
                self.socket.send(&[&start, datagram].concat()).await?
            }
        };
        Ok(())
    }

    /// Takes what the kernel has queued about datagrams of this socket.
    pub(super) fn take_errors(&self) -> Vec<DialFailure> {
        let mut failures = Vec::new();
        // The readiness is used up, until the kernel tells of another error.
        let _ = self.socket.try_io(Interest::ERROR, || -> io::Result<()> {
            failures.extend(self.reports().map(|report| report.failure));
            Err(io::ErrorKind::WouldBlock.into())
        });
        failures
    }

    /// What a failed operation means: what the kernel has queued, else the
    /// error itself; and whether it may have been about an earlier datagram.
    /// A full queue on the way is nobody's failure: datagrams get lost.
    pub(super) fn explain(&self, error: &io::Error) -> (Vec<DialFailure>, bool) {
        let queue_full = matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM));
        let too_long = error.raw_os_error() == Some(libc::EMSGSIZE);
        let reports: Vec<_> = self.reports().collect();
        let is_own = reports.iter().any(|report| report.is_own) || (reports.is_empty() && too_long);
        let mut failures: Vec<_> = reports.into_iter().map(|report| report.failure).collect();
        if failures.is_empty() && !queue_full && !too_long {
            failures.push(failure(self.peer, error));
        }
        (failures, !queue_full && !is_own)
    }

    fn reports(&self) -> impl Iterator<Item = Report> {
        std::iter::from_fn(|| self.take_error())
    }

    fn take_error(&self) -> Option<Report> {
        let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        let mut payload = [0; 64];
        let mut pieces = [IoSliceMut::new(&mut payload)];
        let message = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut pieces,
            Some(&mut control),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        );
        let message = message.ok()?;
        let mut messages = message.cmsgs().ok()?;
        messages.find_map(|message| {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "only these were asked for, and there are many others"
            )]
            let report = match message {
                ControlMessageOwned::Ipv4RecvErr(report, _) => report,
                ControlMessageOwned::Ipv6RecvErr(report, _) => report,
                _ => return None,
            };
            let detail = Errno::from_raw(report.ee_errno.cast_signed()).desc();
            let detail = format!("{}: {detail}", self.peer);
            Some(Report {
                failure: DialFailure::new(classify(&report), detail),
                is_own: report.ee_origin == libc::SO_EE_ORIGIN_LOCAL,
            })
        })
    }
}

/// What the network, or the kernel itself, says of a datagram.
fn classify(report: &libc::sock_extended_err) -> DialError {
    let prohibited = match (report.ee_origin, report.ee_type) {
        // RFC 1812 section 5.2.7.1: administratively prohibited.
        (libc::SO_EE_ORIGIN_ICMP, ICMP_UNREACHABLE) => [9, 10, 13].contains(&report.ee_code),
        // RFC 4443 section 3.1: prohibited, or refused by a policy.
        (libc::SO_EE_ORIGIN_ICMP6, ICMPV6_UNREACHABLE) => [1, 5, 6].contains(&report.ee_code),
        _ => false,
    };
    match report.ee_errno.cast_signed() {
        _ if prohibited => DialError::Prohibited,
        libc::EMSGSIZE => DialError::TooBig(report.ee_info),
        libc::ECONNREFUSED => DialError::Refused,
        libc::ENETUNREACH => DialError::NetworkUnreachable,
        libc::EACCES | libc::EPERM => DialError::Prohibited,
        _ => DialError::HostUnreachable,
    }
}

/// Forbids the kernel to fragment, or has it do so where it must.
#[expect(unsafe_code, reason = "no crate wraps this option")]
fn set_mtu_discovery(socket: &impl AsFd, peer: SocketAddr, whole: bool) -> io::Result<()> {
    let (level, option, value) = match (peer, whole) {
        (SocketAddr::V4(_), true) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        ),
        (SocketAddr::V4(_), false) => (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        ),
        (SocketAddr::V6(_), true) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        ),
        (SocketAddr::V6(_), false) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        ),
    };
    // SAFETY: the descriptor is open, and the option takes an int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}
