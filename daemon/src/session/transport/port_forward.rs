//! A port-forward to a pod of the traffic manager, over a WebSocket. Slower
//! than `services/proxy`, but allowed and working in other places: the kubelet
//! reaches the pod, not the API server.

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::core::{Request as KubeRequest, Selector};
use kube::{Api, Error, ResourceExt};
use kvpn_proto::{Failure, Reason, names};
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use super::attempt::{Failed, in_time, no_answer, no_ready_pod, refused};
use super::channel::PortChannel;
use super::tls;
use super::upgrade::tunnel_request;
use crate::session::cluster::Cluster;

/// Opens a stream to the traffic manager.
pub(super) async fn open(cluster: &Cluster, namespace: &str) -> Result<TokioIo<Upgraded>, Failed> {
    let opened = in_time(namespace, async {
        let pod = ready_pod(cluster, namespace).await?;
        let port = forward(cluster, namespace, &pod).await?;
        let tls = tls::connect(port)
            .await
            .map_err(|error| no_answer(namespace, &error.to_string()))?;
        upgrade(namespace, tls).await.map(TokioIo::new)
    });
    opened.await.map_err(|mut failed| {
        if failed.failure.reason == Reason::Forbidden {
            // The chart has a Role of its own for this way.
            failed.failure.next_step = format!(
                "ask an administrator to bind the Role kvpn-port-forward in namespace {namespace} to you"
            );
        }
        failed
    })
}

/// The name of a pod behind the traffic manager's Service.
async fn ready_pod(cluster: &Cluster, namespace: &str) -> Result<String, Failed> {
    let failed = |failure: Failure| {
        if failure.reason == Reason::Forbidden {
            Failed::by_way(failure)
        } else {
            Failed::by_everything(failure)
        }
    };
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let service = cluster
        .call(services.get_opt(names::MANAGER_SERVICE))
        .await
        .map_err(failed)?
        .ok_or_else(|| Failed::by_everything(cluster.not_installed()))?;
    let labels = service.spec.and_then(|spec| spec.selector);
    let selector: Selector = labels.unwrap_or_default().into_iter().collect();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pods = cluster
        .call(pods.list(&ListParams::default().labels_from(&selector)))
        .await
        .map_err(failed)?;
    pods.iter()
        .find(|pod| is_ready(pod))
        .map(ResourceExt::name_any)
        .ok_or_else(|| no_ready_pod(namespace))
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let ready = conditions
        .unwrap_or_default()
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// Has the API server and the kubelet lead a WebSocket to the pod's port.
async fn forward(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, Failed> {
    let internal = |error: &dyn std::fmt::Display| Failed::by_everything(Failure::internal(error));
    let request = KubeRequest::new(format!("/api/v1/namespaces/{namespace}/pods"))
        .portforward(pod, &[names::MANAGER_SESSION_PORT])
        .map_err(|error| internal(&error))?;
    match cluster.client.connect(request).await {
        Ok(connection) => Ok(PortChannel::new(connection.into_stream())),
        Err(Error::Api(status)) => {
            let code = StatusCode::from_u16(status.code).unwrap_or_default();
            // Not found is the pod here, which was there a moment ago.
            if code == StatusCode::NOT_FOUND {
                return Err(no_ready_pod(namespace));
            }
            Err(refused(cluster, namespace, code, Some(*status), &[]))
        }
        Err(Error::UpgradeConnection(error)) => Err(no_answer(namespace, &error.to_string())),
        Err(error) => Err(Failed::by_everything(cluster.failure(&error))),
    }
}

/// Asks the traffic manager to speak gRPC from there on.
async fn upgrade<S>(namespace: &str, stream: S) -> Result<Upgraded, Failed>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let lost = |error: hyper::Error| no_answer(namespace, &error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "The forwarded port's HTTP connection ended");
        }
    });
    let mut request = tunnel_request(names::TUNNEL_PATH, Empty::<Bytes>::new())?;
    request
        .headers_mut()
        .insert(HOST, HeaderValue::from_static(names::MANAGER_TLS_NAME));
    let response = sender.send_request(request).await.map_err(lost)?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(no_answer(namespace, &status.to_string()));
    }
    hyper::upgrade::on(response).await.map_err(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_pod_that_is_ready_and_stays_is_taken() {
        let status = serde_json::json!({"conditions": [{"type": "Ready", "status": "True"}]});
        assert!(is_ready(&pod(serde_json::json!({"status": status}))));
        assert!(!is_ready(&pod(serde_json::json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": status,
        }))));
        assert!(!is_ready(&pod(serde_json::json!({
            "status": {"conditions": [{"type": "Ready", "status": "False"}]},
        }))));
        assert!(!is_ready(&pod(serde_json::json!({}))));
    }
}
