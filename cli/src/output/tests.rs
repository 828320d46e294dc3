//! Snapshots of every result in every format.

use kvpn_proto::v1::{self, FlowDirection, FlowState};

use super::*;
use crate::rates::Rate;

fn engagement() -> EngagementStatus {
    EngagementStatus {
        name: "web-k2x9p".into(),
        namespace: "shop".into(),
        workload: "Deployment/web".into(),
        verb: "intercept".into(),
        ports: vec![
            PortMapping {
                local: "127.0.0.1:8080".into(),
                container_port: 8080,
                service: "web".into(),
                service_port: 80,
                protocol: v1::Protocol::Tcp.into(),
            },
            PortMapping {
                local: "127.0.0.1:9090".into(),
                container_port: 9090,
                protocol: v1::Protocol::Udp.into(),
                ..PortMapping::default()
            },
        ],
        active: true,
        message: String::new(),
        pods_selected: 3,
        pods_covered: 3,
        filter: "header x-user=alice".into(),
        counts: Some(v1::RequestCounts {
            matched: 12,
            passed: 40,
            failed: 2,
            tls_passed: 0,
            tls_failed: 0,
        }),
        fails_closed: true,
        container: String::new(),
        terminates_tls: false,
        to_pod: vec![v1::ToPod {
            local: 15000,
            port: 9901,
        }],
        environment: false,
        mounted_at: String::new(),
        mounted_read_only: false,
        asked: None,
    }
}

#[test]
fn ingest_has_a_line_without_ports() {
    let ingest = EngagementStatus {
        verb: "ingest".into(),
        ports: Vec::new(),
        to_pod: Vec::new(),
        container: "app".into(),
        environment: true,
        mounted_at: "/run/files".into(),
        mounted_read_only: true,
        ..engagement()
    };
    let ingested = Intercepted {
        engagement: ingest.into(),
        warnings: Vec::new(),
    };
    assert_eq!(
        ingested.text(),
        "Ingesting Deployment/web container app\n  files at /run/files, read-only\n"
    );
}

fn status() -> StatusResponse {
    StatusResponse {
        name: "default".into(),
        context: "dev".into(),
        server: "https://10.1.0.1:6443/".into(),
        namespace: "shop".into(),
        user: "alice".into(),
        session: "alice-laptop-7f3d".into(),
        manager_namespace: "kvpn".into(),
        manager_version: "0.1.0".into(),
        chart_version: "0.1.0".into(),
        session_version: "0.1.0".into(),
        link: Link::Up.into(),
        transport: Transport::Proxy.into(),
        device: "kvpn0".into(),
        addresses: vec!["198.18.0.1".into(), "fd6b:7670:6e::1".into()],
        pod_subnets: vec!["10.244.0.0/16".into(), "fd00:10:244::/56".into()],
        service_subnets: vec!["10.96.0.0/16".into()],
        routed_subnets: vec!["246.0.0.0/16".into(), "10.244.0.0/16".into()],
        virtual_subnets: vec![v1::VirtualSubnet {
            subnet: "10.96.0.0/16".into(),
            virtual_subnet: "246.0.0.0/16".into(),
        }],
        cluster_domain: "cluster.local".into(),
        resolver: Resolver::ResolvConf.into(),
        open_flows: 2,
        bytes_sent: 4096,
        bytes_received: 123_456_789,
        engagements: vec![engagement()],
        connected_at: 1_764_000_000,
        flows_total: 17,
        dials_failed: 1,
        datagrams_dropped: 3,
        deleted: Vec::new(),
        options: Vec::new(),
    }
}

/// Compares a result in every format with what it was.
macro_rules! assert_output {
    ($name:literal, $output:expr) => {{
        let output = $output;
        for (format, suffix) in [
            (Format::Text, "text"),
            (Format::Json, "json"),
            (Format::Yaml, "yaml"),
        ] {
            let rendered = render(&output, format).unwrap();
            insta::assert_snapshot!(format!("{}_{suffix}", $name), rendered);
        }
    }};
}

#[test]
fn connection_is_printed() {
    let connection = |already_connected| Connection {
        name: "staging".into(),
        connected: true,
        already_connected,
        context: "dev".into(),
        namespace: "shop".into(),
        server: "https://10.1.0.1:6443/".into(),
    };
    assert_output!("connect", connection(false));
    assert!(connection(true).text().starts_with("Already connected"));
}

#[test]
fn tls_that_no_filter_could_look_into_is_told() {
    let told = |change: fn(&mut EngagementStatus)| {
        let mut told = engagement();
        told.counts.as_mut().unwrap().tls_passed = 5;
        change(&mut told);
        let status = StatusResponse {
            engagements: vec![told],
            ..status()
        };
        ConnectionStatus::from(status).text()
    };
    let hint = "5 connections are TLS: without --tls-cert or --tls-secret no filter can match them";
    assert!(told(|_| {}).contains(hint));
    let within = told(|it| it.terminates_tls = true);
    assert!(
        within.contains("x-user=alice, also within TLS ->"),
        "{within}"
    );
    assert!(!within.contains("--tls-cert"), "{within}");
    assert!(!told(|it| it.filter.clear()).contains("TLS"));
    assert!(!told(|it| it.counts.as_mut().unwrap().tls_passed = 0).contains("TLS"));
    let failed = told(|it| it.counts.as_mut().unwrap().tls_failed = 1);
    assert!(failed.contains("  1 TLS handshake failed\n"), "{failed}");
}

#[test]
fn disconnection_is_printed() {
    assert_output!(
        "quit",
        Disconnection {
            connected: false,
            was_connected: true,
            ended: vec![engagement().into()],
        }
    );
    assert_output!("quit_unconnected", Disconnection::default());
}

#[test]
fn status_is_printed() {
    assert_output!("status", ConnectionStatus::from(status()));
    assert_output!("status_unconnected", ConnectionStatus::default());
}

#[test]
fn status_tells_what_is_not_well() {
    let mut status = status();
    status.link = Link::Reconnecting.into();
    status.manager_version.clear();
    status.connected_at = 0;
    status.engagements[0].active = false;
    status.engagements[0].message = "one pod has no agent yet".into();
    status.engagements[0].pods_covered = 2;
    let text = ConnectionStatus::from(status).text();
    insta::assert_snapshot!("status_unwell", text);
}

#[test]
fn status_tells_who_deleted_what() {
    let deleted = |name: &str, by: &str| DeletedEngagement {
        name: name.into(),
        namespace: "shop".into(),
        workload: "Deployment/web".into(),
        verb: "intercept".into(),
        by: by.into(),
        at: 1_764_000_000,
    };
    let mut status = status();
    status.engagements.clear();
    status.deleted = vec![
        deleted("web-a", "bob@example.com"),
        deleted("web-b", "alice"),
        deleted("web-c", ""),
    ];
    let status = ConnectionStatus::from(status);
    let text = status.text();
    let lines = text.lines().skip_while(|line| *line != "No intercepts");
    let of = "of Deployment/web was deleted";
    let at = "at 2025-11-24T16:00:00Z";
    assert_eq!(
        lines.skip(1).collect::<Vec<_>>(),
        [
            format!("Engagement web-a {of} by bob@example.com {at}"),
            format!("Engagement web-b {of} by you {at}"),
            format!("Engagement web-c {of} from the cluster's side {at}"),
        ]
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["deleted"][0]["by"], "bob@example.com");
    assert_eq!(json["deleted"][2].get("by"), None);
}

#[test]
fn intercept_is_printed() {
    assert_output!(
        "intercept",
        Intercepted {
            engagement: engagement().into(),
            warnings: vec!["nothing listens on 127.0.0.1:8080".into()],
        }
    );
}

#[test]
fn leaving_is_printed() {
    assert_output!(
        "leave",
        Left {
            ended: vec![engagement().into()],
        }
    );
    let nothing = Left { ended: Vec::new() };
    assert_eq!(nothing.text(), "Nothing was intercepted\n");
}

#[test]
fn workloads_are_printed() {
    let workload =
        |kind: &str, name: &str, ready, services: &[&str], engaged_by: &[&str]| WorkloadStatus {
            kind: kind.into(),
            name: name.into(),
            namespace: "shop".into(),
            pods_ready: ready,
            pods_wanted: 3,
            services: services.iter().map(|it| it.to_string()).collect(),
            engaged_by: engaged_by.iter().map(|it| it.to_string()).collect(),
        };
    assert_output!(
        "list",
        Workloads::from(ListResponse {
            workloads: vec![
                workload(
                    "Deployment",
                    "web",
                    3,
                    &["web", "web-internal"],
                    &["alice (intercept, port 80)"]
                ),
                workload("StatefulSet", "database", 2, &[], &[]),
            ],
        })
    );
    let none = Workloads::from(ListResponse::default());
    assert_eq!(none.text(), "");
}

#[test]
fn flows_are_printed() {
    let flow = |id, direction: FlowDirection, state: FlowState| v1::Flow {
        id,
        direction: direction.into(),
        protocol: "TCP".into(),
        host: "198.18.0.1:40000".into(),
        cluster: "10.96.0.7:80".into(),
        state: state.into(),
        started_at: 1_764_000_000_000,
        ..v1::Flow::default()
    };
    let flows = vec![
        v1::Flow {
            name: "web.shop".into(),
            kind: "service".into(),
            namespace: "shop".into(),
            object: "web".into(),
            bytes_sent: 4096,
            bytes_received: 123_456_789,
            rtt_microseconds: 1_730,
            ..flow(1, FlowDirection::ToCluster, FlowState::HalfClosed)
        },
        v1::Flow {
            host: "127.0.0.1:8080".into(),
            cluster: "10.244.0.9:52000".into(),
            kind: "pod".into(),
            namespace: "shop".into(),
            object: "web-1".into(),
            engagement: "web-k2x9p".into(),
            rtt_microseconds: 90,
            ..flow(2, FlowDirection::ToLaptop, FlowState::Open)
        },
        v1::Flow {
            protocol: "ICMP".into(),
            host: "fd6b:7670:6e::1".into(),
            cluster: "fd00:244::7".into(),
            ..flow(3, FlowDirection::ToCluster, FlowState::Open)
        },
        v1::Flow {
            reason: "host_unreachable".into(),
            ..flow(4, FlowDirection::ToCluster, FlowState::Failed)
        },
    ];
    let rate = Rate {
        sent: 1_000,
        received: 2_000_000,
    };
    assert_output!("flows", Flows::new(flows, &[(1, rate)].into()));
}

#[test]
fn versions_are_printed_as_far_as_known() {
    assert_output!(
        "version",
        Versions {
            client: "0.1.0".into(),
            daemon: Some("0.1.0".into()),
            session: Some("0.1.0".into()),
            traffic_manager: Some("0.1.1".into()),
            chart: Some("0.1.1".into()),
        }
    );
    let client_only = Versions {
        client: "0.1.0".into(),
        ..Versions::default()
    };
    assert_eq!(client_only.text(), "Client:          0.1.0\n");
}

#[test]
fn story_is_printed() {
    use kvpn_proto::story::{Place, Step, Story};
    let address = "10.96.12.7".parse().unwrap();
    let story = Story {
        target: "web.shop".into(),
        port: Some(81),
        addresses: vec![address],
        steps: vec![
            Step::on(Place::Resolver, "web.shop is asked of the cluster."),
            Step::stop(Place::FarSide, "10.96.12.7 refuses connections to port 81."),
        ],
        reached: Some(false),
    };
    assert_output!("why", Told(story));
}

#[test]
fn text_for_a_terminal_moves_no_cursor() {
    let text = "export A='\x1b[2J\u{9b}2J\r'\n\tB";
    assert_eq!(
        escaped(text, &['\n', '\t']),
        "export A='\\u{1b}[2J\\u{9b}2J\\r'\n\tB"
    );
}
