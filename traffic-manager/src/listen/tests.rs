//! Both ports over real sockets on the loopback, with a session and an agent
//! that speak the real protocols; the API server is played.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use kube::{Api, Client};
use kvpn_proto::crd::{Session, condition};
use kvpn_proto::flow::{DialError, Frame, OpenTarget, Protocol};
use kvpn_proto::identity::{encode_public_key, signed_message};
use kvpn_proto::v1::agent_hub_client::AgentHubClient;
use kvpn_proto::v1::traffic_manager_client::TrafficManagerClient;
use kvpn_proto::{Failure, Reason, names, v1};
use kvpn_tunnel::dns::Forwarder;
use kvpn_tunnel::grpc::{self, TunnelClient};
use kvpn_tunnel::relay::{FrameSender, FrameStream};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

use super::{serve_agents, serve_sessions};
use crate::api::{AgentApi, SessionApi, Tokens};
use crate::cluster::{Cluster, Names};
use crate::dial::Dialer;
use crate::hub::Hub;
use crate::metrics::{Access, Endpoint, FlowStats};
use crate::state::testing::{agent_container, engagement, pod, selector};
use crate::state::{Change, Deletion, Effect, Event, Key, SessionView, Settings, World};
use crate::tls::Authority;

mod in_pod;
mod metrics;
mod reads;
mod requests;

const IMAGE: &str = "agent:1";
const CONTAINER: &str = "kvpn-agent-bcdfg";
const LIMIT: Duration = Duration::from_secs(10);

/// A traffic manager with one pod, `shop/web-1`, whose address is the
/// loopback's, and one Session, `alice-1`, which only the API server knows.
struct Lab {
    hub: Arc<Hub>,
    effects: mpsc::UnboundedReceiver<Effect>,
    authority: Authority,
    key: Ed25519KeyPair,
    sessions: SocketAddr,
    agents: SocketAddr,
    _shutdown: DropGuard,
}

impl Lab {
    async fn start() -> Self {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let (hub, effects) = Hub::new(World::new(Settings {
            grace: Duration::from_secs(30),
            idle: Duration::from_secs(10),
            linger: Duration::from_secs(5),
            has_births: true,
            agent_image: IMAGE.into(),
            manager: Key::new("kvpn", "traffic-manager-0"),
        }));
        let mut web = pod("shop", "web-1", "127.0.0.1");
        web.agents.push(agent_container(CONTAINER, IMAGE));
        hub.handle(Event::Pods(Change::Applied(web)));
        hub.handle(Event::Synced);

        let authority = Authority::for_test();
        let shutdown = CancellationToken::new();
        let session_port = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent_port = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sessions, agents) = (
            session_port.local_addr().unwrap(),
            agent_port.local_addr().unwrap(),
        );
        let flows = Arc::new(FlowStats::default());
        let session_api = SessionApi {
            hub: Arc::clone(&hub),
            sessions: Api::namespaced(api_server(&key), "kvpn"),
            chart_version: "0.1.0".into(),
            cluster: Cluster::new("cluster.local".into()).subscribe(),
            names: Arc::new(Names::new()),
            dns: Arc::new(Forwarder::new(vec![])),
            dialer: Arc::new(Dialer::new(vec![])),
            flows: Arc::clone(&flows),
        };
        let agent_api = AgentApi {
            hub: Arc::clone(&hub),
            flows: Arc::clone(&flows),
            tokens: Arc::new(Tokens::new(api_server(&key))),
        };
        let access = Access::new(metrics::api_server());
        let metrics = Endpoint::new(access, Arc::clone(&hub), flows, "0.1.0".into());
        let tls =
            |alpn: &[&[u8]]| TlsAcceptor::from(authority.server_config("kvpn", alpn).unwrap());
        tokio::spawn(serve_sessions(
            session_port,
            tls(&[]),
            session_api,
            Some(Arc::new(metrics)),
            None,
            shutdown.clone(),
        ));
        tokio::spawn(serve_agents(
            agent_port,
            tls(&[b"h2"]),
            agent_api,
            shutdown.clone(),
        ));
        Self {
            hub,
            effects,
            authority,
            key,
            sessions,
            agents,
            _shutdown: shutdown.drop_guard(),
        }
    }

    async fn tls(&self, address: SocketAddr, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let connector = TlsConnector::from(self.authority.client_config(alpn));
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(names::MANAGER_TLS_NAME).unwrap();
        connector.connect(name, socket).await.unwrap()
    }

    /// Sends a request to the sessions' port.
    async fn get(&self, path: &str, upgrade: bool) -> Response<hyper::body::Incoming> {
        let stream = TokioIo::new(self.tls(self.sessions, &[]).await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::get(path).header(header::HOST, "traffic-manager");
        if upgrade {
            request = request
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, names::UPGRADE_PROTOCOL);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        sender.send_request(request).await.unwrap()
    }

    /// A session's connection that is not authenticated yet.
    async fn session(&self) -> SessionClient {
        let response = self.get(names::TUNNEL_PATH, true).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        SessionClient::new(channel(TokioIo::new(upgraded)).await)
    }

    /// Signs the connection's nonce with alice's key.
    async fn authenticate(
        &self,
        client: &mut SessionClient,
        uid: &str,
    ) -> Result<v1::AuthenticateResponse, Failure> {
        let challenge = client.challenge(v1::ChallengeRequest {}).await.unwrap();
        let message = signed_message(uid, &challenge.into_inner().nonce);
        let signature = self.key.sign(&message).as_ref().to_vec().into();
        let request = v1::AuthenticateRequest {
            session: "alice-1".into(),
            uid: uid.into(),
            signature,
        };
        let answer = client.authenticate(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(Failure::from)
    }

    async fn agent(&self) -> (AgentHubClient<Channel>, TunnelClient) {
        let stream = self.tls(self.agents, &[b"h2"]).await;
        let channel = channel(stream).await;
        (
            AgentHubClient::new(channel.clone()),
            TunnelClient::new(channel),
        )
    }

    /// Waits until an engagement's status with that `Active` is written.
    async fn wait_active(&mut self, wanted: &str) {
        let written = async {
            while let Some(effect) = self.effects.recv().await {
                if let Effect::WriteEngagement { status, .. } = effect
                    && let Some(active) = status
                        .conditions
                        .iter()
                        .find(|condition| condition.type_ == condition::ACTIVE)
                    && active.status == wanted
                {
                    return;
                }
            }
            panic!("the effects have ended");
        };
        timeout(LIMIT, written).await.unwrap();
    }
}

/// An API server that has one Session.
fn api_server(key: &Ed25519KeyPair) -> Client {
    let session = json!({
        "apiVersion": "kvpn.dev/v1alpha1",
        "kind": "Session",
        "metadata": { "name": "alice-1", "namespace": "kvpn", "uid": "u-alice-1" },
        "spec": {
            "user": "alice",
            "publicKey": encode_public_key(key.public_key().as_ref()),
            "client": { "hostname": "laptop", "version": "0.1.0" },
        },
    });
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let wanted = "/apis/kvpn.dev/v1alpha1/namespaces/kvpn/sessions/alice-1";
        assert_eq!(request.uri().path(), wanted);
        let body = http_body_util::Full::new(Bytes::from(session.to_string()));
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    Client::new(service, "kvpn")
}

/// HTTP/2 over a stream that is there already.
async fn channel(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Channel {
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream
            .take()
            .ok_or_else(|| std::io::Error::other("used up"));
        async move { stream }
    });
    grpc::client_endpoint(names::MANAGER_SERVICE)
        .connect_with_connector(connector)
        .await
        .unwrap()
}

async fn next_frame(frames: &mut FrameStream) -> Frame {
    let frame = timeout(LIMIT, frames.receiver.recv()).await.unwrap();
    frame.unwrap().unwrap()
}

/// Begins a flow whose frames are received in the background.
fn begin(
    tunnel: &TunnelClient,
    target: OpenTarget,
) -> (FrameSender, mpsc::UnboundedReceiver<Frame>) {
    let FrameStream {
        sender,
        mut receiver,
    } = tunnel.carry(Frame::Open(target));
    let (frames_tx, frames) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = receiver.recv().await
            && frames_tx.send(frame).is_ok()
        {}
    });
    (sender, frames)
}

/// A session's calls, and its flows.
struct SessionClient {
    calls: TrafficManagerClient<Channel>,
    tunnel: TunnelClient,
}

impl SessionClient {
    fn new(channel: Channel) -> Self {
        Self {
            calls: TrafficManagerClient::new(channel.clone()),
            tunnel: TunnelClient::new(channel),
        }
    }
}

impl Deref for SessionClient {
    type Target = TrafficManagerClient<Channel>;

    fn deref(&self) -> &Self::Target {
        &self.calls
    }
}

impl DerefMut for SessionClient {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.calls
    }
}

/// Bob's, of what is alice's.
fn deletion(uid: &str) -> Deletion {
    Deletion {
        uid: uid.into(),
        owner: "alice".into(),
        by: "bob".into(),
        is_trial: false,
    }
}

fn claims_request(event: v1::watch_claims_request::Event) -> v1::WatchClaimsRequest {
    v1::WatchClaimsRequest { event: Some(event) }
}

fn hello(container: &str) -> v1::WatchClaimsRequest {
    claims_request(v1::watch_claims_request::Event::Hello(
        v1::watch_claims_request::Hello {
            version: "0.1.0".into(),
            container: container.into(),
            token: String::new(),
        },
    ))
}

#[tokio::test]
async fn the_kubelet_finds_the_traffic_manager_healthy() {
    let lab = Lab::start().await;
    let response = lab.get(names::HEALTH_PATH, false).await;
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "ok");
    let plain = lab.get(names::TUNNEL_PATH, false).await;
    assert_eq!(plain.status(), StatusCode::UPGRADE_REQUIRED);
    let elsewhere = lab.get("/elsewhere", false).await;
    assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn calls_are_refused_until_the_connection_is_authenticated() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    let lookup = client.lookup(v1::LookupRequest::default()).await;
    assert_eq!(
        Failure::from(lookup.unwrap_err()).reason,
        Reason::Unauthenticated
    );
    let answer = lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    assert_eq!(answer.chart_version, "0.1.0");
    let lookup = client.lookup(v1::LookupRequest::default()).await;
    assert_eq!(Failure::from(lookup.unwrap_err()).reason, Reason::TimedOut);
}

#[tokio::test]
async fn a_namesake_of_a_session_is_not_taken_for_it_and_gets_no_second_try() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    let failure = lab.authenticate(&mut client, "u-other").await.unwrap_err();
    assert_eq!(failure.reason, Reason::SessionRevoked);
    let failure = lab
        .authenticate(&mut client, "u-alice-1")
        .await
        .unwrap_err();
    assert_eq!(failure.reason, Reason::SessionRevoked);
}

#[tokio::test]
async fn a_prohibited_address_is_not_dialled() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let target = OpenTarget::Destination {
        protocol: Protocol::Tcp,
        address: lab.sessions,
    };
    let mut frames = client.tunnel.carry(Frame::Open(target));
    let Frame::Failed(failure) = next_frame(&mut frames).await else {
        panic!("the dial was not refused");
    };
    assert_eq!(failure.error, DialError::Prohibited);
}

#[tokio::test]
async fn a_container_that_is_no_agent_of_ours_is_turned_away() {
    let lab = Lab::start().await;
    let (mut agent, _) = lab.agent().await;
    let events = futures::stream::iter([hello("kvpn-agent-zzzzz")]);
    let status = agent.watch_claims(events).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn a_stranger_gets_no_handshake_at_the_agents_port() {
    let lab = Lab::start().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let socket = socket.connect(lab.agents).await.unwrap();
    let connector = TlsConnector::from(lab.authority.client_config(&[b"h2"]));
    let name = ServerName::try_from(names::MANAGER_TLS_NAME).unwrap();
    let handshake = timeout(LIMIT, connector.connect(name, socket)).await;
    assert!(handshake.unwrap().is_err());
}

#[tokio::test]
async fn an_intercepted_connection_travels_to_the_laptop_and_back() {
    let mut lab = Lab::start().await;
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let dials = client.watch_dials(v1::WatchDialsRequest {}).await.unwrap();
    let mut dials = dials.into_inner();

    let view = engagement("web-a", "alice", 8080, 0);
    lab.hub.handle(Event::Engagements(Change::Applied(view)));
    lab.hub.handle(Event::WorkloadResolved {
        engagement: Key::new("shop", "web-a"),
        uid: "uid-web-a".into(),
        resolution: selector("app", "web"),
    });

    let (mut agent, agent_tunnel) = lab.agent().await;
    let (events, stream) = mpsc::channel(4);
    events.send(hello(CONTAINER)).await.unwrap();
    let claims = agent
        .watch_claims(ReceiverStream::new(stream))
        .await
        .unwrap();
    let mut claims = claims.into_inner();
    let set = timeout(LIMIT, claims.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(set.claims[0].container_port, 8080);
    let generation = set.generation;
    let applied = v1::watch_claims_request::Applied {
        generation,
        not_stopped: Vec::new(),
        without_tls: Vec::new(),
    };
    let applied = v1::watch_claims_request::Event::Applied(applied);
    events.send(claims_request(applied)).await.unwrap();
    lab.wait_active("True").await;

    let source: SocketAddr = "10.1.0.9:4000".parse().unwrap();
    let target = OpenTarget::Claimed {
        claim_id: set.claims[0].id.clone(),
        source,
    };
    let (to_session, mut from_session) = begin(&agent_tunnel, target);

    let dial = timeout(LIMIT, dials.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(dial.engagement_name, "web-a");
    assert_eq!(dial.pod, "web-1");
    assert_eq!(dial.source, Some(source.into()));
    let answer = OpenTarget::Dial(dial.dial_id);
    let (to_agent, mut from_agent) = begin(&client.tunnel, answer);
    let ping = Frame::Data(Bytes::from_static(b"ping"));
    to_agent.send(Frame::Opened).await.unwrap();
    assert_eq!(from_session.recv().await, Some(Frame::Opened));
    to_session.send(ping.clone()).await.unwrap();
    assert_eq!(from_agent.recv().await, Some(ping));
    to_agent.send(Frame::Fin).await.unwrap();
    assert_eq!(from_session.recv().await, Some(Frame::Fin));
    to_session.send(Frame::Fin).await.unwrap();
    assert_eq!(from_agent.recv().await, Some(Frame::Fin));

    // The laptop goes without a word: the agent hears of it at once.
    drop((dials, client, to_agent, from_agent));
    let set = timeout(LIMIT, claims.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(set.claims.is_empty());
    lab.wait_active("False").await;
}

#[tokio::test]
async fn a_deleted_session_ends_its_streams_with_the_reason() {
    let lab = Lab::start().await;
    let mut client = lab.session().await;
    lab.authenticate(&mut client, "u-alice-1").await.unwrap();
    let dials = client.watch_dials(v1::WatchDialsRequest {}).await.unwrap();
    let mut dials = dials.into_inner();
    let session: Session = serde_json::from_value(json!({
        "metadata": { "name": "alice-1", "namespace": "kvpn", "uid": "u-alice-1" },
        "spec": {
            "user": "alice",
            "publicKey": "",
            "client": { "hostname": "laptop", "version": "0.1.0" },
        },
    }))
    .unwrap();
    lab.hub.note_deletion(deletion("u-alice-1"));
    let gone = Change::Deleted(SessionView::from(&session));
    lab.hub.handle(Event::Sessions(gone));
    let status = timeout(LIMIT, dials.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap_err();
    let failure = Failure::from(status);
    assert_eq!(failure.reason, Reason::SessionRevoked);
    assert_eq!(failure.message, "the session was ended by bob");
    let lookup = client.lookup(v1::LookupRequest::default()).await;
    assert_eq!(
        Failure::from(lookup.unwrap_err()).reason,
        Reason::SessionRevoked
    );
}
