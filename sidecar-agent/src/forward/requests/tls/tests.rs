use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kvpn_proto::filter::{Condition, HttpFilter};
use kvpn_proto::flow::Frame;
use kvpn_proto::tls::TlsIdentity;
use kvpn_proto::v1;
use kvpn_tunnel::grpc::{self, TunnelClient, TunnelHandler, TunnelServer};
use kvpn_tunnel::relay::{self, FrameStream};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tonic::transport::Uri;
use tonic::{Extensions, Status};

use super::super::serve;
use super::*;
use crate::claims::Claims;
use crate::forward::datagrams::Datagrams;
use crate::forward::{Route, Shared};
use crate::holds::Holds;
use crate::reports::Reports;

const NAME: &str = "web.shop";
const H2: &str = "h2";
const HTTP1: &str = "http/1.1";
const CLAIM: &str = "alice/1";
const ROOM: usize = 64 << 10;

/// What the app does with connections.
#[derive(Clone, Copy)]
enum AppIs {
    /// By these protocols.
    Tls(&'static [&'static str]),
    Plain,
    Down,
}

fn identity() -> TlsIdentity {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    TlsIdentity {
        certificates: made.cert.pem().into(),
        key: made.signing_key.serialize_pem().into(),
    }
}

/// Answers in a header who it is.
async fn answer(
    name: &'static str,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    is_http2: bool,
) {
    let service = service_fn(move |_: Request<Incoming>| async move {
        let response = Response::builder().header("x-who", name);
        Ok::<_, Infallible>(response.body(String::new()).unwrap())
    });
    let stream = TokioIo::new(stream);
    // It ends as the client pleases.
    if is_http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(stream, service).await;
    } else {
        let builder = hyper::server::conn::http1::Builder::new();
        let _ = builder.serve_connection(stream, service).await;
    }
}

/// A laptop that speaks HTTP without TLS.
#[derive(Clone)]
struct Laptop {
    is_http2: bool,
}

impl TunnelHandler for Laptop {
    fn carry(&self, _: &Extensions, mut frames: FrameStream) -> Result<(), Status> {
        let is_http2 = self.is_http2;
        tokio::spawn(async move {
            let Some(Ok(Frame::Open(_))) = frames.receiver.recv().await else {
                return;
            };
            frames.sender.send(Frame::Opened).await.unwrap();
            let (outer, inner) = duplex(ROOM);
            tokio::spawn(relay::splice(inner, frames));
            answer("laptop", outer, is_http2).await;
        });
        Ok(())
    }
}

/// A tunnel to it.
async fn tunnel(laptop: Laptop) -> TunnelClient {
    let (near, far) = duplex(ROOM);
    let connections = futures::stream::iter([Ok::<_, io::Error>(far)]);
    let serving = grpc::server()
        .add_service(TunnelServer::new(laptop))
        .serve_with_incoming(connections);
    tokio::spawn(serving);
    let mut near = Some(TokioIo::new(near));
    let once = tower::service_fn(move |_: Uri| {
        let stream = near.take();
        std::future::ready(stream.ok_or_else(|| io::Error::other("one connection only")))
    });
    let channel = grpc::client_endpoint("traffic-manager")
        .connect_with_connector(once)
        .await;
    TunnelClient::new(channel.unwrap())
}

/// An app that tells by its certificate that it is not the agent. It counts connections.
async fn app(is: AppIs, connections: Arc<AtomicUsize>) -> (SocketAddr, TlsIdentity) {
    let own = identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let protocols = match is {
        AppIs::Tls(protocols) => protocols,
        AppIs::Plain => &[],
        AppIs::Down => return (address, own),
    };
    let key = PrivateKeyDer::from_pem_slice(&own.key).unwrap();
    let certificate = CertificateDer::from_pem_slice(&own.certificates).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::Relaxed);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if matches!(is, AppIs::Plain) {
                    return answer("app", socket, false).await;
                }
                if let Ok(stream) = acceptor.accept(socket).await {
                    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(H2.as_bytes());
                    answer("app", stream, is_http2).await;
                }
            });
        }
    });
    (address, own)
}

/// An agent whose one claim is on requests of alice.
struct Case {
    agent: SocketAddr,
    /// What the clients trust.
    trusted: TlsIdentity,
    shared: Arc<Shared>,
    /// How many connections the app has taken.
    app_connections: Arc<AtomicUsize>,
    claim: v1::Claim,
    tunnel: TunnelClient,
}

impl Case {
    /// Clients trust the claim's certificate, or where it has none the app's.
    async fn new(is: AppIs, speaks: &str, has_identity: bool) -> Self {
        let own = has_identity.then(identity);
        let app_connections = Arc::<AtomicUsize>::default();
        let (destination, apps) = app(is, Arc::clone(&app_connections)).await;
        let filter = HttpFilter {
            any: false,
            conditions: vec![Condition::header("x-user=alice")],
        };
        let claim = v1::Claim {
            id: CLAIM.into(),
            container_port: destination.port().into(),
            protocol: v1::Protocol::Tcp.into(),
            http: Some(filter.into()),
            tls: own.clone().map(Into::into),
            ..v1::Claim::default()
        };
        let laptop = Laptop {
            is_http2: speaks == H2,
        };
        let shared = Arc::new(Shared {
            port: 0,
            route: Mutex::new(None),
            ports: Mutex::default(),
            flows: TaskTracker::new(),
            reports: Arc::new(Reports::new()),
            missed_copies: Mutex::default(),
            copies: Arc::new(Semaphore::new(1)),
            pod_dials: Arc::new(Semaphore::new(1)),
            datagrams: Datagrams::new(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = listener.local_addr().unwrap();
        let its = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((socket, source)) = listener.accept().await {
                tokio::spawn(serve(socket, source, destination, Arc::clone(&its)));
            }
        });
        let case = Self {
            agent,
            trusted: own.unwrap_or(apps),
            shared,
            app_connections,
            claim,
            tunnel: tunnel(laptop).await,
        };
        case.put_in_force(|_| {});
        case
    }

    /// Puts another claim in force.
    fn put_in_force(&self, change: impl Fn(&mut v1::Claim)) {
        let mut claim = self.claim.clone();
        change(&mut claim);
        let claims = Claims::try_from(v1::WatchClaimsResponse {
            claims: vec![claim],
            ..v1::WatchClaimsResponse::default()
        });
        let claims = claims.unwrap();
        self.shared.reports.keep(&claims);
        let route = Route::new(claims, self.tunnel.clone(), Holds::default());
        *self.shared.lock() = Some(Arc::new(route));
    }

    /// Puts the claim in force as a traffic manager tells it that was started anew.
    fn lose_identity(&self, fails_closed: bool) {
        self.put_in_force(|claim| {
            claim.tls = None;
            claim.keeps_tls = true;
            claim.fails_closed = fails_closed;
        });
    }

    async fn connect(&self, protocols: &[&str]) -> io::Result<client::TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.agent).await?;
        self.begin(socket, protocols).await
    }

    /// Begins TLS on a connection.
    async fn begin(
        &self,
        socket: TcpStream,
        protocols: &[&str],
    ) -> io::Result<client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        let trusted = CertificateDer::from_pem_slice(&self.trusted.certificates).unwrap();
        roots.add(trusted).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|it| it.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await
    }

    /// Who answers requests of these users on one connection, and by which protocol.
    async fn ask(&self, protocols: &[&str], users: &[&str]) -> (Vec<String>, Option<String>) {
        ask(self.connect(protocols).await.unwrap(), users).await
    }

    fn has_passed_tls(&self) -> u64 {
        self.shared.reports.tls_passed(CLAIM)
    }
}

/// Who answers requests of these users on one connection, and by which protocol.
async fn ask(
    stream: client::TlsStream<TcpStream>,
    users: &[&str],
) -> (Vec<String>, Option<String>) {
    let agreed = stream.get_ref().1.alpn_protocol();
    let agreed = agreed.map(|it| String::from_utf8(it.to_vec()).unwrap());
    let io = TokioIo::new(stream);
    let mut answers = Vec::new();
    let mut note = |response: Response<Incoming>| {
        answers.push(response.headers()["x-who"].to_str().unwrap().to_owned());
    };
    if agreed.as_deref() == Some(H2) {
        let executor = TokioExecutor::new();
        let shaken = hyper::client::conn::http2::handshake(executor, io).await;
        let (mut sender, connection) = shaken.unwrap();
        tokio::spawn(connection);
        for user in users {
            let url = format!("https://{NAME}/");
            note(sender.send_request(request(&url, user)).await.unwrap());
        }
    } else {
        let shaken = hyper::client::conn::http1::handshake(io).await;
        let (mut sender, connection) = shaken.unwrap();
        tokio::spawn(connection);
        for user in users {
            sender.ready().await.unwrap();
            note(sender.send_request(request("/", user)).await.unwrap());
        }
    }
    (answers, agreed)
}

fn request(url: &str, user: &str) -> Request<String> {
    let request = Request::get(url).header("host", NAME);
    request.header("x-user", user).body(String::new()).unwrap()
}

const USERS: [&str; 4] = ["alice", "bob", "alice", "bob"];
const ANSWERS: [&str; 4] = ["laptop", "app", "laptop", "app"];

#[tokio::test]
async fn requests_within_tls_go_to_whom_each_is_for() {
    for protocol in [HTTP1, H2] {
        let case = Case::new(AppIs::Tls(&[H2, HTTP1]), protocol, true).await;
        let (answers, agreed) = case.ask(&[protocol], &USERS).await;
        assert_eq!(answers, ANSWERS, "{protocol}");
        assert_eq!(agreed.as_deref(), Some(protocol));
        assert_eq!(case.has_passed_tls(), 0);
    }
}

#[tokio::test]
async fn client_gets_the_protocol_that_the_app_chooses() {
    for (apps, clients, wanted) in [
        (&[HTTP1][..], &[H2, HTTP1][..], Some(HTTP1)),
        (&[H2, HTTP1], &[HTTP1, H2], Some(H2)),
        (&[H2, HTTP1], &[], None),
        (&[], &[H2, HTTP1], None),
    ] {
        let speaks = wanted.unwrap_or(HTTP1);
        let case = Case::new(AppIs::Tls(apps), speaks, true).await;
        let (answers, agreed) = case.ask(clients, &USERS).await;
        assert_eq!(answers, ANSWERS, "{apps:?} {clients:?}");
        assert_eq!(agreed.as_deref(), wanted, "{apps:?} {clients:?}");
    }
}

#[tokio::test]
async fn without_a_certificate_tls_passes_whole_and_is_counted() {
    let case = Case::new(AppIs::Tls(&[H2, HTTP1]), H2, false).await;
    let (answers, _) = case.ask(&[H2], &["alice"]).await;
    assert_eq!(answers, ["app"]);
    assert_eq!(case.has_passed_tls(), 1);
}

#[tokio::test]
async fn nobody_answers_what_nobody_can_see_where_only_the_laptop_may() {
    let case = Case::new(AppIs::Tls(&[HTTP1]), HTTP1, true).await;
    case.lose_identity(true);
    case.connect(&[HTTP1]).await.unwrap_err();
    assert_eq!(case.app_connections.load(Ordering::Relaxed), 0);
    assert_eq!(case.shared.reports.tls_failed(CLAIM), 1);

    case.lose_identity(false);
    case.connect(&[HTTP1]).await.unwrap_err();
    assert_eq!(case.app_connections.load(Ordering::Relaxed), 1);
    assert_eq!(case.has_passed_tls(), 1);
}

#[tokio::test]
async fn client_waits_for_what_its_tls_is_ended_with() {
    let case = Case::new(AppIs::Tls(&[HTTP1]), HTTP1, true).await;
    case.lose_identity(true);
    let asking = case.ask(&[HTTP1], &USERS);
    let giving = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        case.put_in_force(|claim| claim.fails_closed = true);
    };
    let ((answers, _), ()) = tokio::join!(asking, giving);
    assert_eq!(answers, ANSWERS);
    assert_eq!(case.shared.reports.tls_failed(CLAIM), 0);
}

#[tokio::test]
async fn port_with_a_certificate_takes_requests_without_tls_as_well() {
    let case = Case::new(AppIs::Plain, HTTP1, true).await;
    let mut socket = TcpStream::connect(case.agent).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: x\r\nx-user: alice\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 1 << 10];
    let length = socket.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.contains("x-who: laptop"), "{answer}");
}

#[tokio::test]
async fn client_that_begins_late_is_looked_into_as_well() {
    for protocol in [HTTP1, H2] {
        let case = Case::new(AppIs::Tls(&[H2, HTTP1]), protocol, true).await;
        let socket = TcpStream::connect(case.agent).await.unwrap();
        // The app has been asked meanwhile whether it begins.
        let asked = async {
            while case.app_connections.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let deadline = Duration::from_secs(10);
        tokio::time::timeout(deadline, asked).await.unwrap();
        let stream = case.begin(socket, &[protocol]).await.unwrap();
        assert_eq!(ask(stream, &USERS).await.0, ANSWERS, "{protocol}");
        assert_eq!(case.has_passed_tls(), 0);
    }
}

#[tokio::test]
async fn app_that_is_down_does_not_keep_requests_from_the_laptop() {
    let case = Case::new(AppIs::Down, H2, true).await;
    let (answers, agreed) = case.ask(&[H2, HTTP1], &["alice"]).await;
    assert_eq!(answers, ["laptop"]);
    assert_eq!(agreed.as_deref(), Some(H2));
}

#[tokio::test]
async fn client_of_an_app_without_tls_is_hung_up_on() {
    let case = Case::new(AppIs::Plain, HTTP1, true).await;
    let error = case.connect(&[HTTP1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(case.shared.reports.tls_failed(CLAIM), 1);
}

#[tokio::test]
async fn client_that_trusts_somebody_else_does_not_disturb_the_next() {
    let mut case = Case::new(AppIs::Tls(&[HTTP1]), HTTP1, true).await;
    let trusted = std::mem::replace(&mut case.trusted, identity());
    case.connect(&[HTTP1]).await.unwrap_err();
    case.trusted = trusted;
    assert_eq!(case.ask(&[HTTP1], &USERS).await.0, ANSWERS);
    assert_eq!(case.shared.reports.tls_failed(CLAIM), 1);
}

#[tokio::test]
async fn request_is_not_sent_on_a_connection_that_the_app_may_have_left() {
    let case = Case::new(AppIs::Tls(&[HTTP1]), HTTP1, true).await;
    let stream = case.connect(&[HTTP1]).await.unwrap();
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request("/", "alice")).await.unwrap();
    assert_eq!(response.headers()["x-who"], "laptop");
    tokio::time::sleep(2 * UNUSED).await;
    sender.ready().await.unwrap();
    let response = sender.send_request(request("/", "bob")).await.unwrap();
    assert_eq!(response.headers()["x-who"], "app");
    assert_eq!(case.app_connections.load(Ordering::Relaxed), 2);
}
