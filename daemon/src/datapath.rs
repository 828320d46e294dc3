//! The data path: packets of the host become flows, flows become streams of the
//! tunnel; and the other way round for what agents intercept.

mod dials;
mod flows;
pub(crate) mod registry;
mod tun;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use kvpn_proto::{Failure, Reason};
use kvpn_tunnel::host::{run_keep_alives, run_timers};
use kvpn_tunnel::netstack::{Counters, Netstack, NetstackConfig};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

pub(crate) use dials::answer as answer_dial;
pub(crate) use flows::{Exit, dial};
use registry::FlowRegistry;
use tun::Tun;

use crate::lease::slot::hop;

/// The running data path; dropping it resets every flow and closes the TUN.
pub(crate) struct Datapath {
    netstack: Arc<Netstack>,
    reader: AbortOnDropHandle<io::Error>,
    timers: AbortOnDropHandle<()>,
}

impl Datapath {
    /// Starts to carry what the host sends into the TUN. `own` are the host's
    /// addresses on it.
    pub(crate) fn start(
        device: OwnedFd,
        mtu: u16,
        own: Vec<IpAddr>,
        exit: Exit,
        registry: FlowRegistry,
    ) -> io::Result<Self> {
        let tun = Tun::new(device)?;
        let mut config = NetstackConfig {
            mtu,
            partial_checksums: true,
            ..NetstackConfig::default()
        };
        for own in &own {
            match hop(*own) {
                IpAddr::V4(hop) => config.hop_v4 = hop,
                IpAddr::V6(hop) => config.hop_v6 = hop,
            }
        }
        let netstack = Arc::new(Netstack::new(config, tun.sink()));
        let timers = {
            let netstack = netstack.clone();
            tokio::spawn(async move {
                tokio::join!(run_timers(&netstack), run_keep_alives(&netstack));
            })
        };
        let reader = {
            let netstack = netstack.clone();
            tokio::spawn(async move {
                let carrier = flows::Carrier::new(exit, own, registry);
                let Err(error) = tun::read(&tun, &netstack, carrier).await;
                error
            })
        };
        Ok(Self {
            netstack,
            reader: AbortOnDropHandle::new(reader),
            timers: AbortOnDropHandle::new(timers),
        })
    }

    /// Resolves when nothing is carried any more, with the reason.
    pub(crate) async fn ended(&mut self) -> Failure {
        let broken = |error: JoinError| Failure::internal(format!("the data path broke: {error}"));
        tokio::select! {
            ended = &mut self.reader => ended.map_or_else(broken, |error| device_lost(&error)),
            ended = &mut self.timers => match ended {
                Ok(()) => Failure::internal("the data path's timers ended"),
                Err(error) => broken(error),
            },
        }
    }

    /// What status tells of the traffic.
    pub(crate) fn meter(&self) -> Meter {
        Meter(Arc::downgrade(&self.netstack))
    }
}

fn device_lost(error: &io::Error) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("the TUN device cannot be read any more: {error}"),
        "connect again with `kvpn connect`, and leave the device to kvpn",
    )
}

/// Reads the counters of a data path, without keeping its device open.
#[derive(Clone)]
pub(crate) struct Meter(Weak<Netstack>);

impl Meter {
    pub(crate) fn counters(&self) -> Counters {
        self.0
            .upgrade()
            .map(|netstack| netstack.counters())
            .unwrap_or_default()
    }
}
