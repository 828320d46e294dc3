//! The data path: packets of the host become flows, flows become streams of the
//! tunnel; and the other way round for what agents intercept.

mod dials;
mod flows;
mod tun;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvpn_tunnel::host::run_timers;
use kvpn_tunnel::netstack::{Counters, Netstack, NetstackConfig};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
use tracing::error;

pub(crate) use dials::answer as answer_dial;
use tun::Tun;

use crate::session::manager::Manager;

/// The running data path; dropping it resets every flow and closes the TUN.
pub(crate) struct Datapath {
    netstack: Arc<Netstack>,
    _reader: AbortOnDropHandle<()>,
    _timers: AbortOnDropHandle<()>,
}

impl Datapath {
    /// Starts to carry what the host sends into the TUN. `own` are the host's
    /// addresses on it.
    pub(crate) fn start(
        device: OwnedFd,
        mtu: u16,
        own: Vec<IpAddr>,
        manager: Manager,
    ) -> io::Result<Self> {
        let tun = Tun::new(device)?;
        let config = NetstackConfig {
            mtu,
            ..NetstackConfig::default()
        };
        let netstack = Arc::new(Netstack::new(config, tun.sink()));
        let timers = {
            let netstack = netstack.clone();
            tokio::spawn(async move { run_timers(&netstack).await })
        };
        let reader: JoinHandle<()> = {
            let netstack = netstack.clone();
            tokio::spawn(async move {
                let carrier = flows::Carrier::new(manager, own);
                if let Err(error) = tun::read(&tun, &netstack, carrier).await {
                    error!(%error, "The TUN device cannot be read any more");
                }
            })
        };
        Ok(Self {
            netstack,
            _reader: AbortOnDropHandle::new(reader),
            _timers: AbortOnDropHandle::new(timers),
        })
    }

    /// What status tells of the traffic.
    pub(crate) fn meter(&self) -> Meter {
        Meter(self.netstack.clone())
    }
}

/// Reads the counters of a data path.
#[derive(Clone)]
pub(crate) struct Meter(Arc<Netstack>);

impl Meter {
    pub(crate) fn counters(&self) -> Counters {
        self.0.counters()
    }
}
