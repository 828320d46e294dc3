use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().copied().map(net).collect()
}

fn route(subnet: &str) -> Route {
    Route {
        subnet: net(subnet),
        kind: Kind::Unicast,
        gateways: Vec::new(),
        device: Some("eth0".into()),
        table: MAIN,
        stage: Stage::Main,
        metric: 0,
    }
}

fn blackhole(subnet: &str) -> Route {
    Route {
        kind: Kind::Closed("blackhole"),
        device: None,
        ..route(subnet)
    }
}

/// In a table of its own that is looked up before the main one.
fn early(route: Route) -> Route {
    Route {
        table: 52,
        stage: Stage::BeforeMain,
        ..route
    }
}

fn planned(
    subnets: &[&str],
    allowed: &[&str],
    routes: &[Route],
) -> Result<BTreeSet<DeviceRoute>, Failure> {
    plan(
        Wanted {
            subnets: &nets(subnets),
            allowed_conflicts: &nets(allowed),
            routed: &BTreeSet::new(),
            held: &BTreeSet::new(),
        },
        routes,
    )
}

/// As `SUBNET`, with ` table TABLE` and ` metric METRIC` where they are not the
/// usual ones.
fn texts(planned: &BTreeSet<DeviceRoute>) -> Vec<String> {
    let text = |route: &DeviceRoute| {
        let mut text = route.subnet.to_string();
        if route.table != MAIN {
            text += &format!(" table {}", route.table);
        }
        if route.metric != 0 {
            text += &format!(" metric {}", route.metric);
        }
        text
    };
    planned.iter().map(text).collect()
}

#[track_caller]
fn refused(subnets: &[&str], allowed: &[&str], routes: &[Route]) -> Failure {
    let failure = planned(subnets, allowed, routes).unwrap_err();
    assert_eq!(failure.reason, Reason::HostRefused);
    failure
}

#[test]
fn routes_elsewhere_and_default_routes_do_not_matter() {
    let routes = [
        route("0.0.0.0/0"),
        route("0.0.0.0/1"),
        route("128.0.0.0/1"),
        route("::/0"),
        route("8000::/1"),
        route("10.97.0.0/16"),
        route("fd00:97::/64"),
    ];
    let planned = planned(&["10.96.0.0/16", "fd00:96::/108"], &[], &routes).unwrap();
    assert_eq!(texts(&planned), ["10.96.0.0/16", "fd00:96::/108"]);
}

#[test]
fn route_that_contains_equals_or_lies_inside_is_a_conflict() {
    for (host, common) in [
        ("10.0.0.0/8", "10.96.0.0/16"),
        ("10.96.0.0/16", "10.96.0.0/16"),
        ("10.96.3.0/24", "10.96.3.0/24"),
        ("10.96.3.4/32", "10.96.3.4/32"),
    ] {
        let failure = refused(&["10.96.0.0/16"], &[], &[route(host)]);
        assert_eq!(
            failure.message,
            format!(
                "the cluster's subnet 10.96.0.0/16 overlaps with the host's route {host} on eth0"
            )
        );
        assert_eq!(
            failure.next_step,
            format!(
                "connect with `--vnat all` to have the cluster at other addresses, with \
                 `--allow-conflicting-subnets {common}` to reach it at its own, or with \
                 `--never-proxy {common}` to leave that part to the host"
            )
        );
    }
}

#[test]
fn conflict_tells_the_gateway_and_whose_the_device_is() {
    let vpn = Route {
        gateways: vec!["192.168.1.1".parse().unwrap()],
        device: Some("tun0".into()),
        ..route("10.0.0.0/8")
    };
    let failure = refused(&["10.96.0.0/16"], &[], &[vpn]);
    let end = "the host's route 10.0.0.0/8 via 192.168.1.1 on tun0 (a VPN)";
    assert!(failure.message.ends_with(end), "{failure}");
}

#[test]
fn next_step_names_all_that_is_in_the_way() {
    let failure = refused(
        &[
            "10.96.0.0/16",
            "10.244.0.0/16",
            "10.245.0.0/16",
            "172.30.0.0/16",
        ],
        &[],
        &[route("10.0.0.0/8")],
    );
    let all = "`--never-proxy 10.96.0.0/16,10.244.0.0/15`";
    assert!(failure.next_step.contains(all), "{failure:?}");
}

#[test]
fn larger_blackhole_is_harmless_but_an_equal_or_smaller_one_is_named() {
    let larger = blackhole("10.0.0.0/8");
    let routes = planned(&["10.96.0.0/16"], &[], std::slice::from_ref(&larger)).unwrap();
    assert_eq!(texts(&routes), ["10.96.0.0/16"]);
    for subnet in ["10.96.0.0/16", "10.96.3.0/24"] {
        let failure = refused(&["10.96.0.0/16"], &[], &[larger.clone(), blackhole(subnet)]);
        let end = format!("with the host's blackhole route {subnet}");
        assert!(failure.message.ends_with(&end), "{failure}");
    }
}

#[test]
fn table_that_is_looked_up_first_gets_routes_too() {
    for harmless in [blackhole("10.0.0.0/8"), route("0.0.0.0/0")] {
        let planned = planned(&["10.96.0.0/16"], &[], &[early(harmless)]).unwrap();
        assert_eq!(texts(&planned), ["10.96.0.0/16 table 52", "10.96.0.0/16"]);
    }
    let vpn = [early(route("10.0.0.0/8"))];
    refused(&["10.96.0.0/16"], &[], &vpn);
    let planned = planned(&["10.96.0.0/16"], &["10.0.0.0/8"], &vpn).unwrap();
    assert_eq!(texts(&planned), ["10.96.0.0/16 table 52", "10.96.0.0/16"]);
}

#[test]
fn allowed_conflict_is_won_by_the_longer_prefix() {
    let subnets = ["10.96.0.0/16"];
    for (host, expected) in [
        ("10.0.0.0/8", vec!["10.96.0.0/16"]),
        ("10.96.0.0/16", vec!["10.96.0.0/17", "10.96.128.0/17"]),
        (
            "10.96.3.0/24",
            vec!["10.96.0.0/16", "10.96.3.0/25", "10.96.3.128/25"],
        ),
    ] {
        let planned = planned(&subnets, &subnets, &[route(host)]).unwrap();
        assert_eq!(texts(&planned), expected, "{host}");
    }
}

#[test]
fn halves_that_the_host_has_too_are_divided_further() {
    let routes = [route("10.96.0.0/16"), route("10.96.128.0/17")];
    let planned = planned(&["10.96.0.0/16"], &["10.0.0.0/8"], &routes).unwrap();
    assert_eq!(
        texts(&planned),
        ["10.96.0.0/17", "10.96.128.0/18", "10.96.192.0/18"]
    );
}

#[test]
fn conflict_outside_of_what_is_allowed_is_refused() {
    let routes = [route("10.96.3.0/24"), route("10.96.4.0/24")];
    let failure = refused(&["10.96.0.0/16"], &["10.96.3.0/24"], &routes);
    assert!(failure.message.contains("route 10.96.4.0/24"), "{failure}");
    // It is not for all of what both are for.
    refused(&["10.96.0.0/16"], &["10.96.3.0/25"], &routes[..1]);
}

#[test]
fn route_to_one_address_is_won_by_its_metric_alone() {
    let subnets = ["10.96.0.0/16", "fd00:96::/108"];
    let with_metric = |subnet, metric| Route {
        metric,
        ..route(subnet)
    };
    let routes = [
        with_metric("10.96.3.4/32", 100),
        with_metric("fd00:96::4/128", 1024),
    ];
    let planned = planned(&subnets, &subnets, &routes).unwrap();
    assert_eq!(
        texts(&planned),
        [
            "10.96.0.0/16",
            "10.96.3.4/32",
            "fd00:96::/108",
            "fd00:96::4/128 metric 1"
        ]
    );
    for best in [
        with_metric("10.96.3.4/32", 0),
        with_metric("fd00:96::4/128", 1),
    ] {
        let failure = refused(&subnets, &subnets, std::slice::from_ref(&best));
        assert!(failure.message.contains("cannot win"), "{failure}");
        let flag = format!("`--never-proxy {}`", best.subnet);
        assert!(failure.next_step.contains(&flag), "{failure:?}");
    }
}

#[test]
fn route_to_the_host_itself_is_never_outranked() {
    let local = Route {
        kind: Kind::Local,
        ..route("10.0.0.0/8")
    };
    refused(&["10.96.0.0/16"], &["10.0.0.0/8"], &[local]);
}

#[test]
fn route_that_came_later_is_not_held_against_what_is_routed() {
    let (old, new) = (
        nets(&["10.96.0.0/16"]),
        nets(&["10.96.0.0/16", "10.97.0.0/16"]),
    );
    let later = [route("10.96.3.0/24")];
    let wanted = Wanted {
        subnets: &new,
        allowed_conflicts: &BTreeSet::new(),
        routed: &old,
        held: &old,
    };
    let planned = plan(wanted, &later).unwrap();
    assert_eq!(texts(&planned), ["10.96.0.0/16", "10.97.0.0/16"]);
    plan(wanted, &[route("10.97.3.0/24")]).unwrap_err();

    // What is wanted may be written in other parts than what is routed.
    let (old, new) = (nets(&["10.244.0.0/24"]), nets(&["10.244.0.0/23"]));
    let wanted = Wanted {
        subnets: &new,
        allowed_conflicts: &BTreeSet::new(),
        routed: &old,
        held: &old,
    };
    let planned = plan(wanted, &[route("10.244.0.128/25")]).unwrap();
    assert_eq!(texts(&planned), ["10.244.0.0/23"]);
    plan(wanted, &[route("10.244.1.128/25")]).unwrap_err();
}

#[test]
fn what_a_later_route_has_won_is_not_taken_back_by_parts() {
    let parts = nets(&["10.96.128.0/17", "10.96.3.0/25", "10.96.3.192/26"]);
    let (whole, none) = (nets(&["10.96.0.0/16"]), BTreeSet::new());
    let planned = |routed: &BTreeSet<IpNet>, held: &BTreeSet<IpNet>, later: &str| {
        let wanted = Wanted {
            subnets: &parts,
            allowed_conflicts: &none,
            routed,
            held,
        };
        plan(wanted, &[route(later)]).unwrap()
    };
    // Also the next time, when the parts are what is wanted all along.
    let won = nets(&["10.96.128.0/17"]);
    for (routed, held) in [(&whole, &whole), (&whole, &won)] {
        assert_eq!(
            texts(&planned(routed, held, "10.96.3.0/24")),
            ["10.96.128.0/17"]
        );
    }
    // A larger one has lost against what is routed.
    for (routed, held) in [(&whole, &whole), (&parts, &parts)] {
        assert_eq!(planned(routed, held, "10.0.0.0/8").len(), parts.len());
    }
}
