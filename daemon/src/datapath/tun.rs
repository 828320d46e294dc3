//! The TUN device's descriptor: batches of packets in, single packets out, each
//! after a `virtio_net_hdr` (linux/virtio_net.h), which says whether its
//! checksum is complete.
//!
//! The kernel may give us several segments of a connection as one long packet;
//! TCP takes that for one long segment.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use kvpn_tunnel::netstack::{Netstack, PacketSink};
use kvpn_tunnel::packet::{Checksum, TCP_CHECKSUM_OFFSET, tcp_offset};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::trace;

use super::flows::Carrier;

/// Length of a `virtio_net_hdr`.
const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;

/// The longest packet and its header, in bytes.
const MAX_READ: usize = HEADER + 65_536;

/// How many packets, and how many bytes of them, are taken before others get
/// their turn.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 512 << 10;

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
    fn send(&self, packet: &[u8], checksum: Checksum) {
        let header = header(packet, checksum);
        let parts = [IoSlice::new(&header), IoSlice::new(packet)];
        if let Err(error) = nix::sys::uio::writev(&self.0, &parts) {
            trace!(%error, length = packet.len(), "Packet for the host dropped");
        }
    }
}

fn header(packet: &[u8], checksum: Checksum) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    if checksum == Checksum::Partial {
        // The fields are of the machine's own byte order.
        header[0] = NEEDS_CHECKSUM;
        header[6..8].copy_from_slice(&(tcp_offset(packet) as u16).to_ne_bytes());
        header[8..10].copy_from_slice(&(TCP_CHECKSUM_OFFSET as u16).to_ne_bytes());
    }
    header
}

/// Gives packets to the netstack and new flows to the carrier, until the device
/// is gone.
pub(super) async fn read(
    tun: &Tun,
    netstack: &Netstack,
    mut carrier: Carrier,
) -> io::Result<Infallible> {
    let mut buffer = vec![0; MAX_READ];
    loop {
        let mut ready = tun.device.readable().await?;
        let mut taken = 0;
        for _ in 0..BATCH {
            if taken >= BATCH_BYTES {
                break;
            }
            match nix::unistd::read(ready.get_inner(), &mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    taken += length;
                    let (header, packet) = buffer[..length].split_at(HEADER.min(length));
                    let checksum = match header.first() {
                        Some(flags) if flags & NEEDS_CHECKSUM != 0 => Checksum::Partial,
                        Some(_) | None => Checksum::Complete,
                    };
                    if let Some(flow) = netstack.handle_tun_packet(packet, checksum, Instant::now())
                    {
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
