//! Subnets of the cluster at other addresses of this host: `--vnat`. The host uses
//! the shown addresses, the tunnel the real ones.

mod ranges;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, PoisonError, RwLock};

use ipnet::IpNet;
use kvpn_proto::{Failure, Reason, v1};

use super::subnet_rules::{SubnetRules, VNAT, parse, without};
use crate::host_routes::HostRoutes;
use crate::netlink::Netlink;

/// Which subnets the user wants to be shown at other addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VnatRules {
    all: bool,
    subnets: Vec<IpNet>,
}

/// Where subnets are shown. Clones share it; what is shown once stays where it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vnat {
    mappings: Arc<RwLock<Vec<Mapping>>>,
    /// What the user leaves to the host is shown nowhere else.
    subnets: SubnetRules,
}

/// Two subnets of the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) real: IpNet,
    pub(crate) shown: IpNet,
}

impl VnatRules {
    /// Reads the values of the flag: subnets, or `all`.
    ///
    /// # Errors
    /// `Usage` when one is neither.
    pub(crate) fn new(texts: &[String]) -> Result<Self, Failure> {
        let (all, subnets): (Vec<_>, Vec<_>) = texts.iter().cloned().partition(|it| it == "all");
        Ok(Self {
            all: !all.is_empty(),
            subnets: parse(VNAT, &subnets)?,
        })
    }

    /// Refuses a subnet that holds none of these.
    ///
    /// # Errors
    /// `Usage`.
    pub(crate) fn check(&self, subnets: &[IpNet]) -> Result<(), Failure> {
        let is_idle = |rule: &&IpNet| !subnets.iter().any(|subnet| rule.contains(subnet));
        let Some(idle) = self.subnets.iter().find(is_idle) else {
            return Ok(());
        };
        let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        Err(Failure::new(
            Reason::Usage,
            format!("{VNAT} {idle} holds none of the cluster's subnets"),
            format!("name some of {}, or `all`", subnets.join(", ")),
        ))
    }

    fn covers(&self, subnet: &IpNet) -> bool {
        self.all || self.subnets.iter().any(|rule| rule.contains(subnet))
    }
}

impl Vnat {
    /// Nothing is shown elsewhere yet.
    pub(crate) fn new(subnets: SubnetRules) -> Self {
        Self {
            mappings: Arc::default(),
            subnets,
        }
    }

    /// Shows these on a host that uses nothing.
    #[cfg(test)]
    pub(crate) fn showing(subnets: &[&str]) -> Self {
        let vnat = Self::default();
        let subnets: Vec<IpNet> = subnets.iter().map(|it| it.parse().unwrap()).collect();
        vnat.show(&subnets, |_| true).unwrap();
        vnat
    }

    /// Also shows those of these subnets that the rules cover, at ranges that nothing
    /// on this host uses.
    ///
    /// # Errors
    /// `HostRefused` when there is no such range, or the host cannot be asked.
    pub(crate) async fn extend(&self, rules: &VnatRules, subnets: &[IpNet]) -> Result<(), Failure> {
        let known = self.mappings();
        let is_new = |subnet: &&IpNet| {
            rules.covers(subnet) && !known.iter().any(|mapping| mapping.real.contains(*subnet))
        };
        let new: Vec<IpNet> = subnets.iter().filter(is_new).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let read = async { HostRoutes::read(&Netlink::open()?, None).await };
        let host = read.await.map_err(|error| {
            Failure::new(
                Reason::HostRefused,
                format!("this host's addresses and routes cannot be read: {error}"),
                "see whether `ip route show table all` shows them to you",
            )
        })?;
        self.show(&IpNet::aggregate(&new), |range| host.is_free(range))
    }

    fn show(&self, subnets: &[IpNet], is_free: impl Fn(&IpNet) -> bool) -> Result<(), Failure> {
        let mut mappings = self.mappings();
        for real in subnets {
            let is_taken = |range: &IpNet| {
                let mut shown = mappings.iter().map(|mapping| mapping.shown);
                shown.any(|shown| shown.contains(range) || range.contains(&shown))
            };
            let shown = ranges::of_length(real)
                .find(|range| !is_taken(range) && is_free(range))
                .ok_or_else(|| no_range(real))?;
            mappings.push(Mapping { real: *real, shown });
        }
        *self
            .mappings
            .write()
            .unwrap_or_else(PoisonError::into_inner) = mappings;
        Ok(())
    }

    /// What is shown elsewhere.
    pub(crate) fn mappings(&self) -> Vec<Mapping> {
        let mappings = self.mappings.read().unwrap_or_else(PoisonError::into_inner);
        mappings.clone()
    }

    /// The address in the cluster that the host knows as this one.
    pub(crate) fn real(&self, address: IpAddr) -> IpAddr {
        self.translate(address, |mapping| (mapping.shown, mapping.real))
    }

    /// The address by which the host knows this one of the cluster.
    pub(crate) fn shown(&self, address: IpAddr) -> IpAddr {
        if self.subnets.leaves_to_host(address) {
            return address;
        }
        self.translate(address, |mapping| (mapping.real, mapping.shown))
    }

    /// Tells whether the host knows something else by this address than the cluster.
    pub(crate) fn is_hosts(&self, address: IpAddr) -> bool {
        self.subnets.leaves_to_host(address) || self.shown(address) != address
    }

    /// The same subnets as the host knows them.
    pub(crate) fn shown_subnets(&self, subnets: &[IpNet]) -> Vec<IpNet> {
        let mut rest = subnets.to_vec();
        let mut shown = Vec::new();
        for mapping in self.mappings() {
            let parts = rest
                .iter()
                .filter_map(|subnet| common(*subnet, mapping.real));
            shown.extend(parts.map(|part| moved(part, mapping.shown)));
            rest = rest
                .into_iter()
                .flat_map(|subnet| without(subnet, mapping.real))
                .collect();
        }
        rest.extend(shown);
        IpNet::aggregate(&rest)
    }

    fn translate(&self, address: IpAddr, by: impl Fn(&Mapping) -> (IpNet, IpNet)) -> IpAddr {
        let mappings = self.mappings.read().unwrap_or_else(PoisonError::into_inner);
        let mut mappings = mappings.iter().map(by);
        match mappings.find(|(from, _)| from.contains(&address)) {
            Some((_, to)) => moved(address.into(), to).addr(),
            None => address,
        }
    }
}

impl From<Mapping> for v1::VirtualSubnet {
    fn from(mapping: Mapping) -> Self {
        Self {
            subnet: mapping.real.to_string(),
            virtual_subnet: mapping.shown.to_string(),
        }
    }
}

/// What is in both, of which one holds the other or they are apart.
fn common(one: IpNet, other: IpNet) -> Option<IpNet> {
    if one.contains(&other) {
        Some(other)
    } else if other.contains(&one) {
        Some(one)
    } else {
        None
    }
}

/// Puts a part into the subnet that is shown, where it is in the real one.
fn moved(part: IpNet, into: IpNet) -> IpNet {
    match (part, into) {
        (IpNet::V4(part), IpNet::V4(into)) => {
            let host = part.addr().to_bits() & into.hostmask().to_bits();
            let address = Ipv4Addr::from_bits(into.network().to_bits() | host);
            IpNet::new_assert(address.into(), part.prefix_len())
        }
        (IpNet::V6(part), IpNet::V6(into)) => {
            let host = part.addr().to_bits() & into.hostmask().to_bits();
            let address = Ipv6Addr::from_bits(into.network().to_bits() | host);
            IpNet::new_assert(address.into(), part.prefix_len())
        }
        // Mappings are of one family.
        (IpNet::V4(_), IpNet::V6(_)) | (IpNet::V6(_), IpNet::V4(_)) => part,
    }
}

fn no_range(real: &IpNet) -> Failure {
    Failure::new(
        Reason::HostRefused,
        format!("no free range on this host is as large as the cluster's subnet {real}"),
        format!(
            "leave it out of {VNAT}, and connect with `--allow-conflicting-subnets {real}` or \
             `--never-proxy {real}`"
        ),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rules(texts: &[&str]) -> Result<VnatRules, Failure> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        VnatRules::new(&texts)
    }

    #[test]
    fn addresses_keep_their_place_in_the_subnet() {
        let vnat = Vnat::showing(&["10.96.0.0/16", "10.244.0.0/16", "fd00:96::/108"]);
        for (real, shown) in [
            ("10.96.3.4", "246.0.3.4"),
            ("10.96.255.255", "246.0.255.255"),
            ("10.244.0.0", "246.1.0.0"),
            ("fd00:96::7", "fd6b:7670:6e00::7"),
            ("192.0.2.1", "192.0.2.1"),
        ] {
            let (real, shown) = (address(real), address(shown));
            assert_eq!(vnat.shown(real), shown);
            assert_eq!(vnat.real(shown), real);
        }
        // What nobody sees under it is not asked for.
        assert_eq!(vnat.real(address("246.2.0.1")), address("246.2.0.1"));
    }

    #[test]
    fn what_is_left_to_the_host_is_shown_nowhere_else() {
        let texts = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        let rules = SubnetRules::new(&texts(&["10.96.1.2"]), &texts(&["10.96.1.0/24"]), &[]);
        let vnat = Vnat::new(rules.unwrap());
        vnat.show(&[net("10.96.0.0/16")], |_| true).unwrap();
        for (real, shown) in [
            ("10.96.1.1", "10.96.1.1"),
            ("10.96.1.2", "246.0.1.2"),
            ("10.96.2.1", "246.0.2.1"),
        ] {
            assert_eq!(vnat.shown(address(real)), address(shown));
        }
    }

    #[test]
    fn ranges_that_are_in_use_are_left_alone() {
        let vnat = Vnat::default();
        let taken = net("246.1.2.0/24");
        vnat.show(&[net("10.96.0.0/16")], |range| {
            !range.contains(&net("246.0.0.0/24"))
        })
        .unwrap();
        vnat.show(&[net("10.244.0.0/16")], |range| !range.contains(&taken))
            .unwrap();
        let shown: Vec<IpNet> = vnat.mappings().iter().map(|it| it.shown).collect();
        // The first range was free for the second.
        assert_eq!(shown, [net("246.1.0.0/16"), net("246.0.0.0/16")]);
        let failure = vnat.show(&[net("10.0.0.0/8")], |_| true).unwrap_err();
        assert_eq!(failure.reason, Reason::HostRefused);
        assert_eq!(vnat.mappings().len(), 2);
    }

    #[test]
    fn routed_parts_are_moved_and_the_rest_stays() {
        let vnat = Vnat::showing(&["10.96.0.0/16"]);
        let shown = |texts: &[&str]| {
            let subnets: Vec<IpNet> = texts.iter().map(|text| net(text)).collect();
            vnat.shown_subnets(&subnets)
        };
        assert_eq!(shown(&["10.96.4.0/24"]), [net("246.0.4.0/24")]);
        // Two subnets that were merged.
        assert_eq!(
            shown(&["10.96.0.0/15", "fd00::/64"]),
            [net("10.97.0.0/16"), net("246.0.0.0/16"), net("fd00::/64")]
        );
    }

    #[test]
    fn subnet_that_is_not_the_clusters_is_refused() {
        let subnets = [net("10.96.0.0/16"), net("10.244.0.0/16")];
        assert_eq!(rules(&["10.0.0.0/8"]).unwrap().check(&subnets), Ok(()));
        assert_eq!(rules(&["all"]).unwrap().check(&subnets), Ok(()));
        let failure = rules(&["10.96.1.0/24"]).unwrap().check(&subnets);
        assert!(failure.unwrap_err().next_step.contains("10.96.0.0/16"));
        assert_eq!(rules(&["everything"]).unwrap_err().reason, Reason::Usage);
    }

    proptest! {
        #[test]
        fn what_is_shown_leads_back(bits in any::<u32>()) {
            let vnat = Vnat::showing(&["10.96.0.0/12", "10.244.0.0/16", "192.0.2.0/30"]);
            let real = IpAddr::V4(Ipv4Addr::from_bits(bits));
            // Nobody has those, so that they can be shown for others.
            prop_assume!(!net("246.0.0.0/8").contains(&real));
            let shown = vnat.shown(real);
            prop_assert_eq!(vnat.real(shown), real);
            prop_assert!(shown == real || net("246.0.0.0/8").contains(&shown));
        }
    }
}
