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
        match self.access.check(headers).await {
            StatusCode::OK => self.render(),
            status @ StatusCode::UNAUTHORIZED => {
                let why = "a bearer token is needed that the cluster knows\n";
                let mut response = refused(status, why);
                let scheme = HeaderValue::from_static("Bearer");
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, scheme);
                response
            }
            status @ StatusCode::FORBIDDEN => {
                refused(status, "the ClusterRole kvpn-metrics-reader is needed\n")
            }
            status => refused(status, "the API server cannot be asked who this is\n"),
        }
    }

    fn render(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        if let Err(error) = text::encode(&mut body, &self.registry) {
            error!(%error, "metrics cannot be written");
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return refused(status, "metrics cannot be written\n");
        }
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, CONTENT_TYPE);
        response
    }
}

fn refused(status: StatusCode, why: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(why.as_bytes())));
    *response.status_mut() = status;
    response
}
