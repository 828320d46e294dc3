//! A line of `log`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kvpn_proto::v1::{LogResponse, Taker};
use serde::Serialize;

use super::{Output, printable};

/// What became of a request, or of a connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    pod: String,
    container_port: u32,
    /// Absent for a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u32>,
    microseconds: u64,
    /// It is a connection whose TLS could not be ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    tls_failed: bool,
    to: To,
    /// How many others are left out before this one.
    #[serde(skip_serializing_if = "is_zero")]
    left_out: u64,
}

/// Whom a request went to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct To {
    /// `app`, `laptop`, or `nobody`.
    kind: &'static str,
    /// For whom it was, if for a laptop.
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    engagement: String,
    /// The laptop did not take it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    failed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl From<LogResponse> for Line {
    fn from(response: LogResponse) -> Self {
        let decision = response.decision.unwrap_or_default();
        let some = |text: String| (!text.is_empty()).then_some(text);
        let kind = match decision.taken_by() {
            Taker::Laptop => "laptop",
            Taker::App => "app",
            Taker::Nobody | Taker::Unspecified => "nobody",
        };
        Self {
            at: Timestamp::from_microsecond(decision.came_at).ok(),
            pod: response.pod,
            container_port: decision.container_port,
            method: some(decision.method),
            path: some(decision.path),
            status: Some(decision.status).filter(|status| *status != 0),
            microseconds: decision.microseconds,
            tls_failed: decision.tls_failed,
            to: To {
                kind,
                user: response.user,
                engagement: response.engagement,
                failed: decision.failed,
            },
            left_out: response.left_out,
        }
    }
}

impl Output for Line {
    fn text(&self) -> String {
        let at = self.at.map(|at| at.to_zoned(TimeZone::system()));
        let at = at.map_or_else(String::new, |at| at.strftime("%H:%M:%S%.3f").to_string());
        let what = match (&self.method, &self.path) {
            (Some(method), Some(path)) => format!("{} {}", printable(method), printable(path)),
            _ if self.tls_failed => format!("failed TLS handshake at port {}", self.container_port),
            _ => format!("connection to port {}", self.container_port),
        };
        let status = match (self.status, &self.method) {
            (Some(status), _) => status.to_string(),
            (None, Some(_)) => "no answer".to_owned(),
            (None, None) => "-".to_owned(),
        };
        let time = if self.microseconds < 10_000 {
            format!(
                "{:.1} ms",
                f64::from(u32::try_from(self.microseconds).unwrap_or(0)) / 1e3
            )
        } else {
            format!("{} ms", self.microseconds / 1_000)
        };
        let To {
            kind, user, failed, ..
        } = &self.to;
        let user = printable(user);
        let to = match (*kind, failed) {
            ("laptop", _) => format!("{user}'s laptop"),
            ("nobody", true) => format!("nobody, as {user}'s laptop did not take it"),
            ("nobody", false) => "nobody".to_owned(),
            (kind, true) => format!("the {kind}, as {user}'s laptop did not take it"),
            (kind, false) => format!("the {kind}"),
        };
        format!("{at}  {}  {what}  {status}  {time}  -> {to}\n", self.pod)
    }
}
