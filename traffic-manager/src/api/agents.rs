//! The service that agents call from their pods.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use futures::stream::{BoxStream, StreamExt};
use http::Extensions;
use kvpn_proto::flow::{Carried, DialError, DialFailure, OpenTarget};
use kvpn_proto::v1::agent_hub_server::AgentHub;
use kvpn_proto::v1::watch_claims_request::{Event, Hello};
use kvpn_proto::{Failure, Reason, v1};
use kvpn_tunnel::grpc::TunnelHandler;
use kvpn_tunnel::relay::FrameStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::tokens::Tokens;
use super::{ANSWER, FIRST_MESSAGE, join, opening, readers, refuse, refuse_answer};
use crate::hub::{Hub, OpenLink, Reporting};
use crate::metrics::{FlowStats, Origin};
use crate::state::{AgentRejected, Caller, ClaimRoute, ClaimSet};

/// Where calls come from that come over one connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer(Arc<PeerState>);

#[derive(Debug)]
struct PeerState {
    ip: IpAddr,
    /// An agent was brought to that address.
    is_expected: bool,
    /// What a token has shown.
    pod: OnceLock<Caller>,
}

impl Peer {
    /// The address of the connection, and whether an agent was brought there.
    pub(crate) fn new(ip: IpAddr, is_expected: bool) -> Self {
        Self(Arc::new(PeerState {
            ip,
            is_expected,
            pod: OnceLock::new(),
        }))
    }

    /// Whether it has shown who it is.
    pub(crate) fn is_known(&self) -> bool {
        self.0.is_expected || self.0.pod.get().is_some()
    }

    fn caller(&self) -> Caller {
        let by_address = || Caller::Address(self.0.ip);
        self.0.pod.get().cloned().unwrap_or_else(by_address)
    }
}

/// The service that agents call.
#[derive(Clone)]
pub(crate) struct AgentApi {
    pub(crate) hub: Arc<Hub>,
    pub(crate) flows: Arc<FlowStats>,
    pub(crate) tokens: Arc<Tokens>,
}

#[tonic::async_trait]
impl AgentHub for AgentApi {
    type WatchClaimsStream = ReceiverStream<Result<v1::WatchClaimsResponse, Status>>;

    async fn watch_claims(
        &self,
        request: Request<Streaming<v1::WatchClaimsRequest>>,
    ) -> Result<Response<Self::WatchClaimsStream>, Status> {
        let peer = peer(request.extensions())?;
        let mut events = request.into_inner();
        let hello = hello(&mut events).await?;
        if !hello.token.is_empty() {
            match self.tokens.pod_of(&hello.token).await {
                // The first one counts.
                Ok(pod) => drop(peer.0.pod.set(pod)),
                // Its address says so, too.
                Err(failure)
                    if failure.reason == Reason::ApiServerUnreachable && peer.is_known() =>
                {
                    debug!(%failure, "an agent is known by its address");
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        let caller = peer.caller();
        let (claims, open) = self
            .hub
            .open_link(&caller, &hello.container)
            .map_err(|rejected| {
                warn!(%caller, container = hello.container, %rejected, "agent rejected");
                Status::from(rejection(&rejected))
            })?;
        let (version, container) = (hello.version, hello.container);
        info!(pod = %open.pod(), container, version, "agent connected");
        let (responses, response) = mpsc::channel(4);
        tokio::spawn(async move {
            let end = serve_link(events, claims, &responses, &open).await;
            info!(pod = %open.pod(), container, "agent disconnected");
            if let Err(status) = end {
                // Nobody may be there to read it.
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(response)))
    }

    type ReportRequestsStream = ReceiverStream<Result<v1::ReportRequestsResponse, Status>>;

    async fn report_requests(
        &self,
        request: Request<Streaming<v1::ReportRequestsRequest>>,
    ) -> Result<Response<Self::ReportRequestsStream>, Status> {
        let caller = peer(request.extensions())?.caller();
        let reporting = self.hub.open_report(&caller).ok_or_else(|| {
            Status::failed_precondition("only an agent that watches its claims reports")
        })?;
        let reports = request.into_inner();
        let (responses, response) = mpsc::channel(1);
        tokio::spawn(async move {
            let pod = reporting.pod().clone();
            if let Err(status) = take_reports(reports, reporting, &responses).await {
                debug!(%pod, %status, "an agent reports no more");
            }
        });
        Ok(Response::new(ReceiverStream::new(response)))
    }

    type WatchPodDialsStream = BoxStream<'static, Result<v1::WatchPodDialsResponse, Status>>;

    async fn watch_pod_dials(
        &self,
        request: Request<v1::WatchPodDialsRequest>,
    ) -> Result<Response<Self::WatchPodDialsStream>, Status> {
        let caller = peer(request.extensions())?.caller();
        let dials = self.hub.open_pod_dials(&caller).map_err(|why| {
            debug!(%caller, %why, "somebody is not asked to dial in a pod");
            Status::failed_precondition(why.to_string())
        })?;
        Ok(Response::new(ReceiverStream::new(dials).map(Ok).boxed()))
    }

    type WatchReadsStream = BoxStream<'static, Result<v1::WatchReadsResponse, Status>>;

    async fn watch_reads(
        &self,
        request: Request<Streaming<v1::WatchReadsRequest>>,
    ) -> Result<Response<Self::WatchReadsStream>, Status> {
        let caller = peer(request.extensions())?.caller();
        let mut events = request.into_inner();
        let hello = readers::hello(&mut events).await?;
        let (version, container) = (hello.version.clone(), hello.container.clone());
        let unreadable = hello.unreadable.clone();
        let (told, open) = self.hub.open_reader(&caller, hello).map_err(|rejected| {
            warn!(%caller, container, %rejected, "reader rejected");
            Status::from(rejection(&rejected))
        })?;
        info!(pod = %open.pod(), container, version, unreadable, "reader connected");
        tokio::spawn(async move {
            let end = readers::take_answers(&mut events, &open).await;
            info!(pod = %open.pod(), container, ?end, "reader disconnected");
        });
        Ok(Response::new(ReceiverStream::new(told).map(Ok).boxed()))
    }
}

/// Takes an agent's reports, and tells it who reads them, until either ends.
async fn take_reports(
    mut reports: Streaming<v1::ReportRequestsRequest>,
    mut reporting: Reporting,
    responses: &mpsc::Sender<Result<v1::ReportRequestsResponse, Status>>,
) -> Result<(), Status> {
    loop {
        tokio::select! {
            () = responses.closed() => return Ok(()),
            readers = reporting.readers() => {
                if responses.send(Ok(readers)).await.is_err() {
                    return Ok(());
                }
            }
            report = reports.message() => match report? {
                Some(report) => reporting.report(report),
                None => return Ok(()),
            },
        }
    }
}

impl TunnelHandler for AgentApi {
    fn carry(&self, extensions: &Extensions, frames: FrameStream) -> Result<(), Status> {
        let caller = peer(extensions)?.caller();
        let api = self.clone();
        tokio::spawn(async move { api.serve_flow(&caller, frames).await });
        Ok(())
    }
}

impl AgentApi {
    async fn serve_flow(&self, caller: &Caller, mut frames: FrameStream) {
        match opening(&mut frames.receiver).await {
            Ok(OpenTarget::Claimed { claim_id, source }) => {
                let route = self.hub.route(caller, &claim_id);
                let carried = route.as_ref().map(|route| route.protocol.into());
                let carried = carried.unwrap_or(Carried::Tcp);
                let (_open, frames) = self.flows.begin(carried, Origin::Pod, frames);
                join(frames, self.reach_session(route, source)).await;
            }
            // It counts as the flow of who asked for it.
            Ok(OpenTarget::Dial(id)) => {
                if let Err(frames) = self.hub.answer_in_pod(caller, &id, frames) {
                    refuse_answer(frames).await;
                }
            }
            Ok(
                OpenTarget::Destination { .. }
                | OpenTarget::Echo(_)
                | OpenTarget::InPod { .. }
                | OpenTarget::Files { .. },
            ) => {
                let detail = "agents open claimed connections and answer dials only";
                let failure = DialFailure::new(DialError::Prohibited, detail);
                refuse(&frames.sender, failure).await;
            }
            Err(failure) => refuse(&frames.sender, failure).await,
        }
    }

    /// Hands an intercepted connection, or a client's datagrams, to the session that holds
    /// the claim.
    async fn reach_session(
        &self,
        route: Option<ClaimRoute>,
        source: SocketAddr,
    ) -> Result<FrameStream, DialFailure> {
        let no_claim = || DialFailure::new(DialError::TunnelLost, "this claim is not on this pod");
        let route = route.ok_or_else(no_claim)?;
        self.hub.dial(route, source)?.answered(ANSWER).await
    }
}

/// Carries claims to the agent and its answers back, until either ends.
async fn serve_link(
    mut events: Streaming<v1::WatchClaimsRequest>,
    mut claims: watch::Receiver<Option<ClaimSet>>,
    responses: &mpsc::Sender<Result<v1::WatchClaimsResponse, Status>>,
    open: &OpenLink,
) -> Result<(), Status> {
    loop {
        tokio::select! {
            () = responses.closed() => return Ok(()),
            changed = claims.changed() => {
                if changed.is_err() {
                    return Err(Status::aborted("the pod is gone, or its agent has called again"));
                }
                let set = claims.borrow_and_update().clone();
                if let Some(set) = set {
                    debug!(pod = %open.pod(), ?set, "claims sent");
                    if responses.send(Ok(set.into())).await.is_err() {
                        return Ok(());
                    }
                }
            }
            event = events.message() => match event?.map(|event| event.event) {
                None => return Ok(()),
                Some(Some(Event::Applied(applied))) => {
                    let not_stopped = applied.not_stopped.into_iter();
                    let not_stopped = not_stopped.map(|it| (it.container, it.detail)).collect();
                    let without_tls = applied.without_tls.into_iter().collect();
                    open.applied(applied.generation, not_stopped, without_tls);
                }
                Some(Some(Event::Failed(failed))) => {
                    warn!(pod = %open.pod(), failed.detail, "agent cannot apply claims");
                    open.apply_failed(failed.generation, failed.detail);
                }
                Some(Some(Event::Hello(_)) | None) => {
                    return Err(Status::invalid_argument("an answer to claims was expected"));
                }
            },
        }
    }
}

async fn hello(events: &mut Streaming<v1::WatchClaimsRequest>) -> Result<Hello, Status> {
    let first = timeout(FIRST_MESSAGE, events.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no `hello` came in time"))??;
    match first.and_then(|first| first.event) {
        Some(Event::Hello(hello)) => Ok(hello),
        Some(Event::Applied(_) | Event::Failed(_)) | None => {
            Err(Status::invalid_argument("the first message is not `hello`"))
        }
    }
}

fn peer(extensions: &Extensions) -> Result<Peer, Status> {
    extensions
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| Status::internal("the call came over no connection"))
}

fn rejection(rejected: &AgentRejected) -> Failure {
    let next_step = match rejected {
        AgentRejected::NoPod(_) => {
            "agents must reach the traffic manager from their pod's own address, without NAT"
        }
        AgentRejected::NoContainer(..) => "only agents that the traffic manager added may call it",
        AgentRejected::Taken(_) => "end one of the agents",
        AgentRejected::Read(..) => "end one of the readers",
    };
    Failure::new(Reason::Forbidden, rejected.to_string(), next_step)
}
