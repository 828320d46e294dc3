//! The answer to a scrape.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tracing::error;

use super::{Access, FlowStats, Metrics};
use crate::hub::Hub;

/// OpenMetrics, which Prometheus has read since 2.5.
const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Gives the metrics to those who may read them.
#[derive(Debug)]
pub(crate) struct Endpoint {
    access: Access,
    registry: Registry,
}

impl Endpoint {
    pub(crate) fn new(
        access: Access,
        hub: Arc<Hub>,
        flows: Arc<FlowStats>,
        chart_version: String,
    ) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Metrics {
            hub,
            flows,
            chart_version,
        }));
        Self { access, registry }
    }

    /// Answers a request with these headers.
    pub(crate) async fn answer(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let status = self.access.check(headers).await;
        let mut response = match status {
            StatusCode::OK => self.render(),
            StatusCode::UNAUTHORIZED => {
                let mut response = text("a bearer token is needed that the cluster knows\n");
                let scheme = HeaderValue::from_static("Bearer");
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, scheme);
                response
            }
            StatusCode::FORBIDDEN => text("the ClusterRole kvpn-metrics-reader is needed\n"),
            _ => text("the API server cannot be asked who this is\n"),
        };
        *response.status_mut() = match response.status() {
            StatusCode::OK => status,
            failed => failed,
        };
        response
    }

    fn render(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        if let Err(error) = text::encode(&mut body, &self.registry) {
            error!(%error, "metrics cannot be written");
            let mut response = text("metrics cannot be written\n");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return response;
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, CONTENT_TYPE);
        response
    }
}

fn text(body: &'static str) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(body.as_bytes())))
}
