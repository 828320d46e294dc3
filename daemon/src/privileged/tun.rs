//! The TUN device.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::net::if_::if_nametoindex;

/// Name of the device.
pub(super) const DEVICE: &str = "kvpn0";

/// The largest MTU that the kernel takes, in bytes: the host's packets end in
/// the session, so none of them is too long for a wire.
pub(super) const MTU: u16 = 65535;

/// A TUN device that lasts as long as its file descriptor is open.
pub(super) struct Tun {
    pub(super) descriptor: OwnedFd,
    pub(super) index: u32,
}

/// Makes the device; its descriptor carries plain IP packets and never blocks.
pub(super) fn create() -> io::Result<Tun> {
    // The kernel would attach us to somebody's persistent device of this name.
    if if_nametoindex(DEVICE).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("a device named {DEVICE} exists already"),
        ));
    }
    let mut configuration = tun::configure();
    configuration.tun_name(DEVICE).mtu(MTU);
    let device = tun::create(&configuration).map_err(io::Error::other)?;
    let descriptor = own(device);
    let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
    fcntl(&descriptor, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(Tun {
        descriptor,
        index: if_nametoindex(DEVICE)?,
    })
}

#[expect(
    unsafe_code,
    reason = "the tun crate gives up its descriptor as an integer"
)]
fn own(device: tun::Device) -> OwnedFd {
    // SAFETY: into_raw_fd hands over the ownership of an open descriptor.
    unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) }
}
