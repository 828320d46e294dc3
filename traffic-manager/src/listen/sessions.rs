//! The port of the sessions: HTTP/1.1 over TLS, upgraded to gRPC.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioIo, TokioTimer};
use kvpn_proto::names;
use kvpn_proto::v1::traffic_manager_server::TrafficManagerServer;
use kvpn_tunnel::grpc::{self, TunnelServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::io::{Tag, Tagged};
use super::{QUEUED_CONNECTIONS, accept, handshake};
use crate::admission::{Admission, Admitted};
use crate::api::SessionApi;
use crate::hub::{Connection, unauthenticated};
use crate::metrics::Endpoint;
use crate::webhook::Webhook;

/// How long a request's head may take, and how long a connection may idle.
const REQUEST_HEAD: Duration = Duration::from_secs(30);

/// The longest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;

/// How many connections may be open at once that are not authenticated, in all
/// and from one address. The API server passes many sessions on from its own.
const UNKNOWN: (usize, usize) = (512, 128);

/// How long a tunnel may take to authenticate.
const AUTHENTICATE: Duration = Duration::from_secs(30);

type Tunnel = Tagged<TokioIo<Upgraded>, Arc<Connection>>;
type Tunnels = mpsc::Sender<io::Result<Tunnel>>;

impl Tag for Arc<Connection> {
    fn is_known(&self) -> bool {
        Connection::is_known(self)
    }
}

/// Serves sessions until the shutdown.
pub(crate) async fn serve_sessions(
    listener: TcpListener,
    tls: TlsAcceptor,
    api: SessionApi,
    metrics: Option<Arc<Endpoint>>,
    webhook: Option<Arc<Webhook>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (tunnels, incoming) = mpsc::channel(QUEUED_CONNECTIONS);
    let admission = Admission::new(UNKNOWN.0, UNKNOWN.1);
    let accepting = accept(listener, shutdown.clone(), move |socket, peer| {
        let Some(place) = admission.admit(peer.ip()).map(Arc::new) else {
            debug!(%peer, "too many connections that are not authenticated");
            return;
        };
        let (tls, tunnels) = (tls.clone(), tunnels.clone());
        let (metrics, webhook) = (metrics.clone(), webhook.clone());
        tokio::spawn(async move {
            let Some(stream) = handshake(&tls, socket, peer).await else {
                return;
            };
            let service = service_fn(|request| {
                let (tunnels, place) = (tunnels.clone(), Arc::clone(&place));
                let (metrics, webhook) = (metrics.clone(), webhook.clone());
                async move {
                    Ok::<_, Infallible>(match (metrics, webhook) {
                        (Some(metrics), _) if is_scrape(&request) => {
                            metrics.answer(request.headers()).await
                        }
                        (_, Some(webhook)) if is_admission(&request, &webhook) => {
                            webhook.answer(request).await
                        }
                        _ => answer(request, tunnels, place),
                    })
                }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_HEAD)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
            if let Err(error) = served {
                debug!(%peer, %error, "HTTP connection ended");
            }
        });
    });
    let serving = grpc::server()
        .add_service(TunnelServer::new(api.clone()))
        .add_service(TrafficManagerServer::new(api))
        .serve_with_incoming_shutdown(
            ReceiverStream::new(incoming),
            shutdown.clone().cancelled_owned(),
        );
    let ((), served) = tokio::join!(accepting, serving);
    served.context("serve sessions")
}

/// Answers a request of HTTP/1.1.
fn answer(
    request: Request<Incoming>,
    tunnels: Tunnels,
    place: Arc<Admitted>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
    }
    match request.uri().path() {
        names::HEALTH_PATH => text(StatusCode::OK, "ok"),
        names::TUNNEL_PATH if wants_upgrade(request.headers()) => upgrade(request, tunnels, place),
        names::TUNNEL_PATH => {
            let mut response = text(
                StatusCode::UPGRADE_REQUIRED,
                "this path is for kvpn sessions\n",
            );
            set_upgrade(response.headers_mut());
            response
        }
        _ => text(StatusCode::NOT_FOUND, "no such path\n"),
    }
}

fn is_scrape(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET && request.uri().path() == names::METRICS_PATH
}

/// Whether somebody asks who knows the path.
fn is_admission(request: &Request<Incoming>, webhook: &Webhook) -> bool {
    request.method() == Method::POST && webhook.has_path(request.uri().path())
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|protocol| {
            protocol
                .trim()
                .eq_ignore_ascii_case(names::UPGRADE_PROTOCOL)
        })
}

fn upgrade(
    request: Request<Incoming>,
    tunnels: Tunnels,
    place: Arc<Admitted>,
) -> Response<Full<Bytes>> {
    let connection = match Connection::new(place) {
        Ok(connection) => Arc::new(connection),
        Err(failure) => {
            error!(%failure, "no randomness for a nonce");
            return text(StatusCode::INTERNAL_SERVER_ERROR, "no randomness\n");
        }
    };
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let cut = Arc::clone(&connection);
                let cut = async move { cut.wait_cut().await };
                let tunnel = Tagged::new(TokioIo::new(upgraded), Arc::clone(&connection), cut);
                let watched = Arc::downgrade(&connection);
                drop(connection);
                // Fails only in a shutdown.
                let _ = tunnels.send(Ok(tunnel)).await;
                tokio::time::sleep(AUTHENTICATE).await;
                if let Some(connection) = watched.upgrade()
                    && !connection.is_known()
                {
                    connection.close(unauthenticated(
                        "the connection did not authenticate in time",
                    ));
                }
            }
            Err(error) => debug!(%error, "the upgrade did not come about"),
        }
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    set_upgrade(response.headers_mut());
    response
}

fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(
        header::CONNECTION,
        header::HeaderValue::from_static("Upgrade"),
    );
    headers.insert(
        header::UPGRADE,
        header::HeaderValue::from_static(names::UPGRADE_PROTOCOL),
    );
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_is_recognised_among_others_in_any_case() {
        let wants = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::UPGRADE, value.parse().unwrap());
            }
            wants_upgrade(&headers)
        };
        assert!(wants(&["kvpn"]));
        assert!(wants(&["websocket, KVPN"]));
        assert!(wants(&["websocket", "kvpn"]));
        assert!(!wants(&["websocket"]));
        assert!(!wants(&[]));
    }
}
