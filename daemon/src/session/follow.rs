//! The host's network, which follows the cluster and the host itself.

use std::time::Duration;

use kvpn_proto::Failure;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::cluster_info::ClusterInfo;
use super::host_plan::HostPlan;
use crate::lease::client::Lease;
use crate::lease::network::Network;

/// How soon it is tried again what could not be done, at first and at last.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Has the host follow what is other in the cluster, or on the host.
pub(super) struct Follower {
    plan: HostPlan,
    /// What the host has.
    network: watch::Sender<Network>,
    /// Whether it may have something else, because no answer came.
    is_unsure: bool,
    behind: Option<Behind>,
}

/// What could not be done.
struct Behind {
    reason: String,
    pause: Duration,
    next: Instant,
}

impl Follower {
    /// While the host has `network`.
    pub(super) fn new(plan: HostPlan, network: Network) -> Self {
        Self {
            plan,
            network: watch::Sender::new(network),
            is_unsure: false,
            behind: None,
        }
    }

    /// What the host has.
    pub(super) fn network(&self) -> watch::Receiver<Network> {
        self.network.subscribe()
    }

    /// Resolves when the host has other name servers, or what could not be done is to be
    /// tried again.
    pub(super) async fn due(&mut self) {
        let again = async {
            match &self.behind {
                Some(behind) => sleep_until(behind.next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = again => {}
            () = self.plan.protected.changed() => info!("The host has other name servers"),
        }
    }

    /// Tells the root daemon what is other than before.
    pub(super) async fn follow(&mut self, cluster: &ClusterInfo, lease: &mut Lease) {
        match self.try_follow(cluster, lease).await {
            Ok(()) => self.behind = None,
            Err(failure) => {
                let pause = match self.behind.take() {
                    Some(behind) if behind.reason == failure.message => {
                        debug!(error = failure.message, "The host still cannot follow");
                        LONGEST_PAUSE.min(2 * behind.pause)
                    }
                    Some(_) | None => {
                        let error = &failure.message;
                        warn!(error, "The host's network cannot follow");
                        FIRST_PAUSE
                    }
                };
                self.behind = Some(Behind {
                    reason: failure.message,
                    pause,
                    next: Instant::now() + pause,
                });
            }
        }
    }

    async fn try_follow(
        &mut self,
        cluster: &ClusterInfo,
        lease: &mut Lease,
    ) -> Result<(), Failure> {
        // What finds no other place stays at its own addresses.
        let placed = self.plan.find_places(cluster).await;
        let wanted = self.plan.network(cluster);
        if self.is_unsure || wanted != *self.network.borrow() {
            self.is_unsure = true;
            lease.set_network(&wanted).await?;
            self.is_unsure = false;
            info!(subnets = ?wanted.subnets, "The host's network has followed");
            self.network.send_replace(wanted);
        }
        placed
    }
}
