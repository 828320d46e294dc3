//! Which addresses are routed to the cluster, by what its user says of subnets.

use std::net::IpAddr;

use ipnet::IpNet;
use kvpn_proto::{Failure, Reason};

const ALSO_PROXY: &str = "--also-proxy";
const NEVER_PROXY: &str = "--never-proxy";
const ALLOW_CONFLICTING: &str = "--allow-conflicting-subnets";
pub(super) const VNAT: &str = "--vnat";

/// What the user says of subnets. Of the rules over an address, the most specific
/// decides; the cluster decides where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SubnetRules {
    /// Routed to the cluster besides its own.
    also_proxy: Vec<IpNet>,
    /// Left to the host.
    never_proxy: Vec<IpNet>,
    /// Where a route of the host's does not matter.
    allowed_conflicts: Vec<IpNet>,
}

impl SubnetRules {
    /// Reads the flags of the same names.
    ///
    /// # Errors
    /// `Usage` when one is no subnet, or when two contradict each other.
    pub(crate) fn new(
        also_proxy: &[String],
        never_proxy: &[String],
        allowed_conflicts: &[String],
    ) -> Result<Self, Failure> {
        let rules = Self {
            also_proxy: parse(ALSO_PROXY, also_proxy)?,
            never_proxy: parse(NEVER_PROXY, never_proxy)?,
            allowed_conflicts: parse(ALLOW_CONFLICTING, allowed_conflicts)?,
        };
        let mut also = rules.also_proxy.iter();
        match also.find(|subnet| rules.never_proxy.contains(subnet)) {
            None => Ok(rules),
            Some(subnet) => Err(Failure::new(
                Reason::Usage,
                format!("{subnet} is in both {ALSO_PROXY} and {NEVER_PROXY}"),
                "name it in one of them; a smaller subnet inside it may be in the other",
            )),
        }
    }

    /// Routed besides the cluster's own.
    pub(crate) fn also_proxy(&self) -> &[IpNet] {
        &self.also_proxy
    }

    /// Parts of the address space in which a subnet is routed although the host
    /// has another route to it.
    pub(crate) fn allowed_conflicts(&self) -> &[IpNet] {
        &self.allowed_conflicts
    }

    /// Tells whether the user leaves an address to the host.
    pub(crate) fn leaves_to_host(&self, address: IpAddr) -> bool {
        let longest = |subnets: &[IpNet]| {
            let fitting = subnets.iter().filter(|subnet| subnet.contains(&address));
            fitting.map(IpNet::prefix_len).max()
        };
        longest(&self.never_proxy) > longest(&self.also_proxy)
    }

    /// What to route, of a cluster with these subnets. What is protected is left
    /// out, unless the user names that very address.
    pub(crate) fn routed(&self, cluster: Vec<IpNet>, protected: &[IpAddr]) -> Vec<IpNet> {
        let protected = protected
            .iter()
            .map(|address| (IpNet::from(*address), false));
        let never = self.never_proxy.iter().map(|subnet| (*subnet, false));
        let also = self.also_proxy.iter().map(|subnet| (*subnet, true));
        let mut rules: Vec<(IpNet, bool)> = protected.chain(never).chain(also).collect();
        // Each outranks those before it. The sort is stable, so what is protected
        // comes before what the user says of the same address.
        rules.sort_by_key(|(subnet, _)| subnet.prefix_len());
        let mut routed = cluster;
        for (subnet, is_routed) in rules {
            if is_routed {
                routed.push(subnet);
            } else {
                routed = routed
                    .into_iter()
                    .flat_map(|whole| without(whole, subnet))
                    .collect();
            }
        }
        IpNet::aggregate(&routed)
    }
}

/// Splits a subnet so that a part is left out.
pub(super) fn without(whole: IpNet, part: IpNet) -> Vec<IpNet> {
    if part.contains(&whole) {
        return Vec::new();
    }
    if !whole.contains(&part) {
        return vec![whole];
    }
    match whole.subnets(whole.prefix_len() + 1) {
        Ok(halves) => halves.flat_map(|half| without(half, part)).collect(),
        // A single address has no parts.
        Err(_) => vec![whole],
    }
}

pub(super) fn parse(flag: &str, texts: &[String]) -> Result<Vec<IpNet>, Failure> {
    texts.iter().map(|text| parse_one(flag, text)).collect()
}

/// Reads a subnet, or an address for itself alone.
fn parse_one(flag: &str, text: &str) -> Result<IpNet, Failure> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let subnet = text.parse::<IpNet>().map_err(|_| {
        Failure::new(
            Reason::Usage,
            format!("`{text}` of {flag} is not a subnet"),
            "write it as ADDRESS/LENGTH, such as 10.96.0.0/16, or as an address",
        )
    })?;
    if subnet != subnet.trunc() {
        return Err(Failure::new(
            Reason::Usage,
            format!("the subnet {subnet} of {flag} has bits set beyond its length"),
            format!(
                "write {}, or {} for that address alone",
                subnet.trunc(),
                subnet.addr()
            ),
        ));
    }
    Ok(subnet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn rules(also: &[&str], never: &[&str]) -> SubnetRules {
        SubnetRules::new(&texts(also), &texts(never), &[]).unwrap()
    }

    fn is_in(subnets: &[IpNet], address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        subnets.iter().any(|subnet| subnet.contains(&address))
    }

    #[test]
    fn without_rules_the_cluster_decides() {
        let cluster = nets(&["10.96.0.0/16", "fd00:96::/108"]);
        assert_eq!(SubnetRules::default().routed(cluster.clone(), &[]), cluster);
    }

    #[test]
    fn most_specific_rule_wins_whichever_kind() {
        let cluster = nets(&["10.244.0.0/16"]);
        let rules = rules(
            &["10.244.7.0/24", "192.0.2.0/24"],
            &["10.0.0.0/8", "10.244.7.9/32", "192.0.0.0/16"],
        );
        let routed = rules.routed(cluster, &[]);
        for (address, expected) in [
            ("10.244.1.1", false),
            ("10.244.7.0", true),
            ("10.244.7.8", true),
            ("10.244.7.9", false),
            ("10.244.7.255", true),
            ("10.244.8.0", false),
            ("192.0.2.1", true),
            ("192.0.3.1", false),
        ] {
            assert_eq!(is_in(&routed, address), expected, "{address}");
        }
    }

    #[test]
    fn what_is_protected_yields_only_to_its_very_address() {
        let cluster = nets(&["10.96.0.0/16"]);
        let protected = ["10.96.0.1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
        let routed =
            rules(&["10.96.0.0/31", "192.0.2.0/24"], &[]).routed(cluster.clone(), &protected);
        for (address, expected) in [
            ("10.96.0.0", true),
            ("10.96.0.1", false),
            ("10.96.0.2", true),
            ("10.96.255.255", true),
            ("192.0.2.1", false),
            ("192.0.2.2", true),
        ] {
            assert_eq!(is_in(&routed, address), expected, "{address}");
        }
        let routed = rules(&["10.96.0.1"], &[]).routed(cluster.clone(), &protected);
        assert_eq!(routed, cluster);
    }

    #[test]
    fn address_stands_for_itself_alone() {
        let rules = rules(&["192.0.2.1", "2001:db8::1"], &[]);
        let expected = nets(&["192.0.2.1/32", "2001:db8::1/128"]);
        assert_eq!(rules.routed(Vec::new(), &[]), expected);
    }

    #[test]
    fn subnet_with_host_bits_is_told_how_to_be_written() {
        let failure = SubnetRules::new(&texts(&["10.1.2.3/8"]), &[], &[]).unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
        assert!(
            failure.message.contains("10.1.2.3/8 of --also-proxy"),
            "{failure}"
        );
        assert_eq!(
            failure.next_step,
            "write 10.0.0.0/8, or 10.1.2.3 for that address alone"
        );
    }

    #[test]
    fn nonsense_names_its_flag() {
        for nonsense in ["", "10.0.0", "10.0.0.0/33", "fd00::/129", "web"] {
            let failure = SubnetRules::new(&[], &[], &texts(&[nonsense])).unwrap_err();
            assert_eq!(failure.reason, Reason::Usage);
            let start = format!("`{nonsense}` of --allow-conflicting-subnets ");
            assert!(failure.message.starts_with(&start), "{failure}");
        }
    }

    #[test]
    fn contradiction_is_named() {
        let (also, never) = (
            texts(&["10.0.0.0/8"]),
            texts(&["192.0.2.0/24", "10.0.0.0/8"]),
        );
        let failure = SubnetRules::new(&also, &never, &[]).unwrap_err();
        assert_eq!(failure.reason, Reason::Usage);
        assert_eq!(
            failure.message,
            "10.0.0.0/8 is in both --also-proxy and --never-proxy"
        );
    }

    /// Subnets of a space so small that they overlap, of either family.
    fn any_subnet() -> impl Strategy<Value = IpNet> {
        let v4 = (0..=255_u8, 24..=32_u8)
            .prop_map(|(low, length)| IpNet::new(IpAddr::from([10, 0, 0, low]), length).unwrap());
        let v6 = (0..=255_u16, 120..=128_u8).prop_map(|(low, length)| {
            let address = IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, low]);
            IpNet::new(address, length).unwrap()
        });
        prop_oneof![v4, v6].prop_map(|subnet| subnet.trunc())
    }

    fn some_subnets() -> impl Strategy<Value = Vec<IpNet>> {
        proptest::collection::vec(any_subnet(), 0..6)
    }

    /// What the rules mean, told address by address.
    fn expected(
        rules: &SubnetRules,
        cluster: &[IpNet],
        protected: &[IpAddr],
        address: IpAddr,
    ) -> bool {
        let longest = |subnets: &[IpNet]| {
            let over = subnets.iter().filter(|subnet| subnet.contains(&address));
            over.map(IpNet::prefix_len).max()
        };
        let also = longest(&rules.also_proxy);
        let host = IpNet::from(address).prefix_len();
        if protected.contains(&address) {
            return also == Some(host);
        }
        match (also, longest(&rules.never_proxy)) {
            (None, None) => cluster.iter().any(|subnet| subnet.contains(&address)),
            (also, never) => also > never,
        }
    }

    proptest! {
        #[test]
        fn an_address_is_routed_iff_the_most_specific_rule_over_it_says_so(
            cluster in some_subnets(),
            also_proxy in some_subnets(),
            never_proxy in some_subnets(),
            protected in proptest::collection::vec(any_subnet(), 0..3),
        ) {
            let never_proxy: Vec<IpNet> =
                never_proxy.into_iter().filter(|subnet| !also_proxy.contains(subnet)).collect();
            let rules = SubnetRules { also_proxy, never_proxy, ..SubnetRules::default() };
            let protected: Vec<IpAddr> = protected.iter().map(IpNet::addr).collect();
            let routed = rules.routed(cluster.clone(), &protected);
            for low in 0..=255_u8 {
                for address in [
                    IpAddr::from([10, 0, 0, low]),
                    IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(low)]),
                ] {
                    let is_routed = routed.iter().any(|subnet| subnet.contains(&address));
                    prop_assert_eq!(
                        is_routed,
                        expected(&rules, &cluster, &protected, address),
                        "{}", address
                    );
                }
            }
        }
    }
}
