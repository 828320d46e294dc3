//! What the command line asks of the session, over its unix socket.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::Stream;
use kvpn_proto::crd::Verb;
use kvpn_proto::filter::{Filter, HttpFilter};
use kvpn_proto::v1::session_server::Session as SessionService;
use kvpn_proto::{Failure, Reason, v1, version};
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};
use tracing::warn;

use super::cluster::Cluster;
use super::diagnose::diagnose;
use super::engagements::{Engagements, Intercept, Mount, TlsSource, ToPod};
use super::explain;
use super::flows::Flows;
use super::judge::judge;
use super::manager::Manager;
use super::requests;
use super::vnat::Vnat;
use super::workloads::{self, RequestedPort};
use crate::datapath::Meter;
use crate::dns::explain::Explainer;
use crate::lease::network::Network;

/// How many events of an intercept may wait for its client.
const EVENTS: usize = 16;

/// Asks the session to end; answered with what it engaged, once the host is as
/// it was.
pub(crate) type QuitRequest = oneshot::Sender<Vec<v1::EngagementStatus>>;

/// The session, as far as the command line is concerned.
pub(crate) struct Api {
    pub(crate) about: About,
    pub(crate) cluster: Cluster,
    pub(crate) manager: Manager,
    pub(crate) engagements: Engagements,
    pub(crate) meter: Meter,
    pub(crate) flows: Flows,
    pub(crate) vnat: Vnat,
    pub(crate) explainer: Explainer,
    /// What the lease has changed on the host.
    pub(crate) network: watch::Receiver<Network>,
    pub(crate) quit: mpsc::Sender<QuitRequest>,
}

/// What stays as it is for as long as the session lives.
pub(crate) struct About {
    /// The connection's.
    pub(crate) name: String,
    pub(crate) context: String,
    pub(crate) namespace: String,
    pub(crate) manager_namespace: String,
    pub(crate) user: String,
    /// Name of the Session resource.
    pub(crate) session: String,
    pub(crate) device: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) resolver: v1::Resolver,
    pub(crate) connected_at: SystemTime,
    /// What the user has said of names and subnets.
    pub(crate) options: Vec<String>,
}

impl Api {
    fn namespace<'a>(&'a self, asked: &'a str) -> &'a str {
        if asked.is_empty() {
            &self.about.namespace
        } else {
            asked
        }
    }
}

#[tonic::async_trait]
impl SessionService for Api {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let About {
            name,
            context,
            namespace,
            manager_namespace,
            user,
            session,
            device,
            addresses,
            resolver,
            connected_at,
            options,
        } = &self.about;
        let routed_subnets = self.network.borrow().subnets.clone();
        let virtual_subnets = self.vnat.mappings().into_iter();
        let link = match self.manager.client() {
            Some(_) => v1::Link::Up,
            None => v1::Link::Reconnecting,
        };
        let transport = self
            .manager
            .transport()
            .map_or(v1::Transport::Unspecified, v1::Transport::from);
        let versions = self.manager.versions();
        let info = self.manager.cluster().borrow().clone();
        let mut engagements = self.engagements.statuses();
        requests::add_counts(&self.manager, &mut engagements).await;
        let counters = self.meter.counters();
        let totals = self.flows.totals();
        let connected_at = connected_at
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Ok(Response::new(v1::StatusResponse {
            name: name.clone(),
            context: context.clone(),
            server: self.cluster.server.clone(),
            namespace: namespace.clone(),
            user: user.clone(),
            session: session.clone(),
            manager_namespace: manager_namespace.clone(),
            manager_version: versions.manager,
            chart_version: versions.chart,
            session_version: version::VERSION.to_owned(),
            link: link.into(),
            transport: transport.into(),
            device: device.clone(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            routed_subnets: routed_subnets.iter().map(ToString::to_string).collect(),
            resolver: (*resolver).into(),
            virtual_subnets: virtual_subnets.map(v1::VirtualSubnet::from).collect(),
            pod_subnets: info.pod_subnets.iter().map(ToString::to_string).collect(),
            service_subnets: info
                .service_subnets
                .iter()
                .map(ToString::to_string)
                .collect(),
            cluster_domain: info.domain,
            open_flows: counters.open_flows,
            bytes_sent: counters.bytes_to_cluster,
            bytes_received: counters.bytes_from_cluster,
            engagements,
            deleted: self.engagements.deleted(),
            connected_at: i64::try_from(connected_at).unwrap_or(i64::MAX),
            flows_total: totals.begun,
            dials_failed: totals.dials_failed,
            datagrams_dropped: counters.datagrams_dropped,
            options: options.clone(),
        }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let namespace = self.namespace(&request.get_ref().namespace);
        let (inventory, engagements) = tokio::try_join!(
            workloads::fetch(&self.cluster, namespace),
            self.engagements.of_everyone(namespace)
        )?;
        Ok(Response::new(v1::ListResponse {
            workloads: workloads::list(&inventory, &engagements),
        }))
    }

    type InterceptStream = ReceiverStream<Result<v1::InterceptResponse, Status>>;

    async fn intercept(
        &self,
        request: Request<v1::InterceptRequest>,
    ) -> Result<Response<Self::InterceptStream>, Status> {
        let mut request = request.into_inner();
        if request.target.is_empty() {
            let failure = Failure::new(
                Reason::Usage,
                "no workload was named",
                "name one, such as deploy/web",
            );
            return Err(failure.into());
        }
        request.namespace = self.namespace(&request.namespace).to_owned();
        // Nobody is told the key.
        let tls = request.tls.take();
        let asked = request.clone();
        let ports = request.ports.iter().map(RequestedPort::try_from);
        let http = request.http.map(http_filter).transpose()?;
        let verb = verb(&request.verb)?;
        let intercept = Intercept {
            verb,
            http,
            fails_closed: request.fails_closed,
            container: request.container,
            rolls_out: request.roll_out,
            to_pod: ToPod::read_all(&request.to_pod)?,
            environment: request.environment || verb == Verb::Ingest,
            mount: (request.mount.as_ref())
                .map(|mount| Mount::read(mount, verb))
                .transpose()?,
            ends_with_call: request.ends_with_call,
            namespace: request.namespace,
            ports: ports.collect::<Result<_, _>>()?,
            timeout: (request.timeout_seconds > 0)
                .then(|| Duration::from_secs(request.timeout_seconds.into())),
            target: request.target,
            tls: TlsSource::of(tls, request.tls_secret),
            asked,
        };
        let (events_tx, events_rx) = mpsc::channel(EVENTS);
        let engagements = self.engagements.clone();
        tokio::spawn(async move { engagements.intercept(intercept, events_tx).await });
        Ok(Response::new(ReceiverStream::new(events_rx)))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveResponse>, Status> {
        let request = request.into_inner();
        let engagements = self.engagements.clone();
        let namespace = self.namespace(&request.namespace).to_owned();
        // Not given up halfway, also when the client hangs up.
        let leaving = tokio::spawn(async move {
            let target = (!request.all).then_some(request.target.as_str());
            engagements.leave(&namespace, target).await
        });
        let ended = leaving.await.map_err(Failure::internal)??;
        Ok(Response::new(v1::LeaveResponse { ended }))
    }

    async fn get_environment(
        &self,
        request: Request<v1::GetEnvironmentRequest>,
    ) -> Result<Response<v1::GetEnvironmentResponse>, Status> {
        let request = request.into_inner();
        let namespace = self.namespace(&request.namespace);
        let read = self.engagements.environment(namespace, &request.name);
        Ok(Response::new(read.await?))
    }

    async fn flows(
        &self,
        request: Request<v1::FlowsRequest>,
    ) -> Result<Response<v1::FlowsResponse>, Status> {
        Ok(Response::new(self.flows.look(request.get_ref()).await))
    }

    async fn diagnose(
        &self,
        _: Request<v1::DiagnoseRequest>,
    ) -> Result<Response<v1::DiagnoseResponse>, Status> {
        let checks = diagnose(&self.manager).await;
        let checks = checks.iter().map(serde_json::to_string);
        let checks: Result<_, _> = checks.collect();
        Ok(Response::new(v1::DiagnoseResponse {
            checks: checks.map_err(Failure::internal)?,
        }))
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let request = request.into_inner();
        let mut explained = match request.name.as_str() {
            "" => v1::ExplainResponse::default(),
            name => {
                let search_domains = self.network.borrow().search_domains.clone();
                self.explainer.explain(name, &search_domains).await
            }
        };
        explained.addresses = explain::addresses(&self.flows, &self.vnat, &request.addresses).await;
        Ok(Response::new(explained))
    }

    type LogStream = ReceiverStream<Result<v1::LogResponse, Status>>;

    async fn log(
        &self,
        request: Request<v1::LogRequest>,
    ) -> Result<Response<Self::LogStream>, Status> {
        let request = request.into_inner();
        let namespace = self.namespace(&request.namespace).to_owned();
        let name = self.engagements.only(&namespace, &request.target)?;
        let (lines_tx, lines_rx) = mpsc::channel(EVENTS);
        let manager = self.manager.clone();
        tokio::spawn(async move {
            requests::follow(&manager, namespace, name, request.watch, lines_tx).await;
        });
        Ok(Response::new(ReceiverStream::new(lines_rx)))
    }

    async fn judge(
        &self,
        request: Request<v1::JudgeRequest>,
    ) -> Result<Response<v1::JudgeResponse>, Status> {
        let request = request.into_inner();
        let namespace = self.namespace(&request.namespace);
        let (inventory, engagements) = tokio::try_join!(
            workloads::fetch(&self.cluster, namespace),
            self.engagements.of_everyone(namespace)
        )?;
        Ok(Response::new(judge(&inventory, &engagements, &request)?))
    }

    async fn quit(
        &self,
        _: Request<v1::QuitRequest>,
    ) -> Result<Response<v1::QuitResponse>, Status> {
        let ending = || Status::unavailable("the session is ending already");
        let (ended_tx, ended_rx) = oneshot::channel();
        self.quit.send(ended_tx).await.map_err(|_| ending())?;
        let ended = ended_rx.await.map_err(|_| ending())?;
        Ok(Response::new(v1::QuitResponse { ended }))
    }
}

/// Connections of this user and of root; others are hung up on.
pub(crate) fn connections(
    listener: UnixListener,
) -> impl Stream<Item = std::io::Result<UnixStream>> {
    UnixListenerStream::new(listener).filter(|connection| match connection {
        Ok(stream) => is_allowed(stream),
        Err(_) => true,
    })
}

/// What a word of the command line means.
fn verb(word: &str) -> Result<Verb, Failure> {
    if word.is_empty() {
        return Ok(Verb::Intercept);
    }
    Verb::of(word).ok_or_else(|| {
        Failure::new(
            Reason::VersionMismatch,
            format!("the running session cannot {word}"),
            "run `kvpn quit`, then `kvpn connect`",
        )
    })
}

fn is_allowed(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == Uid::current().as_raw() => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), "Another user was turned away");
            false
        }
        Err(error) => {
            warn!(%error, "A peer that cannot be identified was turned away");
            false
        }
    }
}
/// A filter that can be used.
fn http_filter(message: v1::HttpFilter) -> Result<HttpFilter, Failure> {
    let usage = |why: String| {
        Failure::new(
            Reason::Usage,
            format!("no request can be chosen by this: {why}"),
            "see `kvpn intercept --help` for how to write what is to fit",
        )
    };
    let filter = HttpFilter::try_from(message).map_err(|error| usage(error.to_string()))?;
    Filter::try_from(&filter).map_err(|error| usage(error.to_string()))?;
    Ok(filter)
}
