//! The results as text for people.

use std::fmt::Write;

use indicatif::BinaryBytes;
use kvpn_proto::names;

use super::table::table;
use super::{
    Connection, ConnectionDetails, ConnectionStatus, Deleted, Disconnection, Engagement,
    Intercepted, Left, Output, Port, Requests, ToPod, Upped, Versions, Workloads, printable,
};

impl Output for Connection {
    fn text(&self) -> String {
        let how = if self.already_connected {
            "Already connected"
        } else {
            "Connected"
        };
        format!(
            "{how} to context {}, namespace {}{} ({})\n",
            self.context,
            self.namespace,
            under(&self.name),
            self.server
        )
    }
}

/// A connection's name, unless it is the usual one.
fn under(name: &str) -> String {
    match name {
        "" | names::DEFAULT_CONNECTION => String::new(),
        name => format!(", as {name}"),
    }
}

impl Output for Disconnection {
    fn text(&self) -> String {
        if !self.was_connected {
            return "Not connected\n".into();
        }
        ended(&self.ended) + "Disconnected\n"
    }
}

impl Output for ConnectionStatus {
    fn text(&self) -> String {
        match &self.details {
            Some(details) => details.text(),
            None => "Not connected\n".into(),
        }
    }
}

impl ConnectionDetails {
    fn text(&self) -> String {
        let mut text = format!(
            "Connected to context {}, namespace {}{}\n",
            self.context,
            self.namespace,
            under(&self.name)
        );
        let manager = format!(
            "{} in namespace {}",
            or_unknown(&self.versions.traffic_manager),
            self.manager_namespace
        );
        let traffic = format!(
            "{} open of {}, {} sent, {} received",
            self.open_flows,
            self.flows_total,
            BinaryBytes(self.bytes_sent),
            BinaryBytes(self.bytes_received)
        );
        let mut fields = vec![
            ("Server", self.server.clone()),
            ("User", self.user.clone()),
            ("Session", self.session.clone()),
            ("Link", format!("{} by {}", self.link, self.transport)),
            ("Traffic manager", manager),
            ("Chart", or_unknown(&self.versions.chart).to_owned()),
            (
                "Device",
                format!("{} {}", self.device, self.addresses.join(", ")),
            ),
            ("Pod subnets", self.pod_subnets.join(", ")),
            ("Service subnets", self.service_subnets.join(", ")),
            ("Routed", self.routed_subnets.join(", ")),
            (
                "Names",
                format!("{} by {}", self.cluster_domain, self.resolver),
            ),
            ("Flows", traffic),
        ];
        let mapped = self.virtual_subnets.iter();
        let mapped = mapped.map(|it| format!("{} at {}", it.subnet, it.virtual_subnet));
        let mapped: Vec<String> = mapped.collect();
        if !mapped.is_empty() {
            fields.insert(10, ("Shown", mapped.join(", ")));
        }
        if let Some(since) = self.connected_at {
            fields.insert(4, ("Since", since.to_string()));
        }
        for (name, value) in fields {
            let _ = writeln!(text, "  {:<17} {value}", format!("{name}:"));
        }
        if self.engagements.is_empty() {
            text += "No intercepts\n";
        }
        for engagement in &self.engagements {
            for line in lines(engagement) {
                let _ = writeln!(text, "{line}");
            }
            // Without ports there are none.
            let requests = engagement.requests.as_ref();
            if let Some(requests) = requests.filter(|_| !engagement.ports.is_empty()) {
                text += &requests.text(engagement);
            }
        }
        for deleted in &self.deleted {
            let _ = writeln!(text, "{}", deleted.text(&self.user));
        }
        text
    }
}

impl Requests {
    /// What became of them, and why filters may have seen too little.
    fn text(&self, engagement: &Engagement) -> String {
        let Self {
            matched,
            passed,
            failed,
            tls_passed,
            tls_failed,
        } = self;
        let mut text = format!("  Requests: {matched} matched, {passed} passed, {failed} failed\n");
        if *tls_failed > 0 {
            let handshakes = match tls_failed {
                1 => "handshake",
                _ => "handshakes",
            };
            let _ = writeln!(text, "  {tls_failed} TLS {handshakes} failed");
        }
        if *tls_passed == 0 || engagement.filter.is_empty() {
            return text;
        }
        let are = match tls_passed {
            1 => "connection is",
            _ => "connections are",
        };
        let why = match engagement.terminates_tls {
            true => " that could not be looked into",
            false => ": without --tls-cert or --tls-secret no filter can match them",
        };
        let _ = writeln!(text, "  {tls_passed} {are} TLS{why}");
        text
    }
}

impl Deleted {
    /// One line for this reader, such as `Engagement web-alice-k2x9p of Deployment/web was
    /// deleted by bob at 2025-11-24T16:00:00Z`.
    fn text(&self, reader: &str) -> String {
        let how = match &self.by {
            Some(by) => format!("by {}", printable(names::called(by, reader))),
            None => "from the cluster's side".to_owned(),
        };
        let at = self.at.map(|at| format!(" at {at}")).unwrap_or_default();
        format!(
            "Engagement {} of {} was deleted {how}{at}",
            self.name, self.workload
        )
    }
}

impl Output for Intercepted {
    fn text(&self) -> String {
        lines(&self.engagement)
            .map(|line| format!("{line}\n"))
            .collect()
    }
}

impl Output for Upped {
    fn text(&self) -> String {
        let connections = self.connections.iter().map(Output::text);
        connections
            .chain(self.engagements.iter().map(Output::text))
            .collect()
    }
}

impl Output for Left {
    fn text(&self) -> String {
        if self.ended.is_empty() {
            return "Nothing was intercepted\n".into();
        }
        ended(&self.ended)
    }
}

impl Output for Workloads {
    fn text(&self) -> String {
        // The table's header alone would look like a result.
        if self.is_empty() {
            return String::new();
        }
        let rows: Vec<_> = self
            .workloads
            .iter()
            .map(|workload| {
                [
                    format!("{}/{}", workload.kind, workload.name),
                    format!("{}/{}", workload.pods_ready, workload.pods_wanted),
                    or_dash(workload.services.join(", ")),
                    or_dash(workload.engaged_by.join(", ")),
                ]
            })
            .collect();
        table(["NAME", "READY", "SERVICES", "ENGAGED BY"], &rows)
    }
}

impl Output for Versions {
    fn text(&self) -> String {
        [
            ("Client", Some(&self.client)),
            ("Daemon", self.daemon.as_ref()),
            ("Session", self.session.as_ref()),
            ("Traffic manager", self.traffic_manager.as_ref()),
            ("Chart", self.chart.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, version)| Some((name, version?)))
        .map(|(name, version)| format!("{:<16} {version}\n", format!("{name}:")))
        .collect()
    }
}

/// What is done to a workload with a verb.
pub(crate) fn doing(verb: &str) -> &'static str {
    match verb {
        "wiretap" => "wiretapping",
        "replace" => "replacing",
        "ingest" => "ingesting",
        _ => "intercepting",
    }
}

/// One line for each port, such as `Intercepting Deployment/web port 80 (container 8080)
/// -> 127.0.0.1:8080, 3/3 pods`, and one for each that leads into a pod; one of an
/// engagement that takes no traffic.
fn lines(engagement: &Engagement) -> impl Iterator<Item = String> {
    let state = if engagement.active {
        String::new()
    } else {
        format!(", not active: {}", or_unknown(&engagement.message))
    };
    let filter = match engagement.filter.as_str() {
        "" => String::new(),
        filter if engagement.terminates_tls => {
            format!(", requests with {filter}, also within TLS")
        }
        filter => format!(", requests with {filter}"),
    };
    let to_pod = engagement.to_pod.iter().map(|it| {
        let ToPod { local, port } = it;
        format!("  {local} -> port {port} at localhost in one of the pods")
    });
    let files = Some(engagement).filter(|it| !it.mounted_at.is_empty());
    let files = files.map(|it| match it.mounted_read_only {
        true => format!("  files at {}, read-only", it.mounted_at),
        false => format!("  files at {}", it.mounted_at),
    });
    let mut doing = doing(&engagement.verb).to_owned();
    doing[..1].make_ascii_uppercase();
    let without_ports = engagement.ports.is_empty().then(|| {
        let (workload, container) = (&engagement.workload, &engagement.container);
        format!("{doing} {workload} container {container}{state}")
    });
    let ports = engagement.ports.iter().map(move |port| {
        format!(
            "{doing} {} {}{filter} -> {}, {}/{} pods{state}",
            engagement.workload,
            port_name(port),
            port.local,
            engagement.pods_covered,
            engagement.pods_selected
        )
    });
    without_ports
        .into_iter()
        .chain(ports)
        .chain(to_pod)
        .chain(files)
}

fn port_name(port: &Port) -> String {
    let protocol = match port.protocol {
        "UDP" => "/udp",
        _ => "",
    };
    match &port.service {
        Some(service) => format!(
            "port {}{protocol} (container {})",
            service.port, port.container_port
        ),
        None => format!("container port {}{protocol}", port.container_port),
    }
}

fn ended(engagements: &[Engagement]) -> String {
    engagements
        .iter()
        .map(|it| format!("Stopped {} {}\n", doing(&it.verb), it.workload))
        .collect()
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

pub(super) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}
