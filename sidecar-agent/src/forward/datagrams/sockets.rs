//! The sockets that the datagrams of one claimed UDP port come to.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use nix::{cmsg_space, libc};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::forward::listeners::in_both_families;

/// A client, and the address of the pod that it speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) client: SocketAddr,
    pub(super) local: IpAddr,
}

impl Ends {
    /// A port at the pod's address, as one connects to it.
    pub(super) fn at(&self, port: u16) -> SocketAddr {
        match (self.local, self.client) {
            (IpAddr::V6(local), SocketAddr::V6(client)) => {
                std::net::SocketAddrV6::new(local, port, 0, client.scope_id()).into()
            }
            (local, _) => (local, port).into(),
        }
    }
}

/// One for each address family, on one port.
pub(super) struct Sockets {
    port: u16,
    v4: Arc<UdpSocket>,
    /// `None` where the node has no IPv6.
    v6: Option<Arc<UdpSocket>>,
}

impl Sockets {
    pub(super) fn bind() -> io::Result<Self> {
        let (v4, v6) = in_both_families(bind, UdpSocket::local_addr)?;
        Ok(Self {
            port: v4.local_addr()?.port(),
            v4: Arc::new(v4),
            v6: v6.map(Arc::new),
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn each(&self) -> impl Iterator<Item = Arc<UdpSocket>> {
        [Some(&self.v4), self.v6.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // The pod may have several addresses, and answers have to come from the one that was
    // spoken to.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// Room for what the kernel says of a datagram.
pub(super) fn control() -> Vec<u8> {
    cmsg_space!(libc::in6_pktinfo)
}

/// Receives the next datagram by way of a scratch buffer; `None` for one of which the
/// kernel does not say where it comes from.
pub(super) fn try_recv(
    socket: &UdpSocket,
    scratch: &mut [u8],
    control: &mut [u8],
) -> io::Result<Option<(Ends, Bytes)>> {
    socket.try_io(Interest::READABLE, || {
        let mut pieces = [IoSliceMut::new(scratch)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut pieces,
            Some(control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let local = message.cmsgs()?.find_map(|message| local(&message));
        let client = message.address.as_ref().and_then(address);
        let (length, ends) = (message.bytes, client.zip(local));
        Ok(ends.map(|(client, local)| {
            let payload = Bytes::copy_from_slice(&scratch[..length]);
            (Ends { client, local }, payload)
        }))
    })
}

/// Sends an answer to a client.
pub(super) async fn answer(socket: &UdpSocket, ends: &Ends, payload: &[u8]) -> io::Result<()> {
    let pieces = [IoSlice::new(payload)];
    let client = SockaddrStorage::from(ends.client);
    let (v4, v6);
    let from = match ends.local {
        IpAddr::V4(local) => {
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from_ne_bytes(local.octets()),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(local) => {
            let scope = match ends.client {
                SocketAddr::V6(client) => client.scope_id(),
                SocketAddr::V4(_) => 0,
            };
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: local.octets(),
                },
                ipi6_ifindex: scope,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    socket
        .async_io(Interest::WRITABLE, || {
            let (socket, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            sendmsg(
                socket,
                &pieces,
                slice::from_ref(&from),
                flags,
                Some(&client),
            )?;
            Ok(())
        })
        .await
}

/// The address of the pod that a datagram came to.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only these were asked for, and there are many others"
)]
fn local(message: &ControlMessageOwned) -> Option<IpAddr> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_addr.s6_addr.into()),
        _ => None,
    }
}

fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = || Some(SocketAddr::V4((*address.as_sockaddr_in()?).into()));
    let v6 = || Some(SocketAddr::V6((*address.as_sockaddr_in6()?).into()));
    v4().or_else(v6)
}
