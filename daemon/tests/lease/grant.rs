//! What a lease gives, and that all of it is taken back.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use kvpn_proto::v1::{self, Resolver};

use crate::host::{Host, RESOLV_CONF, wait_for};

const SUBNETS: [&str; 3] = ["10.96.0.0/16", "10.244.0.0/24", "fd00:96::/108"];

#[test]
fn lease_gives_device_routes_and_dns_and_takes_everything_back() {
    let host = Host::new();
    fs::set_permissions(host.resolv_conf(), Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(host.resolv_conf(), Some(7), Some(8)).unwrap();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();

    let granted = client.acquire(&SUBNETS).unwrap();

    let message = &granted.message;
    assert_eq!(message.device, "kvpn0");
    assert_eq!(message.mtu, 65535);
    assert_eq!(message.addresses, ["198.18.0.1", "fd6b:7670:6e::1"]);
    assert_eq!(upstreams(message), "nameserver 192.168.77.1\n");
    assert_eq!(message.resolver(), Resolver::ResolvConf);
    let addresses = host.sh("ip -o addr show dev kvpn0");
    assert!(addresses.contains("inet 198.18.0.1/32 "), "{addresses}");
    assert!(
        addresses.contains("inet6 fd6b:7670:6e::1/128 "),
        "{addresses}"
    );
    assert!(!addresses.contains("fe80"), "{addresses}");
    let link = host.sh("ip link show dev kvpn0");
    assert!(link.contains("UP") && link.contains("mtu 65535"), "{link}");
    let routes = host.sh("ip route show dev kvpn0; ip -6 route show dev kvpn0");
    for route in [
        "10.96.0.0/16 proto static scope link src 198.18.0.1",
        "10.244.0.0/24 proto static scope link src 198.18.0.1",
        "fd00:96::/108 proto static src fd6b:7670:6e::1",
        "198.18.0.2 proto static scope link src 198.18.0.1",
        "fd6b:7670:6e::2 proto static src fd6b:7670:6e::1",
    ] {
        assert!(routes.contains(route), "{route}: {routes}");
    }
    let text = host.resolv_conf_text();
    assert!(text.starts_with("# Written by kvpn"), "{text}");
    assert!(
        text.ends_with(
            "\nnameserver 198.18.0.1\nnameserver fd6b:7670:6e::1\n\
             search shop.svc.x lan\noptions ndots:2\n"
        ),
        "{text}"
    );
    let metadata = fs::metadata(host.resolv_conf()).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);

    drop((client, granted));
    host.wait_until_it_is(&before);
    wait_for("the end of the journal", || {
        !host.run_dir().join("journal.json").exists()
    });
}

/// Length of what is before each packet.
const VIRTIO_NET_HDR: usize = 10;

#[test]
fn first_packet_out_of_the_device_is_the_one_that_was_sent() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();

    host.sh("bash -c 'printf hello > /dev/udp/10.96.0.10/99'");
    let read_packet = read(&granted.tun);
    let (_, packet) = read_packet.split_at(VIRTIO_NET_HDR);
    assert_eq!(packet[0] >> 4, 4);
    assert_eq!(packet[12..20], [198, 18, 0, 1, 10, 96, 0, 10]);
    assert!(packet.ends_with(b"hello"));

    host.sh("bash -c 'printf hello > /dev/udp/fd00:96::a/99'");
    let read_packet = read(&granted.tun);
    let (_, packet) = read_packet.split_at(VIRTIO_NET_HDR);
    assert_eq!(packet[0] >> 4, 6);
    assert_eq!(packet[8..16], [0xfd, 0x6b, 0x76, 0x70, 0, 0x6e, 0, 0]);
    assert_eq!(
        packet[24..40],
        [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]
    );
    assert!(packet.ends_with(b"hello"));
}

#[test]
fn name_server_sockets_are_bound_to_both_addresses_and_do_not_block() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    let bound = ["198.18.0.1:53", "[fd6b:7670:6e::1]:53"];

    let udp: Vec<UdpSocket> = granted.dns_udp.into_iter().map(UdpSocket::from).collect();
    let addresses: Vec<String> = udp
        .iter()
        .map(|s| s.local_addr().unwrap().to_string())
        .collect();
    assert_eq!(addresses, bound);
    let tcp: Vec<TcpListener> = granted.dns_tcp.into_iter().map(TcpListener::from).collect();
    let addresses: Vec<String> = tcp
        .iter()
        .map(|s| s.local_addr().unwrap().to_string())
        .collect();
    assert_eq!(addresses, bound);

    let mut buffer = [0; 16];
    assert_eq!(
        udp[0].recv(&mut buffer).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert_eq!(tcp[0].accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    host.sh("bash -c 'printf question > /dev/udp/198.18.0.1/53; : < /dev/tcp/198.18.0.1/53'");
    assert_eq!(udp[0].recv(&mut buffer).unwrap(), 8);
    tcp[0].accept().unwrap();
}

#[test]
fn subnets_are_replaced_or_stay_as_they_are() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();

    client
        .set_subnets(&["10.244.0.0/24", "10.244.1.0/24", "fd00:97::/108"])
        .unwrap();
    let replaced = host.snapshot();
    let routes = host.sh("ip -o route show dev kvpn0; ip -6 -o route show dev kvpn0");
    let destinations: Vec<&str> = routes.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(
        destinations,
        [
            "10.244.0.0/24",
            "10.244.1.0/24",
            "198.18.0.2",
            "fd00:97::/108",
            "fd6b:7670:6e::1",
            "fd6b:7670:6e::2"
        ]
    );
    assert_eq!(
        client.describe().holders[0].subnets,
        ["10.244.0.0/24", "10.244.1.0/24", "fd00:97::/108"]
    );

    host.sh("ip route add unreachable 10.250.0.0/16");
    let refused = client
        .set_subnets(&["10.249.0.0/16", "10.250.0.0/16"])
        .unwrap_err();
    assert!(refused.message.contains("10.250.0.0/16"), "{refused:?}");
    host.sh("ip route del unreachable 10.250.0.0/16");
    assert_eq!(host.snapshot(), replaced);

    drop((client, granted));
    host.wait_until_it_is(&before);
}

#[test]
fn symbolic_link_to_resolv_conf_is_followed_and_kept() {
    let host = Host::new();
    fs::rename(host.resolv_conf(), host.path().join("stub.conf")).unwrap();
    symlink("stub.conf", host.resolv_conf()).unwrap();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    assert!(
        fs::symlink_metadata(host.resolv_conf())
            .unwrap()
            .is_symlink()
    );
    assert!(
        host.resolv_conf_text()
            .contains("\nnameserver 198.18.0.1\n")
    );
    drop((client, granted));
    host.wait_until_it_is(&before);
}

#[test]
fn bind_mounted_resolv_conf_is_written_in_place() {
    let host = Host::new();
    let mounted = host.path().join("mounted.conf");
    fs::write(&mounted, RESOLV_CONF).unwrap();
    host.sh(&format!(
        "mount --bind {} {}",
        mounted.display(),
        host.resolv_conf().display()
    ));
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    let during = fs::read_to_string(&mounted).unwrap();
    assert!(during.contains("\nnameserver 198.18.0.1\n"), "{during}");
    assert_eq!(host.resolv_conf_text(), RESOLV_CONF);
    drop((client, granted));
    wait_for("the old content", || {
        fs::read_to_string(&mounted).unwrap() == RESOLV_CONF
    });
}

#[test]
fn resolv_conf_that_others_changed_is_left_alone() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    fs::write(host.resolv_conf(), "nameserver 192.168.77.9\n").unwrap();
    drop((client, granted));
    wait_for("the end of the lease", || {
        host.log().contains("Lease ended")
    });
    assert_eq!(host.resolv_conf_text(), "nameserver 192.168.77.9\n");
    assert!(!host.run_dir().join("journal.json").exists());
    let log = host.log();
    assert!(
        log.contains(" WARN Left alone: somebody else changed it"),
        "{log}"
    );
}

#[test]
fn undoing_that_failed_is_tried_again() {
    let host = Host::new();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    let file = host.resolv_conf().display().to_string();
    host.sh(&format!(
        "mount --bind {file} {file} && mount -o remount,bind,ro {file}"
    ));
    drop((client, granted));
    wait_for("the failure", || {
        host.log()
            .contains("The changes of a lease cannot be undone")
    });
    host.sh(&format!("umount {file}"));
    host.wait_until_it_is(&before);
}

#[test]
fn host_without_name_servers_gets_ours_alone() {
    let host = Host::new();
    fs::remove_file(host.resolv_conf()).unwrap();
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    assert_eq!(upstreams(&granted.message), "");
    assert!(
        host.resolv_conf_text()
            .contains("\nnameserver 198.18.0.1\n")
    );
    drop((client, granted));
    host.wait_until_it_is(&before);
}

/// As NetworkManager and dhclient do, whenever the network changes.
#[test]
fn resolv_conf_that_is_replaced_meanwhile_names_us_again_and_is_what_comes_back() {
    let host = Host::new();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    let path = host.resolv_conf();

    let theirs = "# by dhclient\nsearch cafe.example\nnameserver 192.168.99.1\n";
    let new = path.with_extension("new");
    fs::write(&new, theirs).unwrap();
    fs::rename(&new, &path).unwrap();
    let ours = || {
        host.resolv_conf_text()
            .contains("\nnameserver 198.18.0.1\n")
    };
    wait_for("our name server", ours);
    let text = host.resolv_conf_text();
    assert!(
        text.contains("\nsearch shop.svc.x cafe.example\n"),
        "{text}"
    );
    let told = || upstreams(&granted.message) == "nameserver 192.168.99.1\n";
    wait_for("the new upstream", told);

    // In place, and once more.
    let theirs = "nameserver 192.168.88.1\n";
    fs::write(&path, theirs).unwrap();
    wait_for("our name server", ours);

    drop((client, granted));
    wait_for("their text", || host.resolv_conf_text() == theirs);
}

#[test]
fn resolv_conf_that_becomes_a_link_is_followed_and_the_file_of_before_restored() {
    let host = Host::new();
    let first = host.path().join("first.conf");
    let second = host.path().join("second.conf");
    fs::rename(host.resolv_conf(), &first).unwrap();
    symlink(&first, host.resolv_conf()).unwrap();
    let before = fs::read_to_string(&first).unwrap();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();

    let theirs = "nameserver 192.168.99.1\n";
    fs::write(&second, theirs).unwrap();
    fs::remove_file(host.resolv_conf()).unwrap();
    symlink(&second, host.resolv_conf()).unwrap();
    wait_for("our name server", || {
        host.resolv_conf_text()
            .contains("\nnameserver 198.18.0.1\n")
    });
    assert_eq!(fs::read_to_string(&first).unwrap(), before);

    drop((client, granted));
    wait_for("their text", || host.resolv_conf_text() == theirs);
    assert_eq!(fs::read_to_string(&first).unwrap(), before);
}

#[test]
fn resolv_conf_that_is_edited_by_hand_stays_as_it_was_edited() {
    let host = Host::new();
    let before = host.resolv_conf_text();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();

    let edited = host.resolv_conf_text() + "options attempts:1\n";
    fs::write(host.resolv_conf(), &edited).unwrap();
    wait_for("a look", || host.log().contains("left as it is"));
    assert_eq!(host.resolv_conf_text(), edited);

    drop((client, granted));
    wait_for("the text of before", || host.resolv_conf_text() == before);
}

#[test]
fn host_with_ipv6_disabled_gets_ipv4_alone() {
    let host = Host::new();
    host.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    let before = host.snapshot();
    let _daemon = host.daemon();
    let mut client = host.client();
    let granted = client.acquire(&SUBNETS).unwrap();
    assert_eq!(granted.message.addresses, ["198.18.0.1"]);
    assert_eq!((granted.dns_udp.len(), granted.dns_tcp.len()), (1, 1));
    assert!(!host.resolv_conf_text().contains("nameserver fd6b"));
    assert_eq!(host.sh("ip -6 route show dev kvpn0"), "");
    drop((client, granted));
    host.wait_until_it_is(&before);
}

/// What the file says that the grant names.
fn upstreams(message: &v1::Granted) -> String {
    fs::read_to_string(&message.upstreams).unwrap()
}

/// Reads the next packet.
fn read(tun: &OwnedFd) -> Vec<u8> {
    let mut tun = File::from(tun.try_clone().unwrap());
    let mut packet = vec![0; 65535];
    let mut length = 0;
    wait_for("a packet", || match tun.read(&mut packet) {
        Ok(read) => {
            length = read;
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            false
        }
    });
    packet.truncate(length);
    packet
}
