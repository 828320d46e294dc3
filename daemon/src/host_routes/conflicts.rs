//! Subnets held against the host's routes: which of them are in each other's way,
//! and what it takes to win where the user allows that.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kvpn_proto::{Failure, Reason};
use tracing::warn;

use super::join::join;
use super::{DeviceRoute, Kind, MAIN, Route, Stage, Wanted};

#[cfg(test)]
mod tests;

/// Plans the routes to the device, or tells which of the host's are in the way.
pub(super) fn plan(wanted: Wanted<'_>, routes: &[Route]) -> Result<BTreeSet<DeviceRoute>, Failure> {
    let mut conflicts = Vec::new();
    let mut outranked = Vec::new();
    let mut subnets = wanted.subnets.clone();
    for subnet in wanted.subnets {
        for route in routes.iter().filter(|route| route.conflicts_with(subnet)) {
            let conflict = Conflict {
                subnet: *subnet,
                route,
            };
            let is_allowed = is_in(&conflict.common(), wanted.allowed_conflicts);
            let is_routed = is_in(&conflict.common(), wanted.routed);
            if is_allowed && route.loses_to(subnet) {
                outranked.push(conflict);
            } else if is_routed {
                // It came later, and is the host's to have.
                if route.has_won(subnet, wanted.held) {
                    warn!(%subnet, route = %route.subnet, "Not routed, as a later route has won");
                    subnets.remove(subnet);
                }
            } else if is_allowed {
                return Err(conflict.unbeatable());
            } else {
                conflicts.push(conflict);
            }
        }
    }
    match conflicts.first() {
        Some(first) => Err(first.refusal(&conflicts)),
        None => Ok(device_routes(&subnets, &outranked, routes)),
    }
}

/// The routes that lead the subnets to the device, whatever the host has in its
/// tables. The longer prefix wins, so a route of the host's is divided by two.
fn device_routes(
    subnets: &BTreeSet<IpNet>,
    outranked: &[Conflict],
    routes: &[Route],
) -> BTreeSet<DeviceRoute> {
    let mut planned = BTreeSet::new();
    for subnet in subnets {
        planned.insert(usual(*subnet, MAIN));
        let earlier = routes
            .iter()
            .filter(|route| route.stage == Stage::BeforeMain && route.subnet.contains(subnet));
        planned.extend(earlier.map(|route| usual(*subnet, route.table)));
    }
    // What is larger than ours, or looked up later, has lost already.
    let outranked = || {
        let conflicts = outranked.iter();
        conflicts.filter(|conflict| {
            conflict.subnet.contains(&conflict.route.subnet)
                && conflict.route.stage != Stage::AfterMain
        })
    };
    for Conflict { route, .. } in outranked() {
        let halves = route.subnet.subnets(route.subnet.prefix_len() + 1);
        planned.extend(
            halves
                .into_iter()
                .flatten()
                .map(|half| usual(half, route.table)),
        );
    }
    for Conflict { route, .. } in outranked() {
        // There may be no second one of the same subnet and metric, and its halves
        // are there.
        planned.remove(&usual(route.subnet, route.table));
    }
    for Conflict { route, .. } in outranked().filter(|conflict| conflict.route.is_single()) {
        planned.insert(DeviceRoute {
            subnet: route.subnet,
            table: route.table,
            metric: best_metric(&route.subnet),
        });
    }
    planned
}

fn usual(subnet: IpNet, table: u32) -> DeviceRoute {
    DeviceRoute {
        subnet,
        table,
        metric: 0,
    }
}

/// The metric that wins against all others.
fn best_metric(subnet: &IpNet) -> u32 {
    match subnet {
        IpNet::V4(_) => 0,
        // 0 stands for the usual 1024.
        IpNet::V6(_) => 1,
    }
}

fn is_in(subnet: &IpNet, parts: &BTreeSet<IpNet>) -> bool {
    parts.iter().any(|part| part.contains(subnet))
}

impl Route {
    /// Tells whether routing the subnet to the device takes something away from
    /// what this route leads to, or the other way round.
    fn conflicts_with(&self, subnet: &IpNet) -> bool {
        if self.is_default() {
            return false;
        }
        match self.kind {
            Kind::Unicast | Kind::Local => {
                self.subnet.contains(subnet) || subnet.contains(&self.subnet)
            }
            // A larger one says that nothing is there, but for what has a route.
            Kind::Closed(_) => subnet.contains(&self.subnet),
        }
    }

    /// Tells whether it has won against the device's routes to all of a subnet, of
    /// which a smaller one now would take back what is in it.
    fn has_won(&self, subnet: &IpNet, held: &BTreeSet<IpNet>) -> bool {
        let is_held = |held: &IpNet| held.contains(subnet) && self.subnet.contains(held);
        self.subnet.contains(subnet) && !held.iter().any(is_held)
    }

    /// Tells whether routes to a device can win against this one.
    fn loses_to(&self, subnet: &IpNet) -> bool {
        let is_larger = !subnet.contains(&self.subnet);
        match self.kind {
            Kind::Local => false,
            Kind::Unicast | Kind::Closed(_) => {
                is_larger || !self.is_single() || self.metric > best_metric(&self.subnet)
            }
        }
    }

    /// Tells whether it is for one address, which cannot be divided.
    fn is_single(&self) -> bool {
        self.subnet.prefix_len() == self.subnet.max_prefix_len()
    }
}

/// A subnet and a route that are in each other's way.
#[derive(Clone, Copy, Debug)]
struct Conflict<'a> {
    subnet: IpNet,
    route: &'a Route,
}

impl Conflict<'_> {
    /// What both are for.
    fn common(&self) -> IpNet {
        if self.subnet.contains(&self.route.subnet) {
            self.route.subnet
        } else {
            self.subnet
        }
    }

    /// Tells of this one, and the way out of all of them.
    fn refusal(&self, all: &[Self]) -> Failure {
        let common: Vec<IpNet> = all.iter().map(Self::common).collect();
        let common: Vec<String> = join(&common).iter().map(ToString::to_string).collect();
        let common = common.join(",");
        Failure::new(
            Reason::HostRefused,
            format!(
                "the cluster's subnet {} overlaps with the host's {}",
                self.subnet, self.route
            ),
            format!(
                "connect with `--vnat all` to have the cluster at other addresses, with \
                 `--allow-conflicting-subnets {common}` to reach it at its own, or with \
                 `--never-proxy {common}` to leave that part to the host"
            ),
        )
    }

    fn unbeatable(&self) -> Failure {
        let why = match self.route.kind {
            Kind::Local => "which leads to this host itself",
            Kind::Unicast | Kind::Closed(_) => "which is for one address and has the best metric",
        };
        Failure::new(
            Reason::HostRefused,
            format!(
                "the cluster's subnet {} cannot win against the host's {}, {why}",
                self.subnet, self.route
            ),
            format!(
                "delete that route, or connect with `--never-proxy {}` to leave it to the host",
                self.route.subnet
            ),
        )
    }
}
