//! A traffic manager that does as the test says, and holds the claims itself.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use bytes::Bytes;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use kvpn_proto::{
    flow::{DialError, DialFailure, Frame, OpenTarget},
    names::{MANAGER_AGENT_PORT, MANAGER_TLS_NAME},
    v1::{
        self, LogReader, ReportRequestsRequest, ReportRequestsResponse, WatchClaimsRequest,
        WatchClaimsResponse, WatchPodDialsRequest, WatchPodDialsResponse, WatchReadsRequest,
        WatchReadsResponse,
        agent_hub_server::{AgentHub, AgentHubServer},
        watch_claims_request::Event,
        watch_reads_request, watch_reads_response,
    },
};
use kvpn_tunnel::grpc::{TunnelHandler, TunnelServer};
use kvpn_tunnel::relay::{FrameReceiver, FrameSender, FrameStream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio::sync::{broadcast, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{
    StreamExt,
    adapters::Map,
    wrappers::{BroadcastStream, WatchStream, errors::BroadcastStreamRecvError},
};
use tonic::service::Routes;
use tonic::{Extensions, Request, Response, Status, Streaming};

use crate::network::{Network, PEER_V4, Side};

const DEADLINE: Duration = Duration::from_secs(5);

/// A certificate authority, and a certificate by it for the traffic manager.
pub(crate) struct Identity {
    pub(crate) ca: String,
    server: Arc<ServerConfig>,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let mut ca = CertificateParams::new(vec![]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![MANAGER_TLS_NAME.into()])
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let mut server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        server.alpn_protocols = vec![b"h2".to_vec()];
        Self {
            ca: ca_certificate.pem(),
            server: Arc::new(server),
        }
    }
}

/// What the holder of the claims does with a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Holder {
    /// Says `laptop CLAIM SOURCE`, then returns what the client sends.
    Serve,
    Refuse,
    Silent,
    /// As `Serve`, but resets when it gets data.
    Reset,
    /// Takes the flow, and no datagram of it.
    RefuseDatagrams,
}

/// Listens on the peer's side; gone when dropped.
pub(crate) struct Manager {
    hub: Hub,
    events: mpsc::Receiver<Event>,
    reports: mpsc::Receiver<ReportRequestsRequest>,
    received: mpsc::Receiver<(String, Bytes)>,
    said_in_pod: mpsc::Receiver<String>,
    reads: mpsc::Receiver<watch_reads_request::Event>,
    refusals: mpsc::Receiver<()>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Manager {
    pub(crate) fn start(network: &Network, identity: &Identity) -> Self {
        let (event_tx, events) = mpsc::channel();
        let (report_tx, reports) = mpsc::channel();
        let (received_tx, received) = mpsc::channel();
        let (said_tx, said_in_pod) = mpsc::channel();
        let (read_tx, reads) = mpsc::channel();
        let (refusal_tx, refusals) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (ready_tx, ready) = mpsc::channel();
        let hub = Hub {
            claims: Arc::new(watch::channel(WatchClaimsResponse::default()).0),
            holder: Arc::new(Mutex::new(Holder::Serve)),
            events: event_tx,
            readers: Arc::default(),
            reports: report_tx,
            received: received_tx,
            pod_dials: broadcast::channel(4).0,
            said_in_pod: said_tx,
            to_readers: broadcast::channel(4).0,
            reads: read_tx,
        };
        let tls = TlsAcceptor::from(Arc::clone(&identity.server));
        let serve = serve(hub.clone(), tls, ready_tx, refusal_tx);
        let thread = network.spawn(Side::Peer, move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            // Dropping the runtime closes every connection, as a kill would.
            runtime.block_on(async {
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        ready.recv_timeout(DEADLINE).unwrap();
        Self {
            hub,
            events,
            reports,
            received,
            said_in_pod,
            reads,
            refusals,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn address() -> SocketAddr {
        (PEER_V4, MANAGER_AGENT_PORT).into()
    }

    pub(crate) fn set_holder(&self, holder: Holder) {
        *self.hub.holder.lock().unwrap() = holder;
    }

    /// Tells the claims and waits for the answer to them.
    pub(crate) fn claim(&self, generation: u64, claims: Vec<v1::Claim>) -> Event {
        self.tell(WatchClaimsResponse {
            generation,
            claims,
            copies: Vec::new(),
        })
    }

    /// The same with copies.
    pub(crate) fn tell(&self, told: WatchClaimsResponse) -> Event {
        let generation = told.generation;
        self.hub.claims.send_replace(told);
        loop {
            match self.next_event() {
                Event::Hello(_) => {}
                Event::Applied(applied) if applied.generation < generation => {}
                event @ (Event::Applied(_) | Event::Failed(_)) => return event,
            }
        }
    }

    /// Tells who reads the log of which engagement.
    pub(crate) fn read(&self, readers: &[(u64, &str)]) {
        let readers = readers.iter().map(|(id, uid)| LogReader {
            id: *id,
            engagement_uid: (*uid).to_owned(),
        });
        self.hub.readers.send_replace(ReportRequestsResponse {
            readers: readers.collect(),
        });
    }

    /// Waits for a report that is as wanted; others are passed over.
    pub(crate) fn report_with(
        &self,
        is_wanted: impl Fn(&ReportRequestsRequest) -> bool,
    ) -> ReportRequestsRequest {
        loop {
            let report = self.reports.recv_timeout(DEADLINE).unwrap();
            if is_wanted(&report) {
                return report;
            }
        }
    }

    /// The claim whose holder has got something, and what.
    pub(crate) fn next_received(&self) -> (String, Bytes) {
        self.received.recv_timeout(DEADLINE).unwrap()
    }

    /// Has the agent dial in its pod for a claim: what is said there first, or why it fails.
    pub(crate) fn dial_in_pod(&self, claim_id: &str, port: u16) -> String {
        let dial = WatchPodDialsResponse {
            dial_id: format!("dial-{port}"),
            port: port.into(),
            claim_id: claim_id.to_owned(),
        };
        // The agent's call may still be on its way.
        let deadline = std::time::Instant::now() + DEADLINE;
        while self.hub.pod_dials.send(dial.clone()).is_err() {
            assert!(std::time::Instant::now() < deadline, "nobody dials");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.next_said_in_pod()
    }

    /// What is said next in the pod, or how that ends.
    pub(crate) fn next_said_in_pod(&self) -> String {
        self.said_in_pod.recv_timeout(DEADLINE).unwrap()
    }

    /// What a reader says next.
    pub(crate) fn next_read(&self) -> watch_reads_request::Event {
        self.reads.recv_timeout(DEADLINE).unwrap()
    }

    /// Tells the reader that has called.
    pub(crate) fn tell_reader(&self, what: watch_reads_response::What) {
        let what = Some(what);
        self.hub
            .to_readers
            .send(WatchReadsResponse { what })
            .unwrap();
    }

    pub(crate) fn next_event(&self) -> Event {
        self.events.recv_timeout(DEADLINE).unwrap()
    }

    /// Waits for a refused TLS connection.
    pub(crate) fn next_refusal(&self) {
        self.refusals.recv_timeout(DEADLINE).unwrap();
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn serve(hub: Hub, tls: TlsAcceptor, ready: mpsc::Sender<()>, refusals: mpsc::Sender<()>) {
    let listener = tokio::net::TcpListener::bind(Manager::address())
        .await
        .unwrap();
    ready.send(()).unwrap();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let tls = tls.clone();
        let refusals = refusals.clone();
        let service = TowerToHyperService::new(
            Routes::new(AgentHubServer::new(hub.clone()))
                .add_service(TunnelServer::new(hub.clone())),
        );
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(socket).await else {
                // The test may have seen enough.
                let _ = refusals.send(());
                return;
            };
            // The agent hangs up as it likes.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[derive(Clone)]
struct Hub {
    claims: Arc<watch::Sender<WatchClaimsResponse>>,
    holder: Arc<Mutex<Holder>>,
    events: mpsc::Sender<Event>,
    readers: Arc<watch::Sender<ReportRequestsResponse>>,
    reports: mpsc::Sender<ReportRequestsRequest>,
    received: mpsc::Sender<(String, Bytes)>,
    pod_dials: broadcast::Sender<WatchPodDialsResponse>,
    said_in_pod: mpsc::Sender<String>,
    to_readers: broadcast::Sender<WatchReadsResponse>,
    reads: mpsc::Sender<watch_reads_request::Event>,
}

type Read =
    fn(Result<WatchReadsResponse, BroadcastStreamRecvError>) -> Result<WatchReadsResponse, Status>;

type Dialled = fn(
    Result<WatchPodDialsResponse, BroadcastStreamRecvError>,
) -> Result<WatchPodDialsResponse, Status>;

type Reported = fn(ReportRequestsResponse) -> Result<ReportRequestsResponse, Status>;

type Claimed = fn(WatchClaimsResponse) -> Result<WatchClaimsResponse, Status>;

#[tonic::async_trait]
impl AgentHub for Hub {
    type WatchClaimsStream = Map<WatchStream<WatchClaimsResponse>, Claimed>;

    async fn watch_claims(
        &self,
        request: Request<Streaming<WatchClaimsRequest>>,
    ) -> Result<Response<Self::WatchClaimsStream>, Status> {
        let events = self.events.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(WatchClaimsRequest { event: Some(event) })) = requests.message().await
            {
                if events.send(event).is_err() {
                    return;
                }
            }
        });
        let claims = WatchStream::new(self.claims.subscribe());
        Ok(Response::new(claims.map(Ok as Claimed)))
    }

    type ReportRequestsStream = Map<WatchStream<ReportRequestsResponse>, Reported>;

    async fn report_requests(
        &self,
        request: Request<Streaming<ReportRequestsRequest>>,
    ) -> Result<Response<Self::ReportRequestsStream>, Status> {
        let reports = self.reports.clone();
        let mut told = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(report)) = told.message().await {
                if reports.send(report).is_err() {
                    return;
                }
            }
        });
        let readers = WatchStream::new(self.readers.subscribe());
        Ok(Response::new(readers.map(Ok as Reported)))
    }

    type WatchPodDialsStream = Map<BroadcastStream<WatchPodDialsResponse>, Dialled>;

    async fn watch_pod_dials(
        &self,
        _: Request<WatchPodDialsRequest>,
    ) -> Result<Response<Self::WatchPodDialsStream>, Status> {
        let dials = BroadcastStream::new(self.pod_dials.subscribe());
        let dialled: Dialled = |dial| dial.map_err(|error| Status::internal(error.to_string()));
        Ok(Response::new(dials.map(dialled)))
    }

    type WatchReadsStream = Map<BroadcastStream<WatchReadsResponse>, Read>;

    async fn watch_reads(
        &self,
        request: Request<Streaming<WatchReadsRequest>>,
    ) -> Result<Response<Self::WatchReadsStream>, Status> {
        // It is told from now on.
        let told = BroadcastStream::new(self.to_readers.subscribe());
        let (reads, mut said) = (self.reads.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(WatchReadsRequest { event: Some(event) })) = said.message().await {
                if reads.send(event).is_err() {
                    return;
                }
            }
        });
        let read: Read = |told| told.map_err(|error| Status::internal(error.to_string()));
        Ok(Response::new(told.map(read)))
    }
}

impl TunnelHandler for Hub {
    fn carry(&self, _: &Extensions, frames: FrameStream) -> Result<(), Status> {
        let holder = *self.holder.lock().unwrap();
        let received = self.received.clone();
        tokio::spawn(hold(
            holder,
            frames.sender,
            frames.receiver,
            received,
            self.said_in_pod.clone(),
        ));
        Ok(())
    }
}

/// Plays the laptop for one connection.
async fn hold(
    holder: Holder,
    sender: FrameSender,
    mut receiver: FrameReceiver,
    received: mpsc::Sender<(String, Bytes)>,
    said_in_pod: mpsc::Sender<String>,
) {
    let (claim_id, source) = match receiver.recv().await {
        Some(Ok(Frame::Open(OpenTarget::Claimed { claim_id, source }))) => (claim_id, source),
        Some(Ok(Frame::Open(OpenTarget::Dial(_)))) => return listen(receiver, &said_in_pod).await,
        other => panic!("neither a claimed connection nor a dial: {other:?}"),
    };
    match holder {
        Holder::Silent => {
            while receiver.recv().await.is_some() {}
            return;
        }
        Holder::Refuse => {
            let failure = DialFailure::new(DialError::Refused, "nothing listens");
            let _ = sender.send(Frame::Failed(failure)).await;
            return;
        }
        Holder::Serve | Holder::Reset | Holder::RefuseDatagrams => {}
    }
    let greeting = format!("laptop {claim_id} {}\n", source.ip());
    let _ = sender.send(Frame::Opened).await;
    if !matches!(holder, Holder::RefuseDatagrams) {
        let _ = sender.send(Frame::Data(greeting.into())).await;
    }
    while let Some(Ok(frame)) = receiver.recv().await {
        if let Frame::Data(data) = &frame {
            // The test may have seen enough.
            let _ = received.send((claim_id.clone(), data.clone()));
        }
        let reply = match frame {
            Frame::Data(_) if matches!(holder, Holder::RefuseDatagrams) => {
                Frame::Failed(DialFailure::new(DialError::Refused, "nothing listens"))
            }
            Frame::Data(_) if matches!(holder, Holder::Reset) => Frame::Reset,
            Frame::Data(_) | Frame::Fin => frame,
            Frame::Open(_) | Frame::Opened | Frame::Failed(_) | Frame::Whole(_) | Frame::Reset => {
                return;
            }
        };
        if sender.send(reply).await.is_err() {
            return;
        }
    }
}

/// Tells what comes of a dial in the pod, until that ends.
async fn listen(mut receiver: FrameReceiver, said: &mpsc::Sender<String>) {
    loop {
        let (what, is_over) = match receiver.recv().await {
            Some(Ok(Frame::Opened)) => continue,
            Some(Ok(Frame::Data(data))) => (String::from_utf8_lossy(&data).into_owned(), false),
            Some(Ok(Frame::Failed(failure))) => (format!("{:?}", failure.error), true),
            Some(Ok(Frame::Reset) | Err(_)) | None => ("cut off".to_owned(), true),
            Some(Ok(other)) => (format!("{other:?}"), false),
        };
        // The test may have seen enough.
        if said.send(what).is_err() || is_over {
            return;
        }
    }
}
