//! What a lease is for.

use ipnet::IpNet;
use kvpn_proto::v1;

/// What a lease changes on the host, but for the device itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// Routed to the device.
    pub(crate) subnets: Vec<IpNet>,
    /// Put before the host's search domains.
    pub(crate) search_domains: Vec<String>,
    /// Whose names the lease's name server answers, for hosts whose resolver
    /// chooses name servers by domain.
    pub(crate) domains: Vec<String>,
    /// Parts of the address space in which a subnet is routed although the host
    /// has another route to it.
    pub(crate) allowed_conflicts: Vec<IpNet>,
}

impl From<&Network> for v1::Network {
    fn from(network: &Network) -> Self {
        Self {
            subnets: texts(&network.subnets),
            search_domains: network.search_domains.clone(),
            domains: network.domains.clone(),
            allowed_conflicts: texts(&network.allowed_conflicts),
        }
    }
}

fn texts(subnets: &[IpNet]) -> Vec<String> {
    subnets.iter().map(ToString::to_string).collect()
}
