//! The TUN device.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::if_nametoindex;

/// The largest MTU that the kernel takes, in bytes: the host's packets end in
/// the session, so none of them is too long for a wire.
pub(super) const MTU: u16 = 65535;

/// A TUN device that lasts as long as its file descriptor is open.
pub(super) struct Tun {
    pub(super) descriptor: OwnedFd,
    pub(super) index: u32,
}

/// Makes the device of this name; its descriptor carries IP packets, each after a
/// `virtio_net_hdr`, and never blocks.
pub(super) fn create(name: &str) -> io::Result<Tun> {
    // The kernel would attach us to somebody's persistent device of this name.
    if if_nametoindex(name).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("a device named {name} exists already"),
        ));
    }
    let mut configuration = tun::configure();
    configuration
        .tun_name(name)
        .mtu(MTU)
        .platform_config(|linux| {
            linux.vnet_hdr(true);
        });
    let device = tun::create(&configuration).map_err(io::Error::other)?;
    let descriptor = own(device);
    let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
    fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    offload(&descriptor);
    Ok(Tun {
        descriptor,
        index: if_nametoindex(name)?,
    })
}

/// Lets the kernel leave checksums out and segments together. Where it will
/// not, packets come as they would be on a wire.
#[expect(unsafe_code, reason = "no crate wraps this request")]
fn offload(device: &OwnedFd) {
    // SAFETY: the request takes an integer, and the descriptor is open.
    let taken = unsafe { set_offload(device.as_raw_fd(), OFFLOADS) };
    if let Err(error) = taken {
        tracing::info!(%error, "The TUN device offloads nothing");
    }
}

// TUNSETOFFLOAD of linux/if_tun.h.
nix::ioctl_write_int!(set_offload, b'T', 208);

/// `TUN_F_CSUM`, `TUN_F_TSO4` and `TUN_F_TSO6` of linux/if_tun.h.
const OFFLOADS: nix::sys::ioctl::ioctl_param_type = 0x01 | 0x02 | 0x04;

#[expect(
    unsafe_code,
    reason = "the tun crate gives up its descriptor as an integer"
)]
fn own(device: tun::Device) -> OwnedFd {
    // SAFETY: into_raw_fd hands over the ownership of an open descriptor.
    unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) }
}
