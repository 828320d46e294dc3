//! Routes that the host has to where a cluster's subnets are.

use crate::client::Client;
use crate::host::Host;
use crate::refusal::refused;

const SUBNETS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/64"];

/// What `ip route get` tells, without the user.
fn way_to(host: &Host, address: &str) -> String {
    let way = host.sh(&format!("ip -o route get {address}"));
    way.split(" uid ").next().unwrap().to_owned()
}

#[track_caller]
fn leads_to_the_cluster(host: &Host, address: &str) {
    let way = way_to(host, address);
    assert!(way.contains(" dev kvpn0 "), "{way}");
}

#[track_caller]
fn leads_elsewhere(host: &Host, address: &str) {
    let way = way_to(host, address);
    assert!(!way.contains("kvpn0"), "{way}");
}

/// Ends the lease and waits until the host is as before.
#[track_caller]
fn is_undone(host: &Host, before: &crate::host::Snapshot, lease: (Client, crate::client::Granted)) {
    drop(lease);
    host.wait_until_it_is(before);
}

#[test]
fn conflict_is_named_and_nothing_is_changed() {
    let host = Host::new();
    let _daemon = host.daemon();
    for (route, subnet, shown) in [
        (
            "10.0.0.0/8 via 192.168.77.9",
            SUBNETS[0],
            "route 10.0.0.0/8 via 192.168.77.9 on up0",
        ),
        (
            "10.96.0.0/16 dev up0 metric 600",
            SUBNETS[0],
            "route 10.96.0.0/16 on up0",
        ),
        (
            "10.96.3.4/32 via 192.168.77.9",
            SUBNETS[0],
            "route 10.96.3.4/32 via 192.168.77.9 on up0",
        ),
        (
            "blackhole 10.96.3.0/24",
            SUBNETS[0],
            "blackhole route 10.96.3.0/24",
        ),
        (
            "fd00::/16 via fd77::9",
            SUBNETS[1],
            "route fd00::/16 via fd77::9 on up0",
        ),
        (
            "fd00:96::/64 dev up0",
            SUBNETS[1],
            "route fd00:96::/64 on up0",
        ),
        (
            "prohibit fd00:96:0:0:7::/80",
            SUBNETS[1],
            "prohibit route fd00:96:0:0:7::/80",
        ),
    ] {
        host.sh(&format!("ip route add {route}"));
        let facts =
            [&format!("the cluster's subnet {subnet} overlaps with the host's {shown}")[..]];
        refused(&host, &SUBNETS, "HostRefused", &facts);
        host.sh(&format!("ip route del {route}"));
    }
    host.client().acquire(&SUBNETS).unwrap();
}

#[test]
fn conflict_in_a_table_that_a_rule_looks_up_is_found() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip route add 10.0.0.0/8 via 192.168.77.9 table 1234
             ip route add 10.96.0.0/16 via 192.168.77.9 table 1235
             ip rule add from all lookup 1234");
    refused(&host, &SUBNETS, "HostRefused", &["route 10.0.0.0/8 via"]);

    let before = host.snapshot();
    let mut client = host.client();
    let granted = client.acquire_allowed(&SUBNETS, &["10.96.0.0/16"]).unwrap();
    leads_to_the_cluster(&host, "10.96.3.4");
    leads_elsewhere(&host, "10.97.0.1");
    is_undone(&host, &before, (client, granted));
}

#[test]
fn next_step_names_the_flags() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip route add 10.96.3.0/24 via 192.168.77.9");
    let refused = host.client().acquire(&SUBNETS).err().unwrap();
    for flag in [
        "`--allow-conflicting-subnets 10.96.3.0/24`",
        "`--never-proxy 10.96.3.0/24`",
    ] {
        assert!(refused.next_step.contains(flag), "{refused:?}");
    }
}

#[test]
fn allowed_conflicts_are_won_and_undone() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip route add 10.0.0.0/8 via 192.168.77.9
             ip route add 10.96.0.0/16 via 192.168.77.9
             ip route add 10.96.128.0/17 via 192.168.77.9
             ip route add 10.96.3.0/24 via 192.168.77.9
             ip route add blackhole 10.96.4.0/24
             ip route add 10.96.5.6/32 via 192.168.77.9 metric 50
             ip route add fd00:96::/64 via fd77::9
             ip route add fd00:96::7/128 via fd77::9");
    let before = host.snapshot();
    let outside = way_to(&host, "10.97.0.1");

    let mut client = host.client();
    let granted = client.acquire_allowed(&SUBNETS, &SUBNETS).unwrap();
    for address in [
        "10.96.0.0",
        "10.96.0.1",
        "10.96.3.1",
        "10.96.3.255",
        "10.96.4.1",
        "10.96.5.6",
        "10.96.200.1",
        "10.96.255.255",
        "fd00:96::1",
        "fd00:96::7",
        "fd00:96::ffff:ffff:ffff:ffff",
    ] {
        leads_to_the_cluster(&host, address);
    }
    assert_eq!(way_to(&host, "10.97.0.1"), outside);
    assert_eq!(client.describe().holders[0].subnets, SUBNETS);
    is_undone(&host, &before, (client, granted));
}

#[test]
fn only_what_is_allowed_is_won() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip route add 10.96.3.0/24 via 192.168.77.9
             ip route add 10.96.4.0/24 via 192.168.77.9");
    let before = host.snapshot();
    let refused = host.client().acquire_allowed(&SUBNETS, &["10.96.3.0/24"]);
    let refused = refused.err().unwrap();
    assert!(
        refused.message.contains("route 10.96.4.0/24"),
        "{refused:?}"
    );
    assert_eq!(host.snapshot(), before);
}

#[test]
fn route_to_one_address_with_the_best_metric_is_never_won() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip route add 10.96.5.6/32 via 192.168.77.9");
    let before = host.snapshot();
    let refused = host.client().acquire_allowed(&SUBNETS, &SUBNETS);
    let refused = refused.err().unwrap();
    assert_eq!(refused.reason, "HostRefused");
    assert!(refused.message.contains("cannot win"), "{refused:?}");
    assert!(refused.next_step.contains("10.96.5.6/32"), "{refused:?}");
    assert_eq!(host.snapshot(), before);
}

#[test]
fn own_address_and_gateway_are_refused_even_where_conflicts_are_allowed() {
    let host = Host::new();
    let _daemon = host.daemon();
    let before = host.snapshot();
    for (subnet, fact) in [
        ("192.168.77.0/24", "own address 192.168.77.2"),
        ("192.168.77.1/32", "gateway 192.168.77.1"),
        ("fd77::/64", "own address fd77::2"),
    ] {
        let refused = host.client().acquire_allowed(&[subnet], &[subnet]);
        let refused = refused.err().unwrap();
        assert!(refused.message.contains(fact), "{refused:?}");
    }
    assert_eq!(host.snapshot(), before);
}

#[test]
fn blackholes_around_the_clusters_subnets_are_no_conflict() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip route add blackhole 10.0.0.0/8
             ip route add unreachable 10.96.0.0/12
             ip route add prohibit fd00::/8
             ip route add blackhole 10.0.0.0/8 table 99
             ip route add throw 10.0.0.0/9 table 99
             ip route add unreachable fd00::/8 table 99
             ip rule add lookup 99 priority 100
             ip -6 rule add lookup 99 priority 100");
    let before = host.snapshot();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    for address in ["10.96.0.1", "10.96.255.255", "fd00:96::1"] {
        leads_to_the_cluster(&host, address);
    }
    let closed = host
        .command("ip")
        .args(["route", "get", "10.200.0.1"])
        .output();
    assert!(!closed.unwrap().status.success());
    is_undone(&host, &before, (client, granted));
}

#[test]
fn vpn_that_takes_everything_is_no_conflict() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip route add 0.0.0.0/1 via 192.168.77.9
             ip route add 128.0.0.0/1 via 192.168.77.9
             ip route add ::/1 via fd77::9
             ip route add 8000::/1 via fd77::9
             ip route add default via 192.168.77.9 table 99
             ip -6 route add default via fd77::9 table 99
             ip rule add lookup 99
             ip -6 rule add lookup 99");
    let before = host.snapshot();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    leads_to_the_cluster(&host, "10.96.0.1");
    leads_to_the_cluster(&host, "fd00:96::1");
    leads_elsewhere(&host, "10.97.0.1");
    leads_elsewhere(&host, "fd00:97::1");
    is_undone(&host, &before, (client, granted));
}

#[test]
fn vpns_that_mark_their_own_packets_are_no_conflict() {
    // As those of Tailscale with an exit node, and of wg-quick.
    for rules in [
        "fwmark 0x80000/0xff0000 priority 5210 lookup main
         fwmark 0x80000/0xff0000 priority 5230 lookup default
         priority 5270 lookup 52",
        "priority 5000 lookup main suppress_prefixlength 0
         not fwmark 0xca6c priority 5001 lookup 52",
    ] {
        let host = Host::new();
        let _daemon = host.daemon();
        host.sh("ip route add default via 192.168.77.9 table 52
                 ip -6 route add default via fd77::9 table 52");
        for rule in rules.lines() {
            host.sh(&format!("ip rule add {rule}\nip -6 rule add {rule}"));
        }
        let before = host.snapshot();
        let mut client = host.client();
        let granted = client.acquire(&SUBNETS).unwrap();
        leads_to_the_cluster(&host, "10.96.0.1");
        leads_to_the_cluster(&host, "fd00:96::1");
        leads_elsewhere(&host, "10.97.0.1");
        leads_elsewhere(&host, "fd00:97::1");
        is_undone(&host, &before, (client, granted));
    }
}

#[test]
fn what_is_left_out_keeps_its_gateway_and_source() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip addr add 192.168.78.5/24 dev up0
             ip route replace default via 192.168.78.1 src 192.168.78.5");
    let before = host.snapshot();
    let addresses = [
        "10.244.0.255",
        "10.244.2.0",
        "10.244.1.0",
        "10.244.1.255",
        "10.244.1.7",
    ];
    let ways = addresses.map(|address| way_to(&host, address));
    assert!(
        ways[4].contains("via 192.168.78.1 dev up0 src 192.168.78.5"),
        "{ways:?}"
    );

    // 10.244.0.0/16 without 10.244.1.0/24.
    let pieces = [
        "10.244.0.0/24",
        "10.244.2.0/23",
        "10.244.4.0/22",
        "10.244.8.0/21",
        "10.244.16.0/20",
        "10.244.32.0/19",
        "10.244.64.0/18",
        "10.244.128.0/17",
    ];
    let mut client = host.client();
    let granted = client.acquire(&pieces).unwrap();
    for address in &addresses[..2] {
        leads_to_the_cluster(&host, address);
    }
    let during = addresses.map(|address| way_to(&host, address));
    assert_eq!(during[2..], ways[2..]);
    is_undone(&host, &before, (client, granted));
}

#[test]
fn pods_at_both_ends_of_their_subnet_are_reached() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut client = host.client();
    let _granted = client.acquire(&["10.244.7.0/24", "fd00:244::/64"]).unwrap();
    for address in [
        "10.244.7.0",
        "10.244.7.255",
        "fd00:244::",
        "fd00:244::ffff:ffff:ffff:ffff",
    ] {
        leads_to_the_cluster(&host, address);
        let way = way_to(&host, address);
        assert!(!way.starts_with("broadcast"), "{way}");
    }
}

#[test]
fn conflict_that_comes_later_is_refused_and_all_stays_as_it_was() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&["10.244.0.0/24"]).unwrap();
    host.sh("ip route add 10.244.0.0/16 via 192.168.77.9");
    let with_route = host.snapshot();

    let more = ["10.244.0.0/24", "10.244.1.0/24"];
    let refused = client.set_subnets(&more).unwrap_err();
    assert_eq!(refused.reason, "HostRefused");
    let message = "the cluster's subnet 10.244.1.0/24 overlaps with the host's route \
                   10.244.0.0/16 via 192.168.77.9 on up0";
    assert_eq!(refused.message, message);
    assert_eq!(host.snapshot(), with_route);
    assert_eq!(client.describe().holders[0].subnets, ["10.244.0.0/24"]);

    // What is routed already is not held against the host.
    client
        .set_subnets(&["10.244.0.0/24", "10.245.0.0/24"])
        .unwrap();
    client
        .set_allowed_subnets(&more, &["10.244.0.0/16"])
        .unwrap();
    leads_to_the_cluster(&host, "10.244.1.1");

    host.sh("ip route add 10.244.1.0/24 via 192.168.77.9 metric 7");
    client
        .set_allowed_subnets(&more, &["10.244.0.0/16"])
        .unwrap();
    host.sh("ip route add 10.244.1.0/24 via 192.168.77.9");
    leads_to_the_cluster(&host, "10.244.1.1");
    host.sh("ip route flush root 10.244.0.0/16 dev up0");
    is_undone(&host, &before, (client, granted));
}
