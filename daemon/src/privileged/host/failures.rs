//! What can go wrong with the host, and what to do then.

use std::io;
use std::net::IpAddr;

use kvpn_proto::{Failure, Reason};

use crate::lease::slot::MAX_LEASES;
use crate::privileged::failed;

/// Why a lease cannot be had in a slot.
pub(super) struct NotApplied {
    pub(super) failure: Failure,
    /// Somebody else on the host has what belongs to the slot.
    pub(super) is_taken: bool,
}

impl From<Failure> for NotApplied {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            is_taken: false,
        }
    }
}

pub(super) fn device_failed(name: &str, error: &io::Error) -> NotApplied {
    let is_taken = error.kind() == io::ErrorKind::AlreadyExists;
    let next_step = if is_taken {
        format!("remove it with `sudo ip link delete {}`", name)
    } else {
        "make sure that /dev/net/tun exists and that kvpnd runs as root".into()
    };
    let failure = Failure::new(
        Reason::HostRefused,
        format!("cannot make the TUN device: {error}"),
        next_step,
    );
    NotApplied { failure, is_taken }
}

pub(super) fn bind_failed(address: IpAddr, error: &io::Error) -> NotApplied {
    let is_taken = error.kind() == io::ErrorKind::AddrInUse;
    let next_step = if is_taken {
        "look with `sudo ss -lnp sport = :53` for who is there: end a session of kvpn that was \
         left, and bind a name server of your own to its own address"
            .into()
    } else {
        failed("", error).next_step
    };
    let failure = Failure::new(
        Reason::HostRefused,
        format!("cannot serve DNS on {address}, port 53: {error}"),
        next_step,
    );
    NotApplied { failure, is_taken }
}

pub(super) fn no_slot() -> Failure {
    Failure::new(
        Reason::AlreadyConnected,
        format!("{MAX_LEASES} connections at once are as many as there can be"),
        "end one with `kvpn quit NAME`",
    )
}
