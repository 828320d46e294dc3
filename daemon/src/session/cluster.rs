//! The way to the API server.

mod explain;

use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::core::Status;
use kube::{Client, Config};
use kvpn_proto::{Failure, Reason};
use tokio::time::timeout;
use tower::{BoxError, ServiceBuilder};

use explain::{explain, explain_status, unreachable};

/// How long the API server may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long the API server may take to answer a request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// How long a credential plugin may take, which may wait for a person.
const LOGIN_DEADLINE: Duration = Duration::from_secs(120);

/// A client of the API server that knows how to explain its errors.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// URL of the API server, for people.
    pub(crate) server: String,
    uri: Uri,
    manager_namespace: String,
}

impl Cluster {
    /// Builds the client; exec plugins run here for the first time.
    pub(crate) async fn new(config: Config, manager_namespace: &str) -> Result<Self, Failure> {
        let uri = config.cluster_url.clone();
        let server = uri.to_string().trim_end_matches('/').to_owned();
        // Exec plugins block, and may take as long as a login takes.
        let building = tokio::task::spawn_blocking(move || build(config));
        let client = timeout(LOGIN_DEADLINE, building)
            .await
            .map_err(|_| login_too_long())?
            .map_err(Failure::internal)?
            .map_err(|error| explain(&error, &server))?;
        Ok(Self {
            client,
            server,
            uri,
            manager_namespace: manager_namespace.to_owned(),
        })
    }

    /// Waits for the API server's answer, for a bounded time, and explains its
    /// errors.
    pub(crate) async fn call<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(REQUEST_DEADLINE, request).await {
            Ok(answer) => answer.map_err(|error| self.failure(&error)),
            Err(_) => Err(unreachable(&self.server, "no answer in time")),
        }
    }

    /// Explains an error of the API server.
    pub(crate) fn failure(&self, error: &kube::Error) -> Failure {
        explain(error, &self.server)
    }

    /// Explains a status that the API server answered.
    pub(crate) fn status_failure(&self, status: &Status) -> Failure {
        explain_status(status, &self.server)
    }

    /// Turns a failure into "not installed" where the cluster has no kvpn. RBAC
    /// says "forbidden" before "not found", so that has to be asked for.
    pub(crate) async fn blame_missing_chart(&self, failure: Failure) -> Failure {
        let suspicious = matches!(
            failure.reason,
            Reason::Forbidden | Reason::ChartNotInstalled
        );
        if !suspicious {
            return failure;
        }
        let groups = self.call(self.client.list_api_groups()).await;
        let missing =
            groups.is_ok_and(|list| !list.groups.iter().any(|group| group.name == "kvpn.dev"));
        if missing || failure.reason == Reason::ChartNotInstalled {
            self.not_installed()
        } else {
            failure
        }
    }

    /// The failure that says how to install the chart.
    pub(crate) fn not_installed(&self) -> Failure {
        let namespace = &self.manager_namespace;
        Failure::new(
            Reason::ChartNotInstalled,
            format!(
                "kvpn is not installed in namespace {namespace} of the cluster at {}",
                self.server
            ),
            format!(
                "install it with `helm install kvpn charts/kvpn -n {namespace} --create-namespace`, \
                 or name its namespace with --manager-namespace"
            ),
        )
    }

    /// The addresses of the API server; they must not be routed into the tunnel
    /// that runs through it.
    pub(crate) async fn server_addresses(&self) -> Vec<std::net::IpAddr> {
        let host = self.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = self.uri.port_u16().unwrap_or(443);
        let lookup = tokio::net::lookup_host((host, port));
        match timeout(CONNECT_DEADLINE, lookup).await {
            Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }
}

/// kube's own stack leaves Nagle's algorithm on, which would hold back small
/// frames of the tunnel, and retries what should fail at once.
fn build(mut config: Config) -> kube::Result<Client> {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_DEADLINE);
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_DEADLINE));
    // A watch may be silent for minutes: only the kernel notices a dead path.
    connector.set_keepalive(Some(Duration::from_secs(15)));
    connector.set_keepalive_interval(Some(Duration::from_secs(5)));
    connector.set_keepalive_retries(Some(3));
    let https = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

fn login_too_long() -> Failure {
    Failure::new(
        Reason::Unauthenticated,
        format!(
            "the kubeconfig's credential plugin did not end within {} s",
            LOGIN_DEADLINE.as_secs()
        ),
        "log in so that `kubectl auth whoami` works without a question, then retry",
    )
}
