//! What a lease may not do, and that a refused one changes nothing.

use std::net::UdpSocket;

use crate::host::Host;

#[track_caller]
pub(crate) fn refused(host: &Host, subnets: &[&str], reason: &str, facts: &[&str]) {
    let before = host.snapshot();
    let Err(refused) = host.client().acquire(subnets) else {
        panic!("{subnets:?} were granted");
    };
    assert_eq!(refused.reason, reason, "{refused:?}");
    for fact in facts {
        assert!(refused.message.contains(fact), "{fact}: {refused:?}");
    }
    assert!(!refused.next_step.is_empty());
    assert_eq!(host.snapshot(), before);
    assert!(!host.run_dir().join("journal.json").exists());
}

#[test]
fn subnets_that_are_no_clusters_are_refused() {
    let host = Host::new();
    let _daemon = host.daemon();
    for subnet in ["0.0.0.0/0", "::/0", "127.0.0.0/8", "fe80::/64", "nonsense"] {
        refused(&host, &["10.96.0.0/16", subnet], "Usage", &[subnet]);
    }
}

#[test]
fn subnets_with_the_hosts_own_address_or_gateway_are_refused() {
    let host = Host::new();
    let _daemon = host.daemon();
    let own = ["192.168.0.0/16", "192.168.77.2"];
    refused(&host, &[own[0]], "HostRefused", &own);
    let own = ["fd77::/64", "fd77::2"];
    refused(&host, &[own[0]], "HostRefused", &own);
    let gateway = ["192.168.77.1/32", "gateway 192.168.77.1"];
    refused(&host, &[gateway[0]], "HostRefused", &gateway);
    let gateway = ["fd77::1/128", "gateway fd77::1"];
    refused(&host, &[gateway[0]], "HostRefused", &gateway);
}

#[test]
fn our_address_on_another_device_is_a_conflict() {
    let host = Host::new();
    host.sh("ip addr add 198.18.0.1/16 dev up0");
    let _daemon = host.daemon();
    refused(&host, &["10.96.0.0/16"], "HostRefused", &["198.18.0.1"]);
}

#[test]
fn name_server_on_every_address_makes_the_lease_fail_whole() {
    let host = Host::new();
    let _daemon = host.daemon();
    let _other = host.in_network(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    refused(
        &host,
        &["10.96.0.0/16"],
        "HostRefused",
        &["DNS on 198.18.0.1", "in use"],
    );
}

#[test]
fn devices_of_the_same_names_are_not_touched() {
    let host = Host::new();
    let _daemon = host.daemon();
    for slot in 0..8 {
        host.sh(&format!("ip tuntap add dev kvpn{slot} mode tun"));
    }
    refused(
        &host,
        &["10.96.0.0/16"],
        "HostRefused",
        &["kvpn0 exists already"],
    );
}

#[test]
fn what_others_have_of_a_slot_leaves_the_next_one() {
    let host = Host::new();
    let _daemon = host.daemon();
    host.sh("ip tuntap add dev kvpn0 mode tun
             sysctl -qw net.ipv4.ip_nonlocal_bind=1");
    // As a session does that is stopped, whose lease has ended.
    let _stuck = host.in_network(|| UdpSocket::bind("198.18.1.1:53").unwrap());
    let before = host.snapshot();
    let mut client = host.client();
    let granted = client.acquire(&["10.96.0.0/16"]).unwrap();
    assert_eq!(granted.message.device, "kvpn2");
    drop((client, granted));
    host.wait_until_it_is(&before);
}

#[test]
fn unwritable_resolv_conf_makes_the_lease_fail_whole() {
    let host = Host::new();
    host.sh(&format!(
        "mount --bind {file} {file} && mount -o remount,bind,ro {file}",
        file = host.resolv_conf().display()
    ));
    let _daemon = host.daemon();
    refused(
        &host,
        &["10.96.0.0/16"],
        "HostRefused",
        &["write", "resolv.conf"],
    );
}

#[test]
fn search_domains_cannot_add_lines_to_resolv_conf() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let domains = ["x\nnameserver 192.168.77.66"];
    let refused = host.client().acquire_with(&[], &domains, "");
    assert_eq!(refused.err().unwrap().reason, "Usage");
    assert_eq!(host.snapshot(), before);
}
