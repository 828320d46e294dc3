//! The byte stream to the traffic manager: an upgraded request through the API
//! server's `services/proxy`, which authenticates, authorises and audits it.

use std::sync::Mutex;
use std::time::Duration;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::Upgraded;
use kube::client::Body;
use kube::core::Status;
use kvpn_proto::{Failure, Reason, names};
use kvpn_tunnel::grpc;
use tonic::transport::Channel;

use super::cluster::Cluster;

/// How long the API server and the traffic manager may take to answer.
const DEADLINE: Duration = Duration::from_secs(8);

/// The longest explanation that is read, in bytes.
const MAX_EXPLANATION: usize = 64 << 10;

/// Opens a stream to the traffic manager and speaks HTTP/2 on it.
pub(crate) async fn open(cluster: &Cluster, namespace: &str) -> Result<Channel, Failure> {
    let opening = async {
        let upgraded = upgrade(cluster, namespace).await?;
        channel(upgraded).await
    };
    tokio::time::timeout(DEADLINE, opening)
        .await
        .unwrap_or_else(|_| Err(no_answer(namespace, "no answer in time")))
}

async fn upgrade(cluster: &Cluster, namespace: &str) -> Result<Upgraded, Failure> {
    let path = format!(
        "/api/v1/namespaces/{namespace}/services/{}/proxy{}",
        names::manager_proxy_name(),
        names::TUNNEL_PATH
    );
    let request = Request::get(path)
        .header(CONNECTION, HeaderValue::from_static("Upgrade"))
        .header(UPGRADE, HeaderValue::from_static(names::UPGRADE_PROTOCOL))
        .body(Body::empty())
        .map_err(Failure::internal)?;
    let response = cluster
        .client
        .send(request)
        .await
        .map_err(|error| cluster.failure(&error))?;
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
    Err(refused(cluster, namespace, status, &body))
}

/// Explains an answer other than "switching protocols".
fn refused(cluster: &Cluster, namespace: &str, code: StatusCode, body: &[u8]) -> Failure {
    let status = serde_json::from_slice::<Status>(body).ok();
    match (code.as_u16(), status) {
        (401 | 403, Some(status)) => cluster.status_failure(&status.with_code(code.as_u16())),
        // Without a Status it is not the API server that does not know the path.
        (404, Some(_)) => cluster.not_installed(),
        (503, Some(status)) if status.message.contains("no endpoints") => Failure::new(
            Reason::ManagerUnreachable,
            format!("the traffic manager in namespace {namespace} has no ready pod"),
            format!(
                "look at it with `kubectl -n {namespace} get pods` and `kubectl -n {namespace} describe deployment {}`",
                names::MANAGER_SERVICE
            ),
        ),
        (_, Some(status)) => no_answer(namespace, &status.message),
        (_, None) => {
            let text = String::from_utf8_lossy(body);
            let first = text.lines().next().unwrap_or_default().trim();
            no_answer(namespace, format!("{code} {first}").trim_end())
        }
    }
}

fn no_answer(namespace: &str, detail: &str) -> Failure {
    Failure::new(
        Reason::ManagerUnreachable,
        format!("the traffic manager in namespace {namespace} does not answer: {detail}"),
        format!(
            "look at it with `kubectl -n {namespace} get pods` and `kubectl -n {namespace} logs deployment/{}`",
            names::MANAGER_SERVICE
        ),
    )
}

/// Speaks HTTP/2 over one stream. When that breaks the channel is dead: a new
/// connection must be authenticated first.
async fn channel(upgraded: Upgraded) -> Result<Channel, Failure> {
    let stream = Mutex::new(Some(upgraded));
    let connector = tower::service_fn(move |_: Uri| {
        let stream = stream.lock().ok().and_then(|mut stream| stream.take());
        std::future::ready(stream.ok_or(Broken))
    });
    grpc::client_endpoint(names::MANAGER_SERVICE)
        .connect_with_connector(connector)
        .await
        .map_err(Failure::internal)
}

/// The one stream of a channel has been used up.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the traffic manager is broken")]
struct Broken;
