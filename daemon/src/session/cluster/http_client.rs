//! The HTTP client of the API server, directly or through the proxy that the
//! kubeconfig or the environment names.
//!
//! kube's own stack would do, but leaves Nagle's algorithm on, which holds back
//! small frames of the tunnel, and retries what should fail at once.

use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tokio::net::TcpStream;
use tower::util::MapResponse;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use super::CONNECT_DEADLINE;
use super::api_stream::ApiStream;
use super::aside::Aside;
use crate::session::proxy::{Protocol, Proxy};

/// Opens TCP connections; the tunnel's come out of it too.
type Tcp = MapResponse<HttpConnector, fn(TokioIo<TcpStream>) -> TokioIo<ApiStream>>;

/// Builds the client; exec plugins run here for the first time.
pub(super) fn build(config: Config, proxy: Option<&Proxy>) -> kube::Result<Client> {
    let Some(proxy) = proxy else {
        return over(tcp(), config);
    };
    match proxy.protocol {
        Protocol::Socks5 => {
            let connector = SocksV5::new(proxy.uri.clone(), tcp());
            match proxy.intercept.raw_auth() {
                Some((user, password)) => {
                    over(connector.with_auth(user.into(), password.into()), config)
                }
                None => over(connector, config),
            }
        }
        Protocol::Http => over(tunnel(proxy, tcp()), config),
        Protocol::Https => {
            // The name to check is the API server's alone.
            let mut to_proxy = config.clone();
            to_proxy.tls_server_name = None;
            let tls = to_proxy.rustls_https_connector_with_connector(tcp())?;
            over(tunnel(proxy, tls), config)
        }
    }
}

fn tunnel<C>(proxy: &Proxy, connector: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri.clone(), connector);
    match proxy.intercept.basic_auth() {
        Some(auth) => tunnel.with_auth(auth.clone()),
        None => tunnel,
    }
}

fn tcp() -> Tcp {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_DEADLINE));
    // A watch may be silent for minutes: only the kernel notices a dead path.
    connector.set_keepalive(Some(Duration::from_secs(15)));
    connector.set_keepalive_interval(Some(Duration::from_secs(5)));
    connector.set_keepalive_retries(Some(3));
    connector.map_response(|stream| TokioIo::new(ApiStream::new(stream.into_inner())))
}

/// The client over a connector that leads to the API server.
fn over<C>(connector: C, config: Config) -> kube::Result<Client>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: std::error::Error + Send + Sync + 'static,
{
    let https = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(Aside::new(service), config.default_namespace))
}
