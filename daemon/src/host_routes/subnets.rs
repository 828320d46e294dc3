//! Which subnets a session may have routed to its device.

use std::collections::BTreeSet;

use ipnet::IpNet;
use kvpn_proto::{Failure, Reason};

use super::HostRoutes;

/// The most subnets of one lease.
const MAX_SUBNETS: usize = 4096;

/// Parts of the address space that are never routed to a device, and what they
/// are.
const RESERVED: [(&str, &str); 9] = [
    ("0.0.0.0/8", "unspecified"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("::/96", "unspecified or loopback"),
    ("::ffff:0:0/96", "IPv4-mapped"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
];

/// Reads subnets, without the bits beyond their lengths.
pub(crate) fn parse(texts: &[String]) -> Result<BTreeSet<IpNet>, Failure> {
    if texts.len() > MAX_SUBNETS {
        return Err(usage(
            format!("{} subnets are more than {MAX_SUBNETS}", texts.len()),
            "name larger subnets that hold several of these",
        ));
    }
    let parse_one = |text: &String| match text.parse::<IpNet>() {
        Ok(subnet) => Ok(subnet.trunc()),
        Err(_) => Err(usage(
            format!("`{text}` is not a subnet"),
            "write it as ADDRESS/LENGTH, such as 10.96.0.0/16",
        )),
    };
    texts.iter().map(parse_one).collect()
}

/// Refuses subnets that would harm the host.
pub(super) fn check(subnets: &BTreeSet<IpNet>, host: &HostRoutes) -> Result<(), Failure> {
    subnets
        .iter()
        .try_for_each(|subnet| check_one(*subnet, host))
}

fn check_one(subnet: IpNet, host: &HostRoutes) -> Result<(), Failure> {
    let shortest = match subnet {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 16,
    };
    if subnet.prefix_len() < shortest {
        return Err(usage(
            format!("subnet {subnet} is too large to be a cluster's; the limit is /{shortest}"),
            "name the cluster's subnets more exactly",
        ));
    }
    for (reserved, what) in RESERVED {
        if overlap(subnet, reserved) {
            return Err(usage(
                format!("subnet {subnet} has {what} addresses in it, which cannot be in a cluster"),
                "name the cluster's subnets more exactly",
            ));
        }
    }
    for (addresses, what) in [
        (&host.addresses, "this host's own address"),
        (&host.gateways, "this host's gateway"),
    ] {
        if let Some(address) = addresses.iter().find(|address| subnet.contains(*address)) {
            return Err(Failure::new(
                Reason::HostRefused,
                format!("the cluster's subnet {subnet} holds {what} {address}"),
                format!(
                    "connect with `--vnat all` to have the cluster at other addresses, or with \
                     `--never-proxy {address}`"
                ),
            ));
        }
    }
    Ok(())
}

fn overlap(subnet: IpNet, reserved: &str) -> bool {
    reserved
        .parse::<IpNet>()
        .is_ok_and(|reserved| subnet.contains(&reserved) || reserved.contains(&subnet))
}

fn usage(message: String, next_step: &str) -> Failure {
    Failure::new(Reason::Usage, message, next_step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<BTreeSet<IpNet>, Failure> {
        let host = HostRoutes {
            addresses: vec!["10.1.2.3".parse().unwrap(), "fd01::3".parse().unwrap()],
            gateways: vec!["192.168.1.1".parse().unwrap()],
            ..HostRoutes::default()
        };
        let subnets = parse(&[text.to_owned()])?;
        check(&subnets, &host)?;
        Ok(subnets)
    }

    #[test]
    fn cluster_subnets_pass_without_their_host_bits() {
        for (text, expected) in [
            ("10.96.0.0/16", "10.96.0.0/16"),
            ("10.96.3.4/16", "10.96.0.0/16"),
            ("100.64.0.0/10", "100.64.0.0/10"),
            ("fd00:96::/108", "fd00:96::/108"),
            ("10.244.0.7/32", "10.244.0.7/32"),
        ] {
            let subnets: Vec<_> = checked(text).unwrap().into_iter().collect();
            assert_eq!(subnets, [expected.parse::<IpNet>().unwrap()]);
        }
    }

    #[test]
    fn subnets_named_twice_count_once() {
        let texts = ["10.96.0.0/16".to_owned(), "10.96.0.1/16".to_owned()];
        assert_eq!(parse(&texts).unwrap().len(), 1);
    }

    #[test]
    fn harmful_subnets_are_refused() {
        for text in [
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/7",
            "0.0.0.0/8",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "169.254.1.0/24",
            "224.0.0.0/8",
            "255.255.255.255/32",
            "2000::/3",
            "::1/128",
            "::ffff:10.0.0.0/104",
            "fe80::/64",
            "ff02::/16",
            "10.96.0.0",
            "nonsense",
            "",
        ] {
            let failure = checked(text).unwrap_err();
            assert_eq!(failure.reason, Reason::Usage, "{text}: {failure:?}");
        }
    }

    #[test]
    fn conflict_with_the_host_says_with_what() {
        for (text, with) in [
            ("10.1.0.0/16", "own address 10.1.2.3"),
            ("fd01::/64", "own address fd01::3"),
            ("192.168.0.0/16", "gateway 192.168.1.1"),
        ] {
            let failure = checked(text).unwrap_err();
            assert_eq!(failure.reason, Reason::HostRefused);
            assert!(failure.message.contains(with), "{failure:?}");
            assert!(failure.message.contains(text), "{failure:?}");
            assert!(failure.next_step.contains("--never-proxy"), "{failure:?}");
        }
    }
}
