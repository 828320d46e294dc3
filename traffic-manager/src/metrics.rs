//! What Prometheus is told, and who may ask.

mod access;
mod endpoint;
mod flows;

use std::fmt;
use std::sync::Arc;

use kvpn_proto::flow::{Carried, DialError};
use kvpn_proto::version;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

pub(crate) use access::Access;
pub(crate) use endpoint::Endpoint;
pub(crate) use flows::{FlowStats, Origin};

use crate::hub::Hub;

/// All metrics; they are read when they are asked for.
#[derive(Debug)]
struct Metrics {
    hub: Arc<Hub>,
    flows: Arc<FlowStats>,
    chart_version: String,
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.encode_build(&mut encoder)?;
        self.encode_census(&mut encoder)?;
        self.encode_flows(&mut encoder)
    }
}

impl Metrics {
    fn encode_build(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut info = gauge(
            encoder,
            "kvpn_build_info",
            "Versions of this traffic manager",
        )?;
        let labels = [
            ("version", version::VERSION),
            ("chart_version", &self.chart_version),
        ];
        set(&mut info, &labels, 1)
    }

    fn encode_census(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let census = self.hub.census();
        let mut sessions = gauge(
            encoder,
            "kvpn_sessions",
            "Sessions, by whether their laptop is connected",
        )?;
        set(
            &mut sessions,
            &[("state", "present")],
            int(census.sessions_present),
        )?;
        set(
            &mut sessions,
            &[("state", "absent")],
            int(census.sessions_absent),
        )?;
        let mut engagements = gauge(
            encoder,
            "kvpn_engagements",
            "Engagements, by verb and by `Active` or the reason why not",
        )?;
        for ((verb, state), count) in &census.engagements {
            let labels = [("verb", *verb), ("state", state)];
            set(&mut engagements, &labels, int(*count))?;
        }
        let agents = gauge(encoder, "kvpn_agents", "Agents that are connected")?;
        single(agents, int(census.agents))?;
        let connections = gauge(
            encoder,
            "kvpn_tunnel_connections",
            "Authenticated connections of sessions",
        )?;
        single(connections, int(self.hub.connections()))
    }

    fn encode_flows(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let kinds = self.flows.kinds();
        let mut open = gauge(encoder, "kvpn_flows_open", "Flows that are open")?;
        for (kind, stats) in &kinds {
            set(&mut open, &kind_labels(*kind), stats.open())?;
        }
        let mut total = counter(encoder, "kvpn_flows", "Flows that were asked for", None)?;
        for (kind, stats) in &kinds {
            add(&mut total, &kind_labels(*kind), stats.total())?;
        }
        let mut failures = counter(
            encoder,
            "kvpn_dial_failures",
            "Dials that failed, and datagrams that were refused, by reason",
            None,
        )?;
        for (kind, stats) in &kinds {
            for error in DialError::ALL {
                let count = stats.meter().failures(error);
                if count > 0 {
                    let [protocol, from] = kind_labels(*kind);
                    let labels = [protocol, from, ("reason", error.as_str())];
                    add(&mut failures, &labels, count)?;
                }
            }
        }
        let mut bytes = counter(
            encoder,
            "kvpn_transferred",
            "Payload of flows",
            Some(&Unit::Bytes),
        )?;
        for (kind, stats) in &kinds {
            let [protocol, from] = kind_labels(*kind);
            let meter = stats.meter();
            let (to_laptop, to_cluster) = match kind.1 {
                Origin::Laptop => (meter.sent(), meter.received()),
                Origin::Pod => (meter.received(), meter.sent()),
            };
            for (direction, count) in [("laptop", to_laptop), ("cluster", to_cluster)] {
                add(&mut bytes, &[protocol, from, ("to", direction)], count)?;
            }
        }
        Ok(())
    }
}

fn kind_labels((carried, origin): (Carried, Origin)) -> [(&'static str, &'static str); 2] {
    let protocol = match carried {
        Carried::Tcp => "tcp",
        Carried::Udp => "udp",
        Carried::Icmp => "icmp",
    };
    let origin = match origin {
        Origin::Laptop => "laptop",
        Origin::Pod => "pod",
    };
    [("protocol", protocol), ("from", origin)]
}

fn gauge<'s>(
    encoder: &'s mut DescriptorEncoder,
    name: &'s str,
    help: &str,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

/// The name's `_total`, and its unit before it, are added.
fn counter<'s>(
    encoder: &'s mut DescriptorEncoder,
    name: &'s str,
    help: &str,
    unit: Option<&'s Unit>,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Counter)
}

fn set(
    encoder: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    encoder.encode_family(labels)?.encode_gauge(&value)
}

fn single(mut encoder: MetricEncoder<'_>, value: impl EncodeGaugeValue) -> fmt::Result {
    encoder.encode_gauge(&value)
}

fn add(
    encoder: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: impl EncodeCounterValue,
) -> fmt::Result {
    encoder
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn int(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
