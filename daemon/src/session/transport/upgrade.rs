//! An upgraded request through the API server's `services/proxy`, which
//! authenticates, authorises and audits it.

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use kvpn_proto::{Failure, names};

use super::attempt::{Failed, in_time, no_answer, refused};
use crate::session::cluster::Cluster;

/// The longest explanation that is read, in bytes.
const MAX_EXPLANATION: usize = 64 << 10;

/// Opens a stream to the traffic manager.
pub(super) async fn open(cluster: &Cluster, namespace: &str) -> Result<TokioIo<Upgraded>, Failed> {
    in_time(namespace, upgrade(cluster, namespace))
        .await
        .map(TokioIo::new)
}

async fn upgrade(cluster: &Cluster, namespace: &str) -> Result<Upgraded, Failed> {
    let path = format!(
        "/api/v1/namespaces/{namespace}/services/{}/proxy{}",
        names::manager_proxy_name(),
        names::TUNNEL_PATH
    );
    let request = tunnel_request(&path, Body::empty())?;
    let response = cluster.client.send(request).await.map_err(|error| {
        let failure = cluster.failure(&error);
        if is_broken_off(&error) {
            Failed::by_way(failure)
        } else {
            Failed::by_everything(failure)
        }
    })?;
    let status = response.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return hyper::upgrade::on(response)
            .await
            .map_err(|error| no_answer(namespace, &error.to_string()));
    }
    let body = Limited::new(response.into_body(), MAX_EXPLANATION)
        .collect()
        .await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let explanation = serde_json::from_slice(&body).ok();
    Err(refused(cluster, namespace, status, explanation, &body))
}

/// Tells whether the server was there but gave no answer, as where a proxy in
/// between does not like the upgrade.
fn is_broken_off(error: &kube::Error) -> bool {
    let mut error: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = error {
        if let Some(this) = this.downcast_ref::<hyper_util::client::legacy::Error>() {
            return !this.is_connect();
        }
        error = this.source();
    }
    false
}

/// What asks the traffic manager to speak gRPC from there on.
pub(super) fn tunnel_request<B>(path: &str, body: B) -> Result<Request<B>, Failed> {
    Request::get(path)
        .header(CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(UPGRADE, HeaderValue::from_static(names::UPGRADE_PROTOCOL))
        .body(body)
        .map_err(|error| Failed::by_everything(Failure::internal(error)))
}
