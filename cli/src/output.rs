//! What commands print on standard output: documents with stable fields, and
//! text for people.

mod doctor;
mod flows;
mod judged;
mod log;
mod table;
mod text;
mod why;

use std::io::{ErrorKind, IsTerminal, Write};

use clap::ValueEnum;
use jiff::Timestamp;
use kvpn_proto::flow::{Carried, Protocol};
use kvpn_proto::v1::{
    DeletedEngagement, EngagementStatus, Link, ListResponse, PortMapping, Resolver, StatusResponse,
    Transport, WorkloadStatus,
};
use kvpn_proto::{Failure, Reason, v1};
use serde::Serialize;

pub(crate) use doctor::Findings;
pub(crate) use flows::Flows;
pub(crate) use judged::Judged;
pub(crate) use log::Line;
pub(crate) use text::doing;
pub(crate) use why::Told;

/// How to print a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON document; errors too, on standard error
    Json,
    /// One YAML document; errors too, on standard error
    Yaml,
}

/// A result of a command.
pub(crate) trait Output: Serialize {
    /// The result for people; every line ends with a newline.
    fn text(&self) -> String;
}

/// Prints a result. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(output: &impl Output, format: Format) -> Result<(), Failure> {
    write(&render(output, format)?).map(drop)
}

/// Prints one of many results: JSON on a line of its own, YAML as one of many
/// documents. Returns whether somebody still reads.
pub(crate) fn print_next(output: &impl Output, format: Format) -> Result<bool, Failure> {
    let rendered = match format {
        Format::Text => output.text() + "\n",
        Format::Json => serde_json::to_string(output).map_err(Failure::internal)? + "\n",
        Format::Yaml => format!("---\n{}", render(output, format)?),
    };
    write(&rendered)
}

/// Prints a result that is text already, for other programs. On a terminal it is without what
/// would move the cursor.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    let written = match std::io::stdout().is_terminal() {
        true => write(&escaped(text, &['\n', '\t'])),
        false => write(text),
    };
    written.map(drop)
}

/// What others have written, without what would move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    escaped(text, &[])
}

/// A text without control characters but for these.
fn escaped(text: &str, kept: &[char]) -> String {
    let shown = text
        .chars()
        .map(|c| match c.is_control() && !kept.contains(&c) {
            true => c.escape_default().to_string(),
            false => c.to_string(),
        });
    shown.collect()
}

/// Prints one of many results that for people are a line each. Returns whether somebody
/// still reads.
pub(crate) fn print_line(output: &impl Output, format: Format) -> Result<bool, Failure> {
    match format {
        Format::Text => write(&output.text()),
        Format::Json | Format::Yaml => print_next(output, format),
    }
}

/// Returns whether somebody still reads.
fn write(rendered: &str) -> Result<bool, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(rendered.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(
            Reason::Internal,
            format!("cannot write to standard output: {error}"),
            "see where standard output goes",
        )),
        Ok(()) => Ok(true),
        Err(_) => Ok(false),
    }
}

fn render(output: &impl Output, format: Format) -> Result<String, Failure> {
    match format {
        Format::Text => Ok(output.text()),
        Format::Json => serde_json::to_string_pretty(output)
            .map(|json| json + "\n")
            .map_err(Failure::internal),
        Format::Yaml => serde_yaml::to_string(output).map_err(Failure::internal),
    }
}

/// Outcome of `connect`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connection {
    pub(crate) connected: bool,
    /// It was there before.
    pub(crate) already_connected: bool,
    pub(crate) name: String,
    pub(crate) context: String,
    pub(crate) namespace: String,
    pub(crate) server: String,
}

/// Outcome of `quit`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Disconnection {
    pub(crate) connected: bool,
    pub(crate) was_connected: bool,
    pub(crate) ended: Vec<Engagement>,
}

/// Outcome of `status`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ConnectionStatus {
    connected: bool,
    #[serde(flatten)]
    details: Option<ConnectionDetails>,
}

/// A subnet of the cluster that the laptop sees at other addresses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VirtualSubnet {
    subnet: String,
    virtual_subnet: String,
}

impl From<v1::VirtualSubnet> for VirtualSubnet {
    fn from(message: v1::VirtualSubnet) -> Self {
        Self {
            subnet: message.subnet,
            virtual_subnet: message.virtual_subnet,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionDetails {
    name: String,
    context: String,
    server: String,
    namespace: String,
    user: String,
    session: String,
    manager_namespace: String,
    versions: ConnectionVersions,
    /// `up` or `reconnecting`.
    link: &'static str,
    /// `proxy` or `port-forward`.
    transport: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connected_at: Option<Timestamp>,
    device: String,
    addresses: Vec<String>,
    pod_subnets: Vec<String>,
    service_subnets: Vec<String>,
    routed_subnets: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    virtual_subnets: Vec<VirtualSubnet>,
    cluster_domain: String,
    /// `resolv.conf` or `systemd-resolved`.
    resolver: &'static str,
    open_flows: u64,
    flows_total: u64,
    dials_failed: u64,
    datagrams_dropped: u64,
    bytes_sent: u64,
    bytes_received: u64,
    engagements: Vec<Engagement>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    deleted: Vec<Deleted>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionVersions {
    session: String,
    traffic_manager: String,
    chart: String,
}

/// An intercept as it is at the moment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Engagement {
    name: String,
    namespace: String,
    workload: String,
    verb: String,
    ports: Vec<Port>,
    active: bool,
    /// Why it is not active.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    pods_selected: u32,
    pods_covered: u32,
    /// Which requests; absent for all.
    #[serde(skip_serializing_if = "String::is_empty")]
    filter: String,
    /// Clients' TLS is ended, so that the filter can look inside.
    terminates_tls: bool,
    /// Who answers when the laptop does not: `app`, or nobody by `503`.
    on_failure: &'static str,
    /// The container that is replaced or read, or whose ports are meant.
    #[serde(skip_serializing_if = "String::is_empty")]
    container: String,
    /// Its environment may be read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    environment: bool,
    /// Where its files are mounted.
    #[serde(skip_serializing_if = "String::is_empty")]
    mounted_at: String,
    /// They cannot be changed there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    mounted_read_only: bool,
    /// What leads to one of the pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    to_pod: Vec<ToPod>,
    /// Absent where nobody has told.
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<Requests>,
}

/// An engagement that was deleted from the cluster's side of late.
#[derive(Debug, Serialize)]
struct Deleted {
    name: String,
    namespace: String,
    workload: String,
    verb: String,
    /// Absent when nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
}

/// What became of an engagement's requests, and of connections whose requests are not
/// looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Requests {
    /// Those that failed included.
    matched: u64,
    passed: u64,
    /// The laptop did not take them.
    failed: u64,
    /// Connections of TLS that no filter could look into.
    tls_passed: u64,
    /// Connections of TLS that could not be ended.
    tls_failed: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    local: String,
    container_port: u32,
    /// As Kubernetes spells it.
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServicePort>,
}

/// A port of the laptop that leads to one of a pod's localhost.
#[derive(Debug, Serialize)]
struct ToPod {
    local: String,
    port: u32,
}

#[derive(Debug, Serialize)]
struct ServicePort {
    name: String,
    port: u32,
}

/// Outcome of `intercept`.
#[derive(Debug, Serialize)]
pub(crate) struct Intercepted {
    #[serde(flatten)]
    pub(crate) engagement: Engagement,
    pub(crate) warnings: Vec<String>,
}

/// Outcome of `up`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Upped {
    pub(crate) connections: Vec<Connection>,
    pub(crate) engagements: Vec<Intercepted>,
}

/// Outcome of `leave`.
#[derive(Debug, Serialize)]
pub(crate) struct Left {
    pub(crate) ended: Vec<Engagement>,
}

/// Outcome of `list`.
#[derive(Debug, Serialize)]
pub(crate) struct Workloads {
    workloads: Vec<Workload>,
}

impl Workloads {
    pub(crate) fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Workload {
    kind: String,
    name: String,
    namespace: String,
    pods_ready: u32,
    pods_wanted: u32,
    services: Vec<String>,
    engaged_by: Vec<String>,
}

/// Outcome of `version`: what could be had.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Versions {
    pub(crate) client: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) daemon: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) traffic_manager: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) chart: Option<String>,
}

impl From<StatusResponse> for ConnectionStatus {
    fn from(status: StatusResponse) -> Self {
        let link = match status.link() {
            Link::Up => "up",
            Link::Reconnecting => "reconnecting",
            Link::Unspecified => "unknown",
        };
        let transport = match status.transport() {
            Transport::Proxy => "proxy",
            Transport::PortForward => "port-forward",
            Transport::Unspecified => "unknown",
        };
        let resolver = match status.resolver() {
            Resolver::ResolvConf => "resolv.conf",
            Resolver::SystemdResolved => "systemd-resolved",
            Resolver::Unspecified => "unknown",
        };
        let virtual_subnets = status.virtual_subnets.into_iter();
        let details = ConnectionDetails {
            name: status.name,
            context: status.context,
            server: status.server,
            namespace: status.namespace,
            user: status.user,
            session: status.session,
            manager_namespace: status.manager_namespace,
            versions: ConnectionVersions {
                session: status.session_version,
                traffic_manager: status.manager_version,
                chart: status.chart_version,
            },
            link,
            transport,
            connected_at: Some(status.connected_at)
                .filter(|seconds| *seconds != 0)
                .and_then(|seconds| Timestamp::from_second(seconds).ok()),
            device: status.device,
            addresses: status.addresses,
            pod_subnets: status.pod_subnets,
            service_subnets: status.service_subnets,
            routed_subnets: status.routed_subnets,
            virtual_subnets: virtual_subnets.map(VirtualSubnet::from).collect(),
            cluster_domain: status.cluster_domain,
            resolver,
            open_flows: status.open_flows,
            flows_total: status.flows_total,
            dials_failed: status.dials_failed,
            datagrams_dropped: status.datagrams_dropped,
            bytes_sent: status.bytes_sent,
            bytes_received: status.bytes_received,
            engagements: status
                .engagements
                .into_iter()
                .map(Engagement::from)
                .collect(),
            deleted: status.deleted.into_iter().map(Deleted::from).collect(),
        };
        Self {
            connected: true,
            details: Some(details),
        }
    }
}

impl From<EngagementStatus> for Engagement {
    fn from(status: EngagementStatus) -> Self {
        Self {
            name: status.name,
            namespace: status.namespace,
            workload: status.workload,
            verb: status.verb,
            ports: status.ports.into_iter().map(Port::from).collect(),
            active: status.active,
            message: status.message,
            pods_selected: status.pods_selected,
            pods_covered: status.pods_covered,
            filter: status.filter,
            terminates_tls: status.terminates_tls,
            container: status.container,
            environment: status.environment,
            mounted_at: status.mounted_at,
            mounted_read_only: status.mounted_read_only,
            to_pod: status.to_pod.into_iter().map(ToPod::from).collect(),
            on_failure: if status.fails_closed { "503" } else { "app" },
            requests: status.counts.map(|counts| Requests {
                matched: counts.matched,
                passed: counts.passed,
                failed: counts.failed,
                tls_passed: counts.tls_passed,
                tls_failed: counts.tls_failed,
            }),
        }
    }
}

impl From<DeletedEngagement> for Deleted {
    fn from(deleted: DeletedEngagement) -> Self {
        Self {
            name: deleted.name,
            namespace: deleted.namespace,
            workload: deleted.workload,
            verb: deleted.verb,
            by: Some(deleted.by).filter(|by| !by.is_empty()),
            at: Timestamp::from_second(deleted.at).ok(),
        }
    }
}

impl From<v1::ToPod> for ToPod {
    fn from(to_pod: v1::ToPod) -> Self {
        Self {
            local: format!("127.0.0.1:{}", to_pod.local),
            port: to_pod.port,
        }
    }
}

impl From<PortMapping> for Port {
    fn from(mapping: PortMapping) -> Self {
        let protocol = Protocol::try_from(mapping.protocol());
        let protocol = Carried::from(protocol.unwrap_or(Protocol::Tcp));
        let service = (!mapping.service.is_empty()).then_some(ServicePort {
            name: mapping.service,
            port: mapping.service_port,
        });
        Self {
            local: mapping.local,
            container_port: mapping.container_port,
            protocol: protocol.as_str(),
            service,
        }
    }
}

impl From<ListResponse> for Workloads {
    fn from(response: ListResponse) -> Self {
        Self {
            workloads: response.workloads.into_iter().map(Workload::from).collect(),
        }
    }
}

impl From<WorkloadStatus> for Workload {
    fn from(status: WorkloadStatus) -> Self {
        Self {
            kind: status.kind,
            name: status.name,
            namespace: status.namespace,
            pods_ready: status.pods_ready,
            pods_wanted: status.pods_wanted,
            services: status.services,
            engaged_by: status.engaged_by,
        }
    }
}

#[cfg(test)]
mod tests;
