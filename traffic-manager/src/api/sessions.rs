//! The service that sessions call through the API server.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use http::Extensions;
use kube::Api;
use kvpn_proto::crd::Session;
use kvpn_proto::flow::{self, Carried, DialError, DialFailure, OpenTarget};
use kvpn_proto::identity::decode_public_key;
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::v1::traffic_manager_server::TrafficManager;
use kvpn_proto::{Failure, Reason, v1, version};
use kvpn_tunnel::dns::Forwarder;
use kvpn_tunnel::grpc::TunnelHandler;
use kvpn_tunnel::relay::FrameStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{ANSWER, join, opening, refuse, refuse_answer};
use crate::cluster::{ClusterView, Names};
use crate::dial::Dialer;
use crate::hub::{Connection, Hub, Identity, revoked, unauthenticated};
use crate::metrics::{FlowStats, Origin};
use crate::state::{Change, Deletion, Event, Key, SessionView};

/// How long the API server may take to show a Session.
const GET_SESSION: Duration = Duration::from_secs(5);

/// How many addresses are described at once.
const MAX_DESCRIBED: usize = 1_024;

/// The service that sessions call.
#[derive(Clone)]
pub(crate) struct SessionApi {
    pub(crate) hub: Arc<Hub>,
    /// The Sessions in the traffic manager's namespace.
    pub(crate) sessions: Api<Session>,
    pub(crate) chart_version: String,
    pub(crate) cluster: watch::Receiver<Option<ClusterView>>,
    pub(crate) names: Arc<Names>,
    pub(crate) dns: Arc<Forwarder>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) flows: Arc<FlowStats>,
}

#[tonic::async_trait]
impl TrafficManager for SessionApi {
    async fn challenge(
        &self,
        request: Request<v1::ChallengeRequest>,
    ) -> Result<Response<v1::ChallengeResponse>, Status> {
        let nonce = connection(request.extensions())?.nonce().to_vec().into();
        Ok(Response::new(v1::ChallengeResponse { nonce }))
    }

    async fn authenticate(
        &self,
        request: Request<v1::AuthenticateRequest>,
    ) -> Result<Response<v1::AuthenticateResponse>, Status> {
        let connection = connection(request.extensions())?;
        connection.try_once()?;
        let identity = self.verify(&connection, request.into_inner()).await;
        // It may have been deleted while it was verified.
        let identity = identity.and_then(|identity| {
            if self.hub.register(&connection, &identity) {
                return Ok(identity);
            }
            let deletion = self.hub.deletion(&identity.uid, &identity.user);
            Err(revoked(deletion.as_ref()))
        });
        match identity {
            Ok(identity) => {
                info!(
                    session = identity.session,
                    user = identity.user,
                    "session authenticated"
                );
                connection.identify(identity);
                Ok(Response::new(v1::AuthenticateResponse {
                    version: version::VERSION.to_owned(),
                    chart_version: self.chart_version.clone(),
                }))
            }
            Err(failure) => {
                warn!(%failure, "a session failed to authenticate");
                connection.close(failure.clone());
                Err(failure.into())
            }
        }
    }

    type WatchClusterStream = BoxStream<'static, Result<v1::WatchClusterResponse, Status>>;

    async fn watch_cluster(
        &self,
        request: Request<v1::WatchClusterRequest>,
    ) -> Result<Response<Self::WatchClusterStream>, Status> {
        let (connection, _) = identified(request.extensions())?;
        let ping_supported = self.dialer.can_ping();
        let namespace = request.into_inner().namespace;
        let mut told = None;
        let views = WatchStream::new(self.cluster.clone()).filter_map(move |view| {
            let message = view.map(|view| view.message(&namespace, ping_supported));
            // Others are told of other Services.
            let is_new = message.is_some() && message != told;
            told.clone_from(&message);
            std::future::ready(message.filter(|_| is_new).map(Ok))
        });
        Ok(Response::new(until_closed(views, connection)))
    }

    type WatchDialsStream = BoxStream<'static, Result<v1::WatchDialsResponse, Status>>;

    async fn watch_dials(
        &self,
        request: Request<v1::WatchDialsRequest>,
    ) -> Result<Response<Self::WatchDialsStream>, Status> {
        let (connection, identity) = identified(request.extensions())?;
        let (dials, open) = self.hub.open_dials(&identity.uid);
        info!(session = identity.session, "session present");
        let gone = Gone(identity.session);
        let dials = ReceiverStream::new(dials).map(move |dial| {
            // They live as long as the stream.
            let _ = (&open, &gone);
            Ok(dial)
        });
        Ok(Response::new(until_closed(dials, connection)))
    }

    async fn lookup(
        &self,
        request: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        identified(request.extensions())?;
        let query = request.into_inner().query;
        let answer = self.dns.forward(&query).await.map_err(|error| {
            Status::from(Failure::new(
                Reason::TimedOut,
                format!("the cluster's DNS gives no answer: {error}"),
                "check the pods of the cluster's DNS in namespace kube-system",
            ))
        })?;
        let answer = answer.into();
        Ok(Response::new(v1::LookupResponse { answer }))
    }

    type WatchNamesStream = BoxStream<'static, Result<v1::WatchNamesResponse, Status>>;

    async fn watch_names(
        &self,
        request: Request<v1::WatchNamesRequest>,
    ) -> Result<Response<Self::WatchNamesStream>, Status> {
        let (connection, _) = identified(request.extensions())?;
        let changes = self.names.watch().map(Ok);
        Ok(Response::new(until_closed(changes, connection)))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::DescribeResponse>, Status> {
        identified(request.extensions())?;
        let addresses = request.into_inner().addresses;
        if addresses.len() > MAX_DESCRIBED {
            return Err(Status::invalid_argument("too many addresses at once"));
        }
        let addresses = addresses.iter().map(|octets| flow::ip(octets));
        let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
        let pods = self.hub.pods_at(&addresses).into_iter();
        let pods = pods.map(|(address, pod)| v1::PodAddress {
            address: flow::octets(address),
            namespace: pod.namespace,
            name: pod.name,
        });
        Ok(Response::new(v1::DescribeResponse {
            pods: pods.collect(),
        }))
    }

    async fn count_requests(
        &self,
        request: Request<v1::CountRequestsRequest>,
    ) -> Result<Response<v1::CountRequestsResponse>, Status> {
        let (_, identity) = identified(request.extensions())?;
        Ok(Response::new(v1::CountRequestsResponse {
            engagements: self.hub.count_requests(&identity.session),
        }))
    }

    type WatchRequestsStream = BoxStream<'static, Result<v1::WatchRequestsResponse, Status>>;

    async fn watch_requests(
        &self,
        request: Request<v1::WatchRequestsRequest>,
    ) -> Result<Response<Self::WatchRequestsStream>, Status> {
        let (connection, identity) = identified(request.extensions())?;
        let v1::WatchRequestsRequest {
            namespace,
            name,
            earlier_only,
        } = request.into_inner();
        let key = Key::new(namespace, name);
        let read = self
            .hub
            .read_requests(&identity.session, &key, earlier_only);
        let (decisions, reading) = read.ok_or_else(|| {
            Failure::new(
                Reason::NoSuchEngagement,
                format!("this session has no engagement {key}"),
                "see those that there are with `kvpn status`",
            )
        })?;
        let hub = Arc::clone(&self.hub);
        let uid = reading.engagement_uid().to_owned();
        let end = async move {
            let deletion = hub.deletion(&uid, &identity.user);
            Err(Status::from(over(&key, deletion.as_ref())))
        };
        let decisions = ReceiverStream::new(decisions).map(move |decision| {
            // It lives as long as the stream.
            let _ = &reading;
            Ok(decision)
        });
        let decisions = decisions.chain(stream::once(end));
        Ok(Response::new(until_closed(decisions, connection)))
    }

    async fn tell_deletion(
        &self,
        request: Request<v1::TellDeletionRequest>,
    ) -> Result<Response<v1::TellDeletionResponse>, Status> {
        let (_, identity) = identified(request.extensions())?;
        let uid = request.into_inner().uid;
        let deletion = self.hub.deletion(&uid, &identity.user);
        let user = deletion.map(|deletion| deletion.by).unwrap_or_default();
        Ok(Response::new(v1::TellDeletionResponse { user }))
    }

    async fn give_tls_identity(
        &self,
        request: Request<v1::GiveTlsIdentityRequest>,
    ) -> Result<Response<v1::GiveTlsIdentityResponse>, Status> {
        let (_, caller) = identified(request.extensions())?;
        let v1::GiveTlsIdentityRequest { uid, identity } = request.into_inner();
        let identity = identity.ok_or_else(|| Status::invalid_argument("no identity is given"))?;
        let identity = TlsIdentity::from(identity);
        // Agents give others' claims no worse service for it.
        let usable = identity.certified_key();
        usable.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let known = self.hub.give_tls(&caller.session, &uid, identity);
        Ok(Response::new(v1::GiveTlsIdentityResponse { known }))
    }

    async fn read_environment(
        &self,
        request: Request<v1::ReadEnvironmentRequest>,
    ) -> Result<Response<v1::ReadEnvironmentResponse>, Status> {
        let (_, caller) = identified(request.extensions())?;
        let uid = request.into_inner().uid;
        let read = self.hub.read_environment(&caller.session, &uid, ANSWER);
        let (environment, pod) = read.await?;
        Ok(Response::new(v1::ReadEnvironmentResponse {
            environment: Some(environment),
            pod: pod.name,
        }))
    }
}

impl TunnelHandler for SessionApi {
    fn carry(&self, extensions: &Extensions, frames: FrameStream) -> Result<(), Status> {
        let (connection, identity) = identified(extensions)?;
        let api = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = api.serve_flow(&identity, frames) => {}
                _ = connection.wait_closed() => {}
            }
        });
        Ok(())
    }
}

impl SessionApi {
    /// Who the caller is, proved by the key of a Session that exists.
    async fn verify(
        &self,
        connection: &Connection,
        request: v1::AuthenticateRequest,
    ) -> Result<Identity, Failure> {
        let session = self.find_session(&request.session, &request.uid).await?;
        let key = decode_public_key(&session.public_key)
            .ok_or_else(|| unauthenticated("the Session's public key is malformed"))?;
        if !connection.verify(&session.uid, &key, &request.signature) {
            return Err(unauthenticated(
                "the signature is not that of the Session's key",
            ));
        }
        Ok(Identity {
            session: session.key.name,
            uid: session.uid,
            user: session.user,
        })
    }

    /// The Session of that name and UID: from the watch, else from the API
    /// server, since its creation may be ahead of the watch.
    async fn find_session(&self, name: &str, uid: &str) -> Result<SessionView, Failure> {
        if let Some(session) = self.hub.session(name).filter(|session| session.uid == uid) {
            return Ok(session);
        }
        let session = timeout(GET_SESSION, self.sessions.get_opt(name))
            .await
            .map_err(|_| unreadable("it did not answer in time"))?
            .map_err(|error| unreadable(&error.to_string()))?
            .map(|session| SessionView::from(&session))
            .filter(|session| session.uid == uid)
            .ok_or_else(|| {
                Failure::new(
                    Reason::SessionRevoked,
                    format!("session {name} does not exist"),
                    "run `kvpn connect` to start another",
                )
            })?;
        self.hub
            .handle(Event::Sessions(Change::Applied(session.clone())));
        Ok(session)
    }

    async fn serve_flow(&self, identity: &Identity, mut frames: FrameStream) {
        match opening(&mut frames.receiver).await {
            Ok(OpenTarget::Destination { protocol, address }) => {
                let (_open, frames) = self.flows.begin(protocol.into(), Origin::Laptop, frames);
                let session = &identity.uid;
                self.dialer.serve(session, protocol, address, frames).await;
            }
            Ok(OpenTarget::Echo(address)) => {
                let (_open, frames) = self.flows.begin(Carried::Icmp, Origin::Laptop, frames);
                self.dialer.serve_echo(address, frames).await;
            }
            Ok(OpenTarget::Dial(id)) => {
                if let Err(frames) = self.hub.answer(&identity.uid, &id, frames) {
                    refuse_answer(frames).await;
                }
            }
            Ok(OpenTarget::InPod {
                engagement_uid,
                port,
            }) => {
                let (_open, frames) = self.flows.begin(Carried::Tcp, Origin::Laptop, frames);
                let session = &identity.session;
                let dial = self.hub.dial_in_pod(session, &engagement_uid, port);
                join(frames, async { dial?.answered(ANSWER).await }).await;
            }
            Ok(OpenTarget::Files { engagement_uid }) => {
                let (_open, frames) = self.flows.begin(Carried::Tcp, Origin::Laptop, frames);
                let session = &identity.session;
                let dial = self.hub.dial_files(session, &engagement_uid);
                tokio::select! {
                    () = join(frames, async { dial?.answered(ANSWER).await }) => {}
                    () = self.hub.files_end(session, &engagement_uid) => {}
                }
            }
            Ok(OpenTarget::Claimed { .. }) => {
                let failure = DialFailure::new(DialError::Prohibited, "only agents have claims");
                refuse(&frames.sender, failure).await;
            }
            Err(failure) => refuse(&frames.sender, failure).await,
        }
    }
}

/// Says in the log that a session has left, once its dials are no longer read.
struct Gone(String);

impl Drop for Gone {
    fn drop(&mut self) {
        info!(session = self.0, "session absent");
    }
}

fn connection(extensions: &Extensions) -> Result<Arc<Connection>, Status> {
    extensions
        .get::<Arc<Connection>>()
        .cloned()
        .ok_or_else(|| Status::internal("the call came over no connection"))
}

fn identified(extensions: &Extensions) -> Result<(Arc<Connection>, Identity), Status> {
    let connection = connection(extensions)?;
    let identity = connection.identity()?;
    Ok((connection, identity))
}

/// The end of an engagement's log, with who ended it if that is known.
fn over(engagement: &Key, deletion: Option<&Deletion>) -> Failure {
    let how = match deletion {
        Some(deletion) => format!("was deleted by {}", deletion.by_whom()),
        None => "has ended".to_owned(),
    };
    Failure::new(
        Reason::NoSuchEngagement,
        format!("engagement {engagement} {how}"),
        "see those that there are with `kvpn status`",
    )
}

fn unreadable(why: &str) -> Failure {
    Failure::new(
        Reason::ApiServerUnreachable,
        format!("the traffic manager cannot read the Session: {why}"),
        "check the API server and the traffic manager's log",
    )
}

/// A stream that ends with the connection's failure once that is closed.
fn until_closed<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    connection: Arc<Connection>,
) -> BoxStream<'static, Result<T, Status>> {
    let closed = async move { Err(Status::from(connection.wait_closed().await)) };
    stream::select(stream, stream::once(closed)).boxed()
}
