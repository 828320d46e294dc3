//! Whether the host's own network is in the way of the cluster's subnets.

use std::collections::BTreeSet;
use std::io;

use ipnet::IpNet;
use kvpn_proto::check::Check;
use kvpn_proto::{Failure, v1};

use super::ROUTES;
use crate::host_routes::{HostRoutes, Wanted};
use crate::netlink::Netlink;

/// Holds the subnets against the host's routes and addresses, as the root daemon
/// does, but for those of the device of whoever is connected.
pub(super) async fn check(subnets: Vec<IpNet>, holder: Option<v1::Holder>) -> Check {
    let device = holder.as_ref().map(|holder| holder.device.as_str());
    match read(device).await {
        Ok(host) => finding(&subnets.into_iter().collect(), &host, holder.is_some()),
        Err(error) => Check::warning(
            ROUTES,
            format!("this host's addresses and routes cannot be read: {error}"),
            "see whether `ip route show table all` shows them to you",
        ),
    }
}

async fn read(device: Option<&str>) -> io::Result<HostRoutes> {
    HostRoutes::read(&Netlink::open()?, device).await
}

fn finding(subnets: &BTreeSet<IpNet>, host: &HostRoutes, is_connected: bool) -> Check {
    let none = BTreeSet::new();
    let planned = host.plan(Wanted {
        subnets,
        allowed_conflicts: &none,
        routed: &none,
        held: &none,
    });
    match planned {
        Ok(_) => {
            let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            let message = format!("nothing else uses the cluster's {}", subnets.join(", "));
            Check::ok(ROUTES, message)
        }
        // The user may have allowed it.
        Err(Failure {
            message, next_step, ..
        }) if is_connected => Check::warning(ROUTES, message, next_step),
        Err(failure) => Check::failure(ROUTES, failure),
    }
}

#[cfg(test)]
mod tests {
    use kvpn_proto::Reason;
    use kvpn_proto::check::Finding;

    use super::*;

    fn found(subnet: &str, is_connected: bool) -> Finding {
        let mut host = HostRoutes::default();
        host.addresses.push("10.96.3.4".parse().unwrap());
        let subnets = [subnet.parse().unwrap()].into();
        finding(&subnets, &host, is_connected).finding
    }

    #[test]
    fn subnet_that_nothing_else_uses_is_well() {
        assert!(matches!(found("10.97.0.0/16", false), Finding::Ok { .. }));
    }

    #[test]
    fn what_connect_would_refuse_is_a_failure_in_the_same_words() {
        let Finding::Failure(failure) = found("10.96.0.0/16", false) else {
            panic!("no failure");
        };
        assert_eq!(failure.reason, Reason::HostRefused);
        assert_eq!(
            failure.message,
            "the cluster's subnet 10.96.0.0/16 holds this host's own address 10.96.3.4"
        );
    }

    #[test]
    fn who_is_connected_nevertheless_is_warned() {
        let finding = found("10.96.0.0/16", true);
        assert!(matches!(finding, Finding::Warning { .. }), "{finding:?}");
    }
}
