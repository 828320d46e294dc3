//! The TUN device's descriptor: batches of packets in, single packets out.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use kvpn_tunnel::netstack::{Netstack, PacketSink};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::trace;

use super::flows::Carrier;

/// The longest packet, in bytes.
const MAX_PACKET: usize = 65_536;

/// How many packets are taken before others get their turn.
const BATCH: usize = 64;

/// The device, for reading.
pub(super) struct Tun {
    device: AsyncFd<Arc<OwnedFd>>,
}

/// The device, for writing. The kernel takes a packet at once or never, so
/// nothing is queued here.
pub(super) struct Sink(Arc<OwnedFd>);

impl Tun {
    pub(super) fn new(device: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&device, FcntlArg::F_GETFL)?);
        fcntl(&device, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            device: watch(Arc::new(device))?,
        })
    }

    pub(super) fn sink(&self) -> Sink {
        Sink(self.device.get_ref().clone())
    }
}

#[expect(
    unsafe_code,
    reason = "tokio cannot check that a descriptor stays open"
)]
fn watch(device: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is owned, and the `Arc` keeps it open and the same
    // for as long as the `AsyncFd` lives.
    let watched = unsafe { AsyncFd::register_with_interest(device, Interest::READABLE) };
    Ok(watched?)
}

impl PacketSink for Sink {
    fn send(&self, packet: &[u8]) {
        if let Err(error) = nix::unistd::write(&self.0, packet) {
            trace!(%error, length = packet.len(), "Packet for the host dropped");
        }
    }
}

/// Gives packets to the netstack and new flows to the carrier, until the device
/// is gone.
pub(super) async fn read(
    tun: &Tun,
    netstack: &Netstack,
    mut carrier: Carrier,
) -> io::Result<Infallible> {
    let mut packet = vec![0; MAX_PACKET];
    loop {
        let mut ready = tun.device.readable().await?;
        for _ in 0..BATCH {
            match nix::unistd::read(ready.get_inner(), &mut packet) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    let flow = netstack.handle_tun_packet(&packet[..length], Instant::now());
                    if let Some(flow) = flow {
                        carrier.carry(flow);
                    }
                }
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    break;
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        carrier.reap();
        tokio::task::yield_now().await;
    }
}
