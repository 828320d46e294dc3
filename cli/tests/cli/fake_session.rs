//! A session that answers from a script and remembers what it was asked.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kvpn_proto::check::Check;
use kvpn_proto::v1::intercept_response::Event;
use kvpn_proto::v1::session_server::{self, SessionServer};
use kvpn_proto::v1::{
    Decision, DiagnoseRequest, DiagnoseResponse, EngagementStatus, Environment, ExplainRequest,
    ExplainResponse, Flow, FlowDirection, FlowState, FlowsRequest, FlowsResponse,
    GetEnvironmentRequest, GetEnvironmentResponse, InterceptRequest, InterceptResponse,
    JudgeRequest, JudgeResponse, JudgedCondition, LeaveRequest, LeaveResponse, Link, ListRequest,
    ListResponse, LogRequest, LogResponse, PortMapping, QuitRequest, QuitResponse, RequestedPort,
    Rule, StatusRequest, StatusResponse, Taker, WorkloadStatus,
};
use kvpn_proto::{Failure, Reason};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

use crate::kvpn::User;

pub(crate) struct FakeSession {
    calls: Calls,
    server: JoinHandle<()>,
}

type Calls = Arc<Mutex<Vec<String>>>;

impl FakeSession {
    /// Serves on the user's session socket.
    pub(crate) fn start(user: &User) -> Self {
        Self::start_at(user, user.session_socket())
    }

    /// Serves on another socket.
    pub(crate) fn start_at(user: &User, socket: PathBuf) -> Self {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let calls = Calls::default();
        let service = Service {
            calls: calls.clone(),
            socket,
            cancelled: user.path("cancelled"),
            hung_up: user.path("hung-up"),
            waiting: user.path("waiting"),
            files: user.path("files"),
            looks: AtomicU64::new(0),
            has_quit: AtomicBool::new(false),
        };
        let server = tokio::spawn(async {
            tonic::transport::Server::builder()
                .add_service(SessionServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { calls, server }
    }

    /// What it was asked, each with its most telling field.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Drop for FakeSession {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    calls: Calls,
    socket: PathBuf,
    /// Written when an intercept that waits is cancelled.
    cancelled: PathBuf,
    /// Written when the caller of an intercept that ends with its call hangs up.
    hung_up: PathBuf,
    /// Written when an intercept waits.
    waiting: PathBuf,
    /// What takes the place of a container's whole file system.
    files: PathBuf,
    /// How often flows were looked at.
    looks: AtomicU64,
    /// It answers nothing any more.
    has_quit: AtomicBool,
}

impl Service {
    fn called(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }
}

fn engagement() -> EngagementStatus {
    EngagementStatus {
        name: "web-x".into(),
        namespace: "shop".into(),
        workload: "Deployment/web".into(),
        verb: "intercept".into(),
        ports: vec![PortMapping {
            local: "127.0.0.1:8080".into(),
            container_port: 8080,
            service: "web".into(),
            service_port: 80,
            ..PortMapping::default()
        }],
        active: true,
        message: String::new(),
        pods_selected: 3,
        pods_covered: 3,
        asked: Some(InterceptRequest {
            namespace: "shop".into(),
            target: "web".into(),
            ports: vec![RequestedPort {
                local: "127.0.0.1:8080".into(),
                remote: String::new(),
            }],
            verb: "intercept".into(),
            ..InterceptRequest::default()
        }),
        ..EngagementStatus::default()
    }
}

#[tonic::async_trait]
impl session_server::Session for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(StatusResponse {
            name: "default".into(),
            context: "dev".into(),
            namespace: "shop".into(),
            server: "https://10.1.0.1:6443/".into(),
            manager_namespace: "kvpn".into(),
            manager_version: "0.1.9".into(),
            session_version: "0.1.8".into(),
            link: Link::Up.into(),
            engagements: vec![engagement()],
            ..StatusResponse::default()
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let namespace = request.into_inner().namespace;
        self.called(format!("list {namespace}"));
        let workload = WorkloadStatus {
            kind: "Deployment".into(),
            name: "web".into(),
            namespace,
            pods_ready: 3,
            pods_wanted: 3,
            ..WorkloadStatus::default()
        };
        Ok(Response::new(ListResponse {
            workloads: vec![workload],
        }))
    }

    type InterceptStream =
        Pin<Box<dyn Stream<Item = Result<InterceptResponse, Status>> + Send + 'static>>;

    /// Intercepts `web`, also `revoked` until bob ends that at once, refuses `taken`, breaks
    /// off `broken`, and never gets on with others.
    async fn intercept(
        &self,
        request: Request<InterceptRequest>,
    ) -> Result<Response<Self::InterceptStream>, Status> {
        let request = request.into_inner();
        let (verb, target) = (&request.verb, &request.target);
        self.called(match request.ports.first() {
            Some(port) => format!("{verb} {target} {} {}", port.local, port.remote),
            None => format!("{verb} {target}"),
        });
        let mount = request.mount.as_ref().filter(|mount| mount.root);
        let events = match request.target.as_str() {
            "web" | "revoked" => vec![
                Event::Progress("waiting for 3 agents".into()),
                Event::Warning("nothing listens on 127.0.0.1:8080".into()),
                Event::Active(EngagementStatus {
                    environment: request.environment,
                    container: match request.environment {
                        true => "app".into(),
                        false => String::new(),
                    },
                    mounted_at: mount
                        .map(|_| self.files.display().to_string())
                        .unwrap_or_default(),
                    mounted_read_only: mount.is_some_and(|mount| !mount.writable),
                    ..engagement()
                }),
            ],
            "taken" => {
                let failure = Failure::new(
                    Reason::AlreadyEngaged,
                    "bob intercepts port 80 of Deployment/web",
                    "ask bob, or choose another port",
                );
                return Err(failure.into());
            }
            _ => vec![Event::Progress("waiting".into())],
        };
        let (event_tx, event_rx) = mpsc::channel(8);
        for event in events {
            let response = InterceptResponse { event: Some(event) };
            event_tx.send(Ok(response)).await.unwrap();
        }
        if request.target == "revoked" {
            let failure = Failure::new(
                Reason::NoSuchEngagement,
                "engagement shop/web-x was deleted by bob",
                "engage it again",
            );
            event_tx.send(Err(failure.into())).await.unwrap();
        } else if request.ends_with_call {
            let (hung_up, event_tx) = (self.hung_up.clone(), event_tx.clone());
            tokio::spawn(async move {
                event_tx.closed().await;
                std::fs::write(hung_up, "").unwrap();
            });
        }
        if request.target == "slow" {
            std::fs::write(&self.waiting, "").unwrap();
            let cancelled = self.cancelled.clone();
            tokio::spawn(async move {
                event_tx.closed().await;
                std::fs::write(cancelled, "").unwrap();
            });
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(event_rx))))
    }

    async fn get_environment(
        &self,
        request: Request<GetEnvironmentRequest>,
    ) -> Result<Response<GetEnvironmentResponse>, Status> {
        let GetEnvironmentRequest { namespace, name } = request.into_inner();
        self.called(format!("environment {namespace} {name}"));
        let block = b"GREETING=it's\0HOME=/root\0LINES=a\nb\0RAW=\xff\0";
        Ok(Response::new(GetEnvironmentResponse {
            environment: Some(Environment {
                block: block.as_slice().into(),
            }),
            pod: "web-1".into(),
            container: "app".into(),
        }))
    }

    async fn leave(
        &self,
        request: Request<LeaveRequest>,
    ) -> Result<Response<LeaveResponse>, Status> {
        let request = request.into_inner();
        self.called(format!(
            "leave {} {} {}",
            request.namespace, request.target, request.all
        ));
        if self.has_quit.load(Ordering::Relaxed) {
            return Err(Status::unavailable("it has ended"));
        }
        Ok(Response::new(LeaveResponse {
            ended: vec![engagement()],
        }))
    }

    /// The second look finds the first flow with 512 bytes more.
    async fn flows(&self, _: Request<FlowsRequest>) -> Result<Response<FlowsResponse>, Status> {
        let looks = self.looks.fetch_add(1, Ordering::Relaxed);
        let flow = |id, state: FlowState| Flow {
            id,
            direction: FlowDirection::ToCluster.into(),
            protocol: "TCP".into(),
            host: format!("198.18.0.1:4000{id}"),
            cluster: "10.244.0.7:8080".into(),
            kind: "pod".into(),
            namespace: "shop".into(),
            object: "web-1".into(),
            state: state.into(),
            started_at: 1_764_000_000_000,
            ..Flow::default()
        };
        Ok(Response::new(FlowsResponse {
            flows: vec![
                Flow {
                    name: "web.shop".into(),
                    bytes_sent: 2048 + 512 * looks,
                    bytes_received: 1 << 20,
                    rtt_microseconds: 1_250,
                    ..flow(1, FlowState::Open)
                },
                flow(2, FlowState::Dialling),
            ],
        }))
    }

    async fn diagnose(
        &self,
        _: Request<DiagnoseRequest>,
    ) -> Result<Response<DiagnoseResponse>, Status> {
        let check = Check::ok("Tunnel", "round trip 1.2 ms");
        Ok(Response::new(DiagnoseResponse {
            checks: vec![serde_json::to_string(&check).unwrap()],
        }))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        self.called(format!("explain {}", request.into_inner().name));
        Ok(Response::new(ExplainResponse::default()))
    }

    type LogStream = Pin<Box<dyn Stream<Item = Result<LogResponse, Status>> + Send + 'static>>;

    /// A request to the laptop, one that the app answered instead, and a connection.
    async fn log(&self, request: Request<LogRequest>) -> Result<Response<Self::LogStream>, Status> {
        let request = request.into_inner();
        self.called(format!("log {} {}", request.target, request.watch));
        let line = |decision: Decision| LogResponse {
            decision: Some(Decision {
                came_at: 1_764_000_000_123_456,
                container_port: 8080,
                microseconds: 1_250,
                ..decision
            }),
            pod: "web-1".into(),
            engagement: "web-x".into(),
            user: "alice".into(),
            left_out: 0,
        };
        let asked = Decision {
            method: "GET".into(),
            path: "/cart\u{1b}[2J".into(),
            status: 200,
            claim_id: "x".into(),
            taken_by: Taker::Laptop.into(),
            ..Decision::default()
        };
        let failed = Decision {
            failed: true,
            taken_by: Taker::App.into(),
            ..asked.clone()
        };
        let refused = Decision {
            taken_by: Taker::Nobody.into(),
            status: 503,
            ..failed.clone()
        };
        let connection = LogResponse {
            engagement: String::new(),
            user: String::new(),
            left_out: 7,
            ..line(Decision {
                taken_by: Taker::App.into(),
                ..Decision::default()
            })
        };
        let lines = [line(asked), line(failed), line(refused), connection];
        Ok(Response::new(Box::pin(tokio_stream::iter(lines.map(Ok)))))
    }

    /// Alice's intercept takes it, and bob's does not.
    async fn judge(
        &self,
        request: Request<JudgeRequest>,
    ) -> Result<Response<JudgeResponse>, Status> {
        let JudgeRequest {
            target,
            method,
            path,
            headers,
            ..
        } = request.into_inner();
        self.called(format!(
            "judge {target} {method} {path} {}",
            headers.join(" ")
        ));
        let rule = |user: &str, fits| Rule {
            engagement: format!("web-{user}"),
            user: user.into(),
            verb: "intercept".into(),
            since: 1_764_000_000,
            conditions: vec![JudgedCondition {
                condition: format!("header x-user={user}"),
                holds: fits,
            }],
            fits,
            decides: fits,
            ..Rule::default()
        };
        let tap = Rule {
            verb: "wiretap".into(),
            conditions: Vec::new(),
            decides: false,
            ..rule("carol", true)
        };
        let absent = Rule {
            inactive: "dave's laptop is not connected".into(),
            decides: false,
            ..rule("dave", false)
        };
        Ok(Response::new(JudgeResponse {
            workload: "Deployment/web".into(),
            container_port: 8080,
            rules: vec![tap, rule("bob", false), rule("alice", true), absent],
        }))
    }

    async fn quit(&self, _: Request<QuitRequest>) -> Result<Response<QuitResponse>, Status> {
        self.called("quit");
        std::fs::remove_file(&self.socket).unwrap();
        self.has_quit.store(true, Ordering::Relaxed);
        Ok(Response::new(QuitResponse {
            ended: vec![engagement()],
        }))
    }
}
