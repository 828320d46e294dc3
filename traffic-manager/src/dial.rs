//! Dials of sessions into the cluster.

mod under_way;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use kvpn_proto::flow::{DialError, DialFailure, Frame, Protocol};
use kvpn_tunnel::relay::{self, DatagramSocket, FrameStream};
use tracing::{debug, warn};

use under_way::UnderWay;

/// How long a TCP target may take to answer: as long as Linux waits by default,
/// so that it is the host that gives up on a target that is silent.
const DIAL: Duration = Duration::from_secs(130);

/// How many TCP dials of one session may be under way.
const MAX_DIALS: usize = 4_096;

/// After which silence a UDP flow or a ping is over. Longer than the session's
/// limits: only where datagrams come in can a flow end without losing one.
const UDP_IDLE: Duration = Duration::from_secs(90);
const ECHO_IDLE: Duration = Duration::from_secs(60);

/// Where clouds serve metadata and credentials of the node outside the
/// link-local subnet: Alibaba's, Azure's and Oracle's.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// The same over IPv6: Amazon's, its credentials for pods, and Google's.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// Dials for sessions.
#[derive(Debug)]
pub(crate) struct Dialer {
    /// Addresses of the traffic manager's own pod.
    own: Vec<IpAddr>,
    can_ping: bool,
    under_way: UnderWay,
}

impl Dialer {
    pub(crate) fn new(own: Vec<IpAddr>) -> Self {
        let can_ping = relay::can_ping();
        if !can_ping {
            warn!("net.ipv4.ping_group_range lets nobody here ping; pings get no answer");
        }
        Self {
            own,
            can_ping,
            under_way: UnderWay::new(MAX_DIALS),
        }
    }

    /// Whether the kernel lets this process send ICMP echo requests.
    pub(crate) fn can_ping(&self) -> bool {
        self.can_ping
    }

    /// Carries a flow of a session to an address until it ends. The session is
    /// named by its UID.
    pub(crate) async fn serve(
        &self,
        session: &str,
        protocol: Protocol,
        address: SocketAddr,
        frames: FrameStream,
    ) {
        let ended = match protocol {
            Protocol::Tcp => self.serve_tcp(session, address, frames).await,
            Protocol::Udp => self.serve_udp(address, frames).await,
        };
        if let Err(error) = ended {
            debug!(%address, %error, "flow ended");
        }
    }

    async fn serve_tcp(
        &self,
        session: &str,
        address: SocketAddr,
        frames: FrameStream,
    ) -> anyhow::Result<()> {
        let dialed = async {
            self.check(address.ip())?;
            let _place = self.under_way.begin(session)?;
            relay::dial_tcp(address, DIAL).await
        };
        let dialed = tokio::select! {
            () = frames.sender.closed() => return Ok(()),
            dialed = dialed => dialed,
        };
        match dialed {
            Ok(socket) => {
                frames.sender.send(Frame::Opened).await?;
                relay::splice_tcp(socket, frames).await?;
            }
            Err(failure) => frames.sender.send(Frame::Failed(failure)).await?,
        }
        Ok(())
    }

    async fn serve_udp(&self, address: SocketAddr, frames: FrameStream) -> anyhow::Result<()> {
        let dialed = self
            .check(address.ip())
            .and_then(|()| relay::dial_udp(address));
        carry(dialed, frames, UDP_IDLE).await
    }

    /// Sends the pings of a flow until it ends.
    pub(crate) async fn serve_echo(&self, address: IpAddr, frames: FrameStream) {
        let dialed = self.check(address).and_then(|()| relay::dial_echo(address));
        if let Err(error) = carry(dialed, frames, ECHO_IDLE).await {
            debug!(%address, %error, "ping ended");
        }
    }

    /// Refuses what is not the cluster's but this pod's or its node's.
    fn check(&self, address: IpAddr) -> Result<(), DialFailure> {
        let ip = address.to_canonical();
        let what = if self.own.contains(&ip) {
            Some("the traffic manager's own")
        } else {
            match ip {
                IpAddr::V4(ip) => reserved_v4(ip),
                IpAddr::V6(ip) => reserved_v6(ip),
            }
        };
        match what {
            Some(what) => Err(DialFailure::new(
                DialError::Prohibited,
                format!("{ip} is {what} address, which cannot be dialled through the cluster"),
            )),
            None => Ok(()),
        }
    }
}

async fn carry(
    dialed: Result<DatagramSocket, DialFailure>,
    frames: FrameStream,
    idle: Duration,
) -> anyhow::Result<()> {
    match dialed {
        Ok(socket) => {
            frames.sender.send(Frame::Opened).await?;
            relay::splice_datagrams(socket, frames, idle).await?;
        }
        Err(failure) => frames.sender.send(Frame::Failed(failure)).await?,
    }
    Ok(())
}

fn reserved_v4(ip: Ipv4Addr) -> Option<&'static str> {
    match ip {
        _ if ip.octets()[0] == 0 => Some("an unspecified"),
        _ if ip.is_loopback() => Some("a loopback"),
        _ if ip.is_link_local() => Some("a link-local"),
        _ if ip.is_multicast() => Some("a multicast"),
        _ if ip.is_broadcast() => Some("a broadcast"),
        _ if METADATA_V4.contains(&ip) => Some("a cloud metadata"),
        _ => None,
    }
}

fn reserved_v6(ip: Ipv6Addr) -> Option<&'static str> {
    match ip {
        _ if ip.is_unspecified() => Some("an unspecified"),
        _ if ip.is_loopback() => Some("a loopback"),
        _ if ip.is_unicast_link_local() => Some("a link-local"),
        _ if ip.is_multicast() => Some("a multicast"),
        _ if METADATA_V6.contains(&ip) => Some("a cloud metadata"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ip: &str) -> Result<(), DialError> {
        let dialer = Dialer::new(vec![
            "10.1.0.5".parse().unwrap(),
            "fd00::5".parse().unwrap(),
        ]);
        let ip = ip.parse().unwrap();
        dialer.check(ip).map_err(|failure| failure.error)
    }

    #[test]
    fn addresses_of_the_cluster_and_beyond_are_dialled() {
        for ip in [
            "10.1.0.6",
            "192.0.2.7",
            "fd00::6",
            "2001:db8::1",
            "::ffff:10.1.0.6",
        ] {
            assert_eq!(check(ip), Ok(()), "{ip}");
        }
    }

    #[test]
    fn addresses_of_the_pod_its_node_and_the_cloud_are_prohibited() {
        let prohibited = [
            "0.0.0.0",
            "127.0.0.1",
            "127.8.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "10.1.0.5",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00::5",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:10.1.0.5",
        ];
        for ip in prohibited {
            assert_eq!(check(ip), Err(DialError::Prohibited), "{ip}");
        }
    }
}
