//! The way to the API server.

mod api_stream;
mod aside;
mod explain;
mod http_client;

use std::time::Duration;

use http::Uri;
use kube::core::Status;
use kube::{Client, Config};
use kvpn_proto::{Failure, Reason};
use tokio::time::timeout;

use super::proxy::Proxy;
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
    proxy: Option<Proxy>,
    manager_namespace: String,
}

impl Cluster {
    /// Builds the client; exec plugins run here for the first time.
    pub(crate) async fn new(
        config: Config,
        proxy: Option<Proxy>,
        manager_namespace: &str,
    ) -> Result<Self, Failure> {
        let uri = config.cluster_url.clone();
        let server = uri.to_string().trim_end_matches('/').to_owned();
        // Exec plugins block, and may take as long as a login takes.
        let building = {
            let proxy = proxy.clone();
            tokio::task::spawn_blocking(move || http_client::build(config, proxy.as_ref()))
        };
        let client = timeout(LOGIN_DEADLINE, building)
            .await
            .map_err(|_| login_too_long())?
            .map_err(Failure::internal)?
            .map_err(|error| explain(&error, &server))?;
        Ok(Self {
            client,
            server,
            uri,
            proxy,
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
            Err(_) => Err(self.told_with_proxy(unreachable(&self.server, "no answer in time"))),
        }
    }

    /// Explains an error of the API server.
    pub(crate) fn failure(&self, error: &kube::Error) -> Failure {
        self.told_with_proxy(explain(error, &self.server))
    }

    /// A server that cannot be reached may be the proxy's fault.
    fn told_with_proxy(&self, mut failure: Failure) -> Failure {
        if let (Some(proxy), Reason::ApiServerUnreachable) = (&self.proxy, failure.reason) {
            failure.message += &format!(", through the proxy {}", proxy.uri);
            failure.next_step = format!(
                "check the proxy that the kubeconfig's proxy-url or HTTPS_PROXY names, and {}",
                failure.next_step
            );
        }
        failure
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

    /// The addresses of the API server, or of the proxy to it; they must not be
    /// routed into the tunnel that runs through it.
    pub(crate) async fn server_addresses(&self) -> Vec<std::net::IpAddr> {
        let next = self.proxy.as_ref().map_or(&self.uri, |proxy| &proxy.uri);
        let host = next.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = next.port_u16().unwrap_or(443);
        let lookup = tokio::net::lookup_host((host, port));
        match timeout(CONNECT_DEADLINE, lookup).await {
            Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }
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
