//! The result of `flows`.

use std::collections::HashMap;
use std::net::SocketAddr;

use indicatif::BinaryBytes;
use jiff::Timestamp;
use kvpn_proto::v1::{self, FlowDirection, FlowState};
use serde::Serialize;

use super::Output;
use super::table::table;
use super::text::or_dash;
use crate::rates::Rate;

/// Outcome of `flows`.
#[derive(Debug, Serialize)]
pub(crate) struct Flows {
    flows: Vec<Flow>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Flow {
    id: u64,
    direction: Direction,
    protocol: String,
    host: String,
    cluster: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    engagement: Option<String>,
    /// `dialling`, `open`, `halfClosed`, `ended` or `failed`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    bytes_sent: u64,
    bytes_received: u64,
    bytes_sent_per_second: u64,
    bytes_received_per_second: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rtt_microseconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Direction {
    ToCluster,
    ToLaptop,
}

#[derive(Debug, Serialize)]
struct Target {
    kind: String,
    namespace: String,
    name: String,
}

impl Flows {
    pub(crate) fn new(flows: Vec<v1::Flow>, rates: &HashMap<u64, Rate>) -> Self {
        let flow = |flow: v1::Flow| {
            let rate = rates.get(&flow.id).copied().unwrap_or_default();
            Flow::new(flow, rate)
        };
        Self {
            flows: flows.into_iter().map(flow).collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Those that move most first.
    pub(crate) fn by_rate(mut self) -> Self {
        self.flows
            .sort_by_key(|flow| (std::cmp::Reverse(flow.rate()), flow.id));
        self
    }
}

impl Flow {
    fn new(flow: v1::Flow, rate: Rate) -> Self {
        let direction = match flow.direction() {
            FlowDirection::ToLaptop => Direction::ToLaptop,
            FlowDirection::ToCluster | FlowDirection::Unspecified => Direction::ToCluster,
        };
        let state = match flow.state() {
            FlowState::Dialling => "dialling",
            FlowState::Open => "open",
            FlowState::HalfClosed => "halfClosed",
            FlowState::Ended => "ended",
            FlowState::Failed => "failed",
            FlowState::Unspecified => "unknown",
        };
        let target = (!flow.object.is_empty()).then_some(Target {
            kind: flow.kind,
            namespace: flow.namespace,
            name: flow.object,
        });
        let known = |text: String| Some(text).filter(|text| !text.is_empty());
        Self {
            id: flow.id,
            direction,
            protocol: flow.protocol,
            host: flow.host,
            cluster: flow.cluster,
            name: known(flow.name),
            target,
            engagement: known(flow.engagement),
            state,
            reason: known(flow.reason),
            bytes_sent: flow.bytes_sent,
            bytes_received: flow.bytes_received,
            bytes_sent_per_second: rate.sent,
            bytes_received_per_second: rate.received,
            rtt_microseconds: Some(flow.rtt_microseconds).filter(|rtt| *rtt > 0),
            started_at: Timestamp::from_millisecond(flow.started_at).ok(),
        }
    }

    fn rate(&self) -> u64 {
        self.bytes_sent_per_second
            .saturating_add(self.bytes_received_per_second)
    }

    /// What the user calls the flow's end: `web.shop:80`, or the address; the
    /// engagement of an intercepted connection, or of one to a pod's localhost.
    fn title(&self) -> String {
        let port = self
            .cluster
            .parse()
            .map(|address: SocketAddr| address.port());
        match (&self.engagement, self.direction, &port) {
            (Some(engagement), Direction::ToCluster, Ok(port)) => {
                return format!("{engagement} port {port} in a pod");
            }
            (Some(engagement), ..) => return format!("{engagement} (intercepted)"),
            (None, ..) => {}
        }
        match (&self.name, port) {
            (Some(name), Ok(port)) if port > 0 => format!("{name}:{port}"),
            (Some(name), _) => name.clone(),
            (None, _) => self.cluster.clone(),
        }
    }

    fn row(&self) -> [String; 8] {
        let target = self.target.as_ref();
        let target = target.map(|it| format!("{}/{}/{}", it.namespace, it.kind, it.name));
        let rtt = self.rtt_microseconds;
        let state = match (self.state, &self.reason) {
            ("halfClosed", _) => "half-closed".to_owned(),
            (state, Some(reason)) => format!("{state}: {}", reason.replace('_', " ")),
            (state, None) => state.to_owned(),
        };
        [
            self.title(),
            or_dash(target.unwrap_or_default()),
            self.protocol.clone(),
            BinaryBytes(self.bytes_sent).to_string(),
            BinaryBytes(self.bytes_received).to_string(),
            format!("{}/s", BinaryBytes(self.rate())),
            rtt.map_or("-".into(), |rtt| format!("{:.1} ms", rtt as f64 / 1_000.0)),
            state,
        ]
    }
}

impl Output for Flows {
    fn text(&self) -> String {
        let rows: Vec<_> = self.flows.iter().map(Flow::row).collect();
        let header = [
            "NAME", "TARGET", "PROTOCOL", "SENT", "RECEIVED", "RATE", "RTT", "STATE",
        ];
        table(header, &rows)
    }
}
